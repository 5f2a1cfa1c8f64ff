"""Workers with the variables that torchrun gives them, forked from a process that has imported the libraries.

torchrun and each of its workers import for two seconds; test_standalone.py and test_watchdog.py start the real one.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

from flows.services.ports import free_port

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["igpt_model.training.loop", "igpt_model.training.standalone"])
_SECONDS = 300


def run_workers(count: int, module: str, *arguments: str) -> list[str]:
    """What each of some workers prints that run a module, by rank. All must end well."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    variables = {**address, "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "test"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(count)]
        workers = [
            _CONTEXT.Process(target=_work, args=(rank, variables, output, module, arguments))
            for rank, output in enumerate(outputs)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(_SECONDS)
            worker.kill()
        printed = [output.read_text() for output in outputs]
        assert [worker.exitcode for worker in workers] == [0] * count, "\n".join(printed)
    return printed


def _work(rank: int, variables: dict[str, str], output: Path, module: str, arguments: tuple[str, ...]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")
