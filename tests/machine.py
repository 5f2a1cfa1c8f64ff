"""Skips tests whose requirements this machine lacks, with a reason that says what to install.

A test is marked `@pytest.mark.needs("compiler")`, a fixture calls `require("postgres")`. The last line of a run counts
the skipped tests by reason. With `--all-must-run`, which CI sets, a run fails when a test was skipped, unless the test
is for another platform or a GPU.
"""

import functools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Generator

import pytest

from tests.rigs import hosts, postgres

OTHER_MACHINE = ("platform: ", "GPU: ")
"""Prefixes of reasons that cannot be resolved by installing something."""


@functools.cache
def _compiler() -> str | None:
    import torch

    from igpt_model.training import compiler

    return compiler.why_not(torch.device("cpu"))


@functools.cache
def _kustomize() -> str | None:
    if shutil.which("kubectl"):
        shown = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"Kustomize Version: v(\d+)", shown)
        if version is not None and int(version[1]) >= 5:
            return None
    # Debian's kubectl is too old for components, and PyPI has none.
    return "platform: there is no kubectl with kustomize 5; install it as in https://kubernetes.io/docs/tasks/tools"


def _browser() -> str | None:
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return None
    return "there is no Chromium with its driver: on Debian install chromium and chromium-driver"


def _promtool() -> str | None:
    return None if shutil.which("promtool") else "there is no promtool: on Debian install prometheus"


REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "browser": _browser,
    "compiler": _compiler,
    "hosts": hosts.why_not,
    "kustomize": _kustomize,
    "postgres": postgres.why_not,
    "promtool": _promtool,
}
"""The possible requirements; each function returns why it is missing and what to install, or None if it is there."""


def require(name: str) -> None:
    """Skip the current test with the reason if this machine lacks a requirement."""
    reason = REQUIREMENTS[name]()
    if reason is not None:
        pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-must-run", action="store_true", help="fail if a test is skipped that could run here")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            require(name)


def _skipped(config: pytest.Config) -> Counter[str]:
    """The numbers of skipped tests and test files by reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # in a process that reports to another one
        return Counter()
    reasons = (report.longrepr[2] for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple))
    return Counter(reason.removeprefix("Skipped: ") for reason in reasons)


def _unexcused(config: pytest.Config) -> list[str]:
    """The reasons of skipped tests that had to run."""
    if not config.getoption("all_must_run"):
        return []
    return [reason for reason in _skipped(config) if not reason.startswith(OTHER_MACHINE)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexcused(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    yield  # pytest's own summary comes first
    for reason in _unexcused(config):
        terminalreporter.write_line(f"FAILED: with --all-must-run no test may be skipped because {reason}", red=True)
    counts = _skipped(config)
    if counts:
        summary = "; ".join(f"{count} because {reason}" for reason, count in counts.most_common())
        terminalreporter.write_line(f"skipped: {summary}")
