# make demo: set up .venv and run the main job.  make test: the same set-up, then the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: rehearsal demo test test-services test-rig test-alone lint lock setup clean

demo: $(READY)
	$(BIN)/igpt demo

# Every service of infra/compose.yaml on a host of its own, for a night in which two Ray nodes are lost.
rehearsal: $(READY)
	$(BIN)/python -m tests.rehearsal

# Three parts, one after the other: two at a time take as long on two cores, and disturb each other's tests of faults.
test: $(READY)
	@$(MAKE) --no-print-directory --keep-going test-alone test-rig test-services

test-services: $(READY)
	$(BIN)/pytest -m "services and not rig"

test-rig: $(READY)
	$(BIN)/pytest -m rig

test-alone: $(READY)
	$(BIN)/pytest -m "not services and not rig"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# PIP_CONSTRAINT rather than -c: it also binds what pip installs to build the package.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "igpt-pipeline needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")'
	@echo "Installing into $(VENV) with the locked constraints (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

# uv in an environment of its own: the one it resolves for may be what no longer installs.
# torch is held at the version whose CPU wheel the machines have; everything else goes to the newest that works together.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	echo 'torch==2.13.0' | build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
		--custom-compile-command 'make lock' --constraints - --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
