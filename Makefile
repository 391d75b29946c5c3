# Every target makes and reuses its own environment in .venv: nothing is installed globally, none has to be activated.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Every process would compile all of the package again, which triples the time of a short one.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs conformance clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	@echo "making .venv (once)"; $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)  ## run the suites over the four simulated boards of boards.toml, in parallel
	$(BIN)/pytest-esp check --rack boards.toml -n 4 -q

test: $(READY)  ## the project's own tests
	$(BIN)/python -m pytest -n 2 -q

lint: $(READY)  ## ruff, pyright (strict), import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)  ## side-by-side benchmarks, one after the other
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: $(READY)  ## write docs/tools.md anew, from a server that runs
	$(BIN)/python docs/tools.py

conformance: $(READY)  ## esptool's own hardware tests against the virtual chips: ESPTOOL_SRC=DIR [BACKEND=qemu] [CHIPS=..] [TRANSPORT=..]
	$(BIN)/python tests/conformance/run.py --esptool-src "$(ESPTOOL_SRC)" $(if $(BACKEND),--backend "$(BACKEND)") $(if $(CHIPS),--chips "$(CHIPS)") $(if $(TRANSPORT),--transport "$(TRANSPORT)")

clean:  ## remove the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis demo-results
