# Three commands: `make setup` (environment in .venv), `make run` (the main job and its report), `make test` (everything CI runs).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup run test coverage lint clean

setup: $(STAMP)

# The C++ kernels are built here, so that the first run does not wait for them.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -m kernels.build
	touch $@

run: setup
	$(BIN)/python -m suite run --workload longbench -o report.html

$(VENV)/.tests: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	./.ci/browser
	touch $@

lint: $(VENV)/.tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" --durations 20

coverage: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" --cov --cov-report=term:skip-covered

clean:
	rm -rf $(VENV) build dist *.egg-info artifacts .coverage
