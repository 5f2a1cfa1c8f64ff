"""pytest, which ends its process right after the last test and its fixtures.

    python -m tests.run_pytest [OPTION ...]

A process that has used Ray, PyTorch, Arrow and the object store's client has crashed in one of some twenty runs when
the interpreter took their threads down after that, with all tests passed.
"""

import os
import sys

import pytest

if __name__ == "__main__":
    code = pytest.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
