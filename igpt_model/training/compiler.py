"""Checks the requirements of torch.compile: a compiler, and the headers of the C library and of Python."""

import shutil
import subprocess
import sysconfig

import torch

from igpt_model.worker import Worker
from pipeline.errors import IgptError

INSTALL = "on Debian install g++ libc6-dev python3-dev, on macOS run xcode-select --install"
_SOURCE = "#include <stdlib.h>\n#include <Python.h>\n"


def why_not(device: torch.device) -> str | None:
    """What torch.compile lacks for a device, in one line that ends with what to install; None: nothing."""
    language, compiler = ("C", _triton_compiler()) if device.type == "cuda" else ("C++", _inductor_compiler())
    if compiler is None:
        return f"torch.compile needs a {language} compiler, and there is none: {INSTALL}"
    kind = "c" if device.type == "cuda" else "c++"
    command = [compiler, "-fsyntax-only", "-x", kind, "-I", sysconfig.get_path("include"), "-"]
    try:
        result = subprocess.run(command, input=_SOURCE, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"torch.compile needs a {language} compiler, and {compiler} does not run ({error}): {INSTALL}"
    if result.returncode == 0:
        return None
    complaint = next((line for line in result.stderr.splitlines() if "error: " in line), "error: it fails")
    return (
        f"torch.compile needs the headers of the C library and of Python, and {compiler} says "
        f"{complaint.partition('error: ')[2]!r}: {INSTALL}"
    )


def require_compiler(worker: Worker, *, why: str) -> None:
    """Raise IgptError on every worker when torch.compile cannot work on one of them; all must call this.

    `why` tells what asks for it, as in "compile is set".
    """
    reason = why_not(worker.device)
    error = worker.first_error(IgptError(f"{why} and {reason}, or set compile to false") if reason else None)
    if error is not None:
        raise error


def _inductor_compiler() -> str | None:
    """The C++ compiler that torch.compile uses for CPU kernels: $CXX, or one that PyTorch selects."""
    # Imported here: it takes seconds, and is needed only when compiling.
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return None


def _triton_compiler() -> str | None:
    """The C compiler that Triton uses for kernel launchers: $CC, or gcc or clang."""
    from triton import knobs  # noqa: PLC0415 (installed only with PyTorch for CUDA)

    return knobs.build.cc or shutil.which("gcc") or shutil.which("clang")
