"""Connects to the Ray cluster, and stops where its nodes run other code than this process."""

from collections.abc import Callable

from flows.services.settings import git_commit, store_key
from flows.version import describe_code
from pipeline.cluster import same_code, tasks
from pipeline.cluster.logs import WorkerLine
from pipeline.cluster.same_code import Code, SameCode

# The modules of `own_code`, as far as it uses them: nodes need not have them to be asked.
_SENT_BY_VALUE = (__name__, "flows.version", "flows.services.settings")


def own_code() -> dict[str, str]:
    """The code of the process that calls it: the driver, a worker, or what a node would start."""
    return describe_code(git_commit())


def connect(
    address: str, step: str, *, flow_run_id: str = "", heard: Callable[[WorkerLine], None] | None = None
) -> None:
    """Connect this process to a running cluster, to be called before anything is written.

    Tasks get the key of the step, one of store_rights.STEPS, until the next call; `heard` is called with the lines that
    workers write. Raises IgptError when the cluster does not respond, refuses the token, or has a node with another
    commit; workers of nodes that join later refuse their tasks.
    """
    check = SameCode(expected=Code(**own_code()), describe=own_code)
    tasks.connect(address, flow_run_id=flow_run_id, key=store_key(step), heard=heard, check=check)
    same_code.check_nodes(check, _SENT_BY_VALUE)
