# A registered model ships copies of both packages, which MLflow puts first on sys.path: igpt_model comes from here too.
import pipeline.one_installation  # noqa: F401
