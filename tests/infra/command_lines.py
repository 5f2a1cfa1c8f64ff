"""Parse command lines with the programs' own parsers, so that a test notices options that a new version drops."""

import io
import shlex
import warnings
from collections.abc import Iterator

PROGRAMS = ("igpt", "mlflow", "prefect", "ray")


def calls_in_script(script: str) -> Iterator[list[str]]:
    """The words of each call of one of PROGRAMS in a shell script."""
    lexer = shlex.shlex(script.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    call: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set(";&|()"):
            if call[:1] and call[0] in PROGRAMS:
                yield call
            call = []
        else:
            call.append(token)


def parse(words: list[str]) -> None:
    """Parse a command line with the program's own parser, without running it. Raises the parser's errors."""
    if words[0] == "prefect":
        from prefect.cli._app import _app
        from rich.console import Console

        quiet = {"exit_on_error": False, "print_error": False, "error_console": Console(file=io.StringIO())}
        # The outer parser takes the session's options, the inner one the commands.
        session = _app.meta.parse_args(words[1:], **quiet)[1]
        _app.parse_args(list(session.args), **quiet)
        return
    if words[0] == "mlflow":
        from mlflow.cli import cli as command
    elif words[0] == "ray":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about Ray
            from ray.scripts.scripts import cli as command
    else:
        import typer

        from flows.cli.main import app

        command = typer.main.get_command(app)
    arguments, context = words[1:], None
    while hasattr(command, "commands"):
        context = command.make_context(words[0], arguments, parent=context)
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(command.name, arguments, parent=context)
