"""pytest, which ends its process right after the last test and its fixtures.

    python -m tests.run_pytest [OPTION ...]

Once, one of four such processes, with Ray, PyTorch, Arrow and the object store's client in it, was ended by a
segmentation fault although all tests had passed: so after them, while the interpreter took their threads down.
"""

import os
import sys

import pytest

if __name__ == "__main__":
    code = pytest.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
