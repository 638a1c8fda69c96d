PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIGITS := examples/01_digits
OUT := build/demo
SPARSITY ?= 0.95

.PHONY: demo compiled test test-slow test-cuda lint bench zoo clean

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnxprune needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# The main job on the example: masks alone, and masks with repair, for the network with BatchNorm and with it folded.
demo: $(VENV)/.installed
	@mkdir -p $(OUT)
	@for form in digits digits_folded; do \
	  $(BIN)/onnxprune $(DIGITS)/$$form.onnx --alloc erk --sparsity $(SPARSITY) --repair none --quiet --force -o $(OUT)/$$form.masked.onnx || exit 1; \
	  echo "onnxprune $(DIGITS)/$$form.onnx --alloc erk --sparsity $(SPARSITY) --calib $(DIGITS)/calib.npz"; \
	  $(BIN)/onnxprune $(DIGITS)/$$form.onnx --alloc erk --sparsity $(SPARSITY) --calib $(DIGITS)/calib.npz \
	    --force -o $(OUT)/$$form.pruned.onnx --report $(OUT)/$$form.json || exit 1; \
	  echo "accuracy on the labelled test split: dense, masks alone, repaired"; \
	  $(BIN)/python $(DIGITS)/accuracy.py $(DIGITS)/test.npz $(DIGITS)/$$form.onnx $(OUT)/$$form.masked.onnx $(OUT)/$$form.pruned.onnx || exit 1; \
	  echo; \
	done

# The tests start the command hundreds of times: its modules are compiled once, as those of an installed package are.
compiled: $(VENV)/.installed
	@$(BIN)/python -m compileall -q onnxprune

# Each of these processes computes with one thread, as commands do that are started side by side; the slow tests with all.
test: compiled
	ONNXPRUNE_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow and not cuda"

# Two at a time, however many cores there are: some take gigabytes.
test-slow: compiled
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not cuda"

# Where there is an NVIDIA GPU; its libraries come with `.venv/bin/pip install '.[cuda]'`.
test-cuda: $(VENV)/.installed
	$(BIN)/python -m pytest -m cuda

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Speed and memory against plain forward passes; needs the reference models (ONNXPRUNE_REFERENCE).
bench: $(VENV)/.installed
	$(BIN)/python tools/bench_repair.py

# Real files: out of wheels, and exports from torch, which goes into an environment of its own (6 GB). Writes docs/zoo.md.
zoo: $(VENV)/.installed
	$(BIN)/python tools/zoo_files.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
