"""All nodes run the driver's code: they are asked before a run writes anything, and each worker before it works.

A shard or a checkpoint made by other code would be wrong without anybody noticing.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import ray

from pipeline.cluster import tasks
from pipeline.errors import IgptError

_DIRTY = "-dirty"
_ADVICE = "bring both to one commit (infra/UPGRADE.md), then run it again"


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that a process imports, as flows/version.py describes it; what is unknown is empty."""

    version: str
    commit: str
    """Ends in "-dirty" for a checkout with changes."""
    declared: str
    """The commit that the deployment declares."""
    digest: str
    """SHA-256 of the Python files and their paths."""
    place: str
    """The machine and the folder."""

    def is_as_good_as(self, other: "Code") -> bool:
        """Whether both are the same code. Files of one checkout are, also if somebody edits them meanwhile."""
        if self.place == other.place and not (self.declared or other.declared):
            return True
        commits = {code.commit.removesuffix(_DIRTY) for code in (self, other) if code.commit}
        same_files = self.place == other.place or self.digest == other.digest
        return self.version == other.version and len(commits) < 2 and same_files

    def __str__(self) -> str:
        if not self.version and not self.commit:
            return "no igpt-pipeline" if not self.digest else f"igpt-pipeline with the files {self.digest[:12]}"
        commit = self.commit.removesuffix(_DIRTY)[:12]
        changes = " with changes" if self.commit.endswith(_DIRTY) else ""
        named = f"commit {commit}{changes}" if commit else "unknown commit"
        return f"{self.version or 'igpt-pipeline'} of {named} (files {self.digest[:8]})"


@dataclass(frozen=True, kw_only=True)
class SameCode:
    """Called in a worker, raises IgptError unless the worker runs the driver's code."""

    expected: Code
    describe: Callable[[], Mapping[str, str]]
    """Describes the code of the process that calls it."""

    def __call__(self) -> None:
        """Check this process, once."""
        if (refusal := _refusal(self)) is not None:
            raise IgptError(refusal)


@cache  # a process keeps the code that it has imported
def _refusal(check: SameCode) -> str | None:
    own = Code(**check.describe())
    if check.expected.is_as_good_as(own):
        return None
    return f"{_difference(own, [ray.util.get_node_ip_address()])}, the driver {check.expected}: {_ADVICE}"


def check_nodes(check: SameCode, sent_by_value: Sequence[str]) -> None:
    """Raise IgptError, which names the nodes, unless every node runs the driver's code.

    `sent_by_value` names the modules of `check.describe`, which the nodes may lack or have in another version. Nodes
    that do not answer are left out: a worker that starts there later checks itself.
    """
    others: dict[Code, list[str]] = defaultdict(list)
    for node, answer in tasks.ask_nodes(check.describe, sent_by_value).items():
        code = Code(**answer)
        if not check.expected.is_as_good_as(code):
            others[code].append(node)
    if others:
        differences = "; ".join(_difference(code, nodes) for code, nodes in others.items())
        raise IgptError(f"{differences}; this driver runs {check.expected}, and has written nothing: {_ADVICE}")


def _difference(code: Code, nodes: Sequence[str]) -> str:
    if len(nodes) == 1:
        return f"Ray's node {nodes[0]} runs {code}"
    listed = ", ".join(sorted(nodes)[:8]) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
    return f"Ray's nodes {listed} run {code}"
