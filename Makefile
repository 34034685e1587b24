# Two commands do all their own set-up: `make nano` runs the whole recipe, `make test` runs the tests.
SIZE ?= nano
OUT ?= runs/$(SIZE)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

# Make libraries use what a CPU with AVX2, and nothing newer, has.
AVX2_TESTS := tests/test_avx2.py tests/core/kernels tests/core/quantization tests/core/model tests/core/prepared tests/core/parity tests/core/engine tests/core/devices tests/core/test_api.py
AVX2 := env $(shell grep -v '^\#' tests/avx2.env)
ISA_TESTS := $(AVX2_TESTS) $(addprefix tests/core/,doctor checkpoints finetuning train transcription media processing invariants) tests/benchmarks

.PHONY: nano reproduce rehearsal test test-all test-avx2 test-isa test-clients box docs lint setup clean

nano: SIZE = nano
nano: reproduce

reproduce: setup
	$(BIN)/polyphi reproduce $(SIZE) --out $(OUT)

# A recipe file over sources in every format, a given language model and a given vision tower: examples/rehearsal.
rehearsal: setup
	$(BIN)/python examples/rehearsal/make.py runs/rehearsal
	$(BIN)/polyphi reproduce runs/rehearsal/lab.toml --out runs/rehearsal/run
	$(BIN)/polyphi chat runs/rehearsal/run "Describe it." --image runs/rehearsal/sources/folder/200.png --temperature 1 --max-tokens 12

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 3 --dist worksteal

test-all: setup lint .venv/.long .venv/.browser .venv/.emulators .venv/.proxy .venv/.llama
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The packages whose results depend on the class of the CPU, and a whole run, as on a CPU with AVX2 and nothing newer.
test-avx2: setup
	OMP_NUM_THREADS=1 $(AVX2) $(BIN)/python -m pytest -m "not long" -n 3 --dist worksteal $(AVX2_TESTS)
	rm -rf runs/micro-avx2
	$(AVX2) $(BIN)/polyphi reproduce micro --out runs/micro-avx2

# The same packages, and others that choose by the CPU, as on every older CPU that this one can be limited to.
test-isa: setup
	@environments=$$($(BIN)/python -m tests.isa) && echo "$$environments" | { while read -r isa; do echo "$$isa"; \
	  env $$isa OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 3 --dist worksteal $(ISA_TESTS) </dev/null \
	    || failed="$$failed; $$isa"; done; test -z "$$failed" || { echo "failed$$failed"; exit 1; }; }

# Real clients, each in an environment of its own, with the model of `make nano`.
test-clients: setup .venv/.browser
	$(BIN)/python tests/clients/run.py runs/nano

# The model of `make nano` as the package polyphi-nano, in dist/.
box: setup
	$(BIN)/python models/nano/fill.py $(OUT)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist models/nano
	@ls dist/polyphi_nano-*.whl

# The documentation as a site, in site/.
docs: setup
	$(BIN)/zensical build --strict --config-file mkdocs.yml

lint: setup
	$(BIN)/ruff check *.py polyphi polyphi_eval polyphi_recipe experiments models tests benchmarks examples
	$(BIN)/ruff format --check *.py polyphi polyphi_eval polyphi_recipe experiments models tests benchmarks examples
	$(BIN)/mypy

# --no-compile: the bytecode of all installed modules would take most of a minute; each import writes its own. Containers
# often forbid that, and every process would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

setup: .venv/.packages .venv/.speech

.venv/.packages: pyproject.toml setup.py $(wildcard polyphi/kernels/*.cpp polyphi/kernels/*.h)
	@$(call debian,c++,g++,faster answers in 4 bits)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

# Packages that only long tests need.
.venv/.long: .venv/.packages
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev,ray,notebook]'
	touch $@

# Programs come from Debian where make runs as root; it names them first and asks nothing. Elsewhere, and where apt-get
# fails, the recipe and its tests continue without them.
# $(call debian,programs,packages,what for)
debian = if which $(1) >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing with apt-get, for $(3): $(2)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null \
	    || echo "apt-get failed, continuing without: $(2)"; \
	else echo "not installed: $(2); install with your package manager for $(3)"; fi

.venv/.speech: .venv/.packages
	@$(call debian,espeak-ng flite,espeak-ng flite,synthesized speech)
	@touch $@

.venv/.browser: .venv/.packages
	@$(call debian,chromium chromedriver,chromium chromium-driver,tests of the page)
	@$(call debian,node npm,nodejs npm,a check of the workflows)
	@touch $@

.venv/.emulators: .venv/.packages
	@$(call debian,qemu-x86_64 qemu-aarch64 aarch64-linux-gnu-g++,qemu-user g++-aarch64-linux-gnu,tests of emulated CPUs)
	@touch $@

.venv/.proxy: .venv/.packages
	@$(call debian,nginx,nginx-light,tests of the reverse proxy)
	@touch $@

# llama.cpp, compiled: some minutes.
.venv/.llama: benchmarks/peers/requirements-llama.txt | .venv/.packages
	@$(BIN)/python tests/release/interchange.py runs/nano --setup --only llama.cpp \
	  || echo "llama.cpp could not be built: GGUF exports are not tested in it"
	@touch $@

clean:
	rm -rf .venv runs build *.egg-info
