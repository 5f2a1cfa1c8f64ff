"""The secrets of a deployment, in one file with a line NAME=value each. infra/README.md explains them."""

from pathlib import Path

from pipeline.errors import IgptError

NAMES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "PREFECT_DB_PASSWORD"),
    *("MLFLOW_PASSWORD", "MLFLOW_SERVE_PASSWORD", "MLFLOW_SECRET_KEY", "PREFECT_PASSWORD", "RAY_AUTH_TOKEN"),
    "MODEL_SIGNING_SECRET",
)
_LEAST = {"RAY_AUTH_TOKEN": 32, "MODEL_SIGNING_SECRET": 32, "MLFLOW_PASSWORD": 12, "MLFLOW_SERVE_PASSWORD": 12}
_LEAST_OF_OTHERS = 8


def read(path: Path) -> dict[str, str]:
    """The secrets by name. Raises IgptError that names every missing or unsuitable one, and repeats none."""
    try:
        lines = path.read_text().splitlines()
    except PermissionError:
        raise IgptError(
            f"{path} cannot be read by user and group of the container: give the file mode 644, in a folder of mode 700"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise IgptError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    values = {name.strip(): value.strip() for name, _, value in pairs}
    problems = [problem for name in NAMES if (problem := _problem(name, values.get(name, ""))) is not None]
    if problems:
        raise IgptError("; ".join(problems))
    return {name: values[name] for name in NAMES}


def _problem(name: str, value: str) -> str | None:
    least = _LEAST.get(name, _LEAST_OF_OTHERS)
    if not value:
        return f"{name} is missing"
    if name == "AWS_ACCESS_KEY_ID":  # a name, not a secret
        return None
    if not (value.isascii() and value.isalnum()):
        return f"{name} must consist of letters and digits only, because it becomes part of URLs and files"
    if len(value) < least:
        return f"{name} has {len(value)} characters and needs {least} or more"
    return None
