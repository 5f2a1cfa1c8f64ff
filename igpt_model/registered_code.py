"""The script that MLflow runs to load a registered model: it names the model object and does nothing else."""

from mlflow.models import set_model

from igpt_model.registered import RegisteredImageGPT

set_model(RegisteredImageGPT())
