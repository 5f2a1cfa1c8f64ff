"""What tests need of the machine: looked for here, and what is missing skips them with what to install.

A test says `@pytest.mark.needs("compiler")`, a fixture calls `require("postgres")`. The last line of a run counts the
skipped by reason. `--all-must-run`, with which CI runs, fails when one was skipped for want of something that can be
installed; those that another platform or a GPU would run may be.
"""

import functools
from collections import Counter
from collections.abc import Callable

import pytest

from tests.rigs import hosts, postgres

OTHER_MACHINE = ("platform: ", "GPU: ")
"""How a reason begins that nothing installed here could mend."""


@functools.cache
def _compiler() -> str | None:
    import torch

    from igpt_model.training import compiler

    return compiler.why_not(torch.device("cpu"))


LOOKS: dict[str, Callable[[], str | None]] = {
    "compiler": _compiler,
    "hosts": hosts.why_not,
    "postgres": postgres.why_not,
}
"""What a test may need, and how to see why it is not to be had, in a line that says what to install; None: it is."""


def require(name: str) -> None:
    """Skip the test that asks, and say what to install, unless this machine has what goes by the name."""
    reason = LOOKS[name]()
    if reason is not None:
        pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-must-run", action="store_true", help="fail if a test is skipped that could run here")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            require(name)


def _skipped(config: pytest.Config) -> Counter[str]:
    """How many tests, and files of tests, were skipped for which reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker that reports to another process
        return Counter()
    reasons = (report.longrepr[2] for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple))
    return Counter(reason.removeprefix("Skipped: ") for reason in reasons)


def _unexcused(config: pytest.Config) -> list[str]:
    """The reasons of tests that were skipped and had to run."""
    if not config.getoption("all_must_run"):
        return []
    return [reason for reason in _skipped(config) if not reason.startswith(OTHER_MACHINE)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexcused(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in _unexcused(config):
        terminalreporter.write_line(f"FAILED: with --all-must-run no test may be skipped because {reason}", red=True)
    counts = _skipped(config)
    if counts:
        told = "; ".join(f"{count} because {reason}" for reason, count in counts.most_common())
        terminalreporter.write_line(f"skipped: {told}")
