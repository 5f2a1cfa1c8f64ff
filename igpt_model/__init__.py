# A registered model brings copies of both packages, and MLflow puts them first: take both from one place.
import pipeline  # noqa: F401
