"""What Prefect's page says of a failed flow run: one line. The traceback is in the run's log."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from pipeline.errors import UnforeseenError, unforeseen_line
from pipeline.printable import printable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_one_line(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function of a flow, which raises UnforeseenError for an error whose text is more than one line.

    Prefect writes the text of an error into the state of the run, which notifications quote.
    """

    @wraps(work)
    def run(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            return work(*arguments, **named)
        except Exception as error:
            if printable(str(error)) == str(error):
                raise
            raise UnforeseenError(unforeseen_line(error)) from error

    return run
