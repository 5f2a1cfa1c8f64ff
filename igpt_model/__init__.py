# A registered model ships copies of both packages, which MLflow puts first on sys.path: import both from there.
import pipeline  # noqa: F401
