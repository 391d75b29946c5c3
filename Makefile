# Every target makes and reuses its own environment in .venv: nothing is installed globally, none has to be activated.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.ready

# What touches the packages that are required: each file names what it is for.
LOWEST_TESTS := tests/test_dependencies.py tests/test_private_names.py \
	tests/link/test_session.py tests/sim/test_chip.py tests/sim/test_espefuse.py \
	tests/plugin/test_unity.py tests/plugin/test_selection.py tests/plugin/test_reports.py \
	tests/cli/test_op.py tests/mcp_bridge/test_bridge.py tests/boards/test_labgrid.py tests/boards/test_power_meter.py \
	tests/operations/diagnostics/test_core_dump.py tests/operations/firmware/test_size_analysis.py \
	tests/operations/partitions/test_nvs.py tests/operations/ota/test_package.py tests/formats/test_hex_and_uf2.py

# Half of the time they wait for ports and processes: two workers a core. Each begins with whole modules, whose fixtures
# are the slowest.
TESTS := $(BIN)/python -m pytest -n 4 --dist worksteal -q

# Every process would compile all of the package again, which triples the time of a short one.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-serial test-all test-lowest lint bench docs conformance clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	@echo "making .venv (once)"; $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)  ## run the suites over the four simulated boards of boards.toml, in parallel
	$(BIN)/pytest-esp check --rack boards.toml -n 4 -q

test: $(READY)  ## the project's own tests, without the slow ones
	$(TESTS) -m "not slow"

test-serial: $(READY)  ## the tests of all that uses a board, on devkits: chips in other processes, at ports with control lines
	$(TESTS) tests/boards/test_every_operation.py tests/boards/test_lines.py tests/boards/test_given_back.py tests/suites
	$(TESTS) --devkits -m "not slow" tests/operations tests/link tests/plugin tests/cli tests/mcp_bridge

test-all: $(READY)  ## all of the project's own tests
	$(TESTS)

$(LOWEST_READY): pyproject.toml
	@echo "making $(LOWEST) (once)"; $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --upgrade --resolution lowest-direct -e '.[dev]'
	@touch $@

test-lowest: $(LOWEST_READY)  ## the tests that touch other packages, with the lowest versions that pyproject.toml allows
	PYTEST_ESP_LOWEST=1 $(LOWEST)/bin/python -m pytest -n 2 -q $(LOWEST_TESTS)

lint: $(READY)  ## ruff, pyright (strict), import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)  ## side-by-side benchmarks, one after the other
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: $(READY)  ## write docs/tools.md, from a server that runs, and the keys in docs/boards.md
	$(BIN)/python docs/tools.py && $(BIN)/python docs/boards_keys.py

conformance: $(READY)  ## esptool's own hardware tests against the virtual chips: ESPTOOL_SRC=DIR [BACKEND=qemu] [CHIPS=..] [TRANSPORT=..]
	$(BIN)/python tests/conformance/run.py --esptool-src "$(ESPTOOL_SRC)" $(if $(BACKEND),--backend "$(BACKEND)") $(if $(CHIPS),--chips "$(CHIPS)") $(if $(TRANSPORT),--transport "$(TRANSPORT)")

clean:  ## remove the environment and caches
	rm -rf .venv $(LOWEST) .pytest_cache .ruff_cache .hypothesis demo-results
