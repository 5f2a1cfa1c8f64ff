"""Makes MLflow's scoring server answer a refused request with the reason alone, in one line.

By itself the server puts the whole request in front of the reason, a megabyte for one large photograph, and a traceback
behind it. Clients show and log these answers.
"""

import sys
from typing import Any

from mlflow.exceptions import MlflowException

from pipeline.printable import printable

_SERVER = "mlflow.pyfunc.scoring_server"
_MOST = 1000  # characters
_BEFORE_THE_REASON = "\nError: "  # as in "Failed to predict data '...'. \nError: image 0: not_an_image"


def shorten() -> None:
    """Shorten the answers of the scoring server, where this process is one; does nothing elsewhere or twice."""
    server = sys.modules.get(_SERVER)
    answer = getattr(server, "invocations", None)
    if server is None or answer is None or getattr(answer, "gives_short_answers", False):
        return

    def invocations(*arguments: Any, **named: Any) -> Any:
        try:
            return answer(*arguments, **named)
        except MlflowException as error:
            error.message = reason(error.message)
            error.json_kwargs.pop("stack_trace", None)
            raise

    invocations.gives_short_answers = True  # type: ignore[attr-defined]
    server.invocations = invocations  # type: ignore[attr-defined]


def reason(message: str) -> str:
    """The first line of the reason in a message of the server, without the request, cut to 1000 characters."""
    lines = message.rpartition(_BEFORE_THE_REASON)[2].strip().splitlines()
    return printable(lines[0])[:_MOST] if lines else "the request is refused"
