# Two commands do all their own set-up: `make nano` runs the whole recipe, `make test` runs the tests.
SIZE ?= nano
OUT ?= runs/$(SIZE)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: nano reproduce test test-all lint setup clean

nano: SIZE = nano
nano: reproduce

reproduce: setup
	$(BIN)/polyphi reproduce $(SIZE) --out $(OUT)

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

test-all: setup lint .venv/.ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check polyphi tests benchmarks examples
	$(BIN)/ruff format --check polyphi tests benchmarks examples
	$(BIN)/mypy

setup: .venv/.packages .venv/.speech

.venv/.packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/.ray: .venv/.packages
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray]'
	touch $@

# Speech engines come from Debian where it is there; elsewhere the recipe goes on without them and says so.
.venv/.speech: .venv/.packages
	@if command -v espeak-ng >/dev/null && command -v flite >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends espeak-ng flite >/dev/null; \
	else echo "espeak-ng and flite are not installed: install them with your package manager for synthesised speech"; fi
	@touch $@

clean:
	rm -rf .venv runs build *.egg-info
