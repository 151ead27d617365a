# make quickstart   install and run the smallest whole run
# make test         install and run the checks and tests
# make format       format the sources

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check format clean

quickstart: .venv/.run
	$(BIN)/onward run recipes/quickstart.yaml

test: .venv/.dev
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/.dev
	$(BIN)/ruff check --fix src tests tools benchmarks
	$(BIN)/ruff format src tests tools benchmarks

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache

# One environment, two depths; each marker is renewed when the pins or the metadata change.
.venv/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
