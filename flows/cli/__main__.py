"""The program `igpt`, also `python -m flows.cli`: runs the command line, or ends with one line on Windows."""

from pipeline.garbage import collect_less_often
from pipeline.operating_system import allow_open_files, end_on_windows


def main() -> None:
    """Run the command line; see main.main."""
    end_on_windows()
    collect_less_often()
    from flows.cli import main as command_line

    allow_open_files()
    command_line.main()


if __name__ == "__main__":
    main()
