# make demo | test | quality | benchmark. Each sets up .venv first; nothing is done twice.
PYTHON ?= python3
BIN := .venv/bin
# The launcher gives a process one CPU thread unless told; the demo is to use all cores.
THREADS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

# bfloat16 where the processor has it: 1.7 times as fast.
PRECISION := $(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo bf16 || echo no)

LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision $(PRECISION) \
	--dynamo_backend no --num_cpu_threads_per_process $(THREADS)

.PHONY: help demo test quality benchmark

help:
	@echo "make demo       pre-train a small MAE on the bundled images and show what it learned (runs/)"
	@echo "make test       run the tests"
	@echo "make quality    check style and format"
	@echo "make benchmark  measure speed and memory"
	@echo "PYTHON=python3.12 make ... takes another Python (3.10 or later) for .venv"

.venv/.installed: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is not a Python 3.10 or later: give one, as in PYTHON=python3.12 make ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@echo "Installing into .venv: some minutes the first time (PyTorch is several GB)"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@

# A demo that was interrupted goes on; one that is done is only shown.
demo: .venv/.installed
	@test -f runs/demo/README.md || $(LAUNCH) run_pretrain.py demo --resume_from_checkpoint auto
	@test -f runs/demo_eval/results.txt || $(LAUNCH) run_eval.py demo_eval --resume_from_checkpoint auto
	@echo; echo "What pre-training bought (accuracies in %; runs/demo_eval has all figures):"
	@cat runs/demo_eval/results.txt
	@echo "What the model sees: runs/demo/reconstruction.png"

test: .venv/.installed
	$(BIN)/python -m pytest

quality: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

benchmark: .venv/.installed
	@for file in benchmarks/*.py; do echo "== $$file"; PYTHONPATH=. $(BIN)/python $$file || exit 1; done
