# make demo | test | test-oldest | quality | benchmark | release. Each sets up .venv first, if it is not there yet.
PYTHON ?= python3
BIN := .venv/bin
# The launcher gives a process one CPU thread by default. The demo uses all cores that it may use: a container's quota
# counts. `make demo THREADS=1` leaves the others to other programs.
THREADS = $(shell $(BIN)/python -c 'import joblib; print(joblib.cpu_count())' 2>/dev/null || echo 1)

# The demo runs in bfloat16 where the processor has it. That is 1.7 times as fast.
PRECISION := $(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo bf16 || echo no)

# After each step glibc returns the memory of large tensors, and the kernel clears it for the next step. A step is 1.1 times
# as fast if glibc keeps it.
KEEP_MEMORY := MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432

LAUNCH = $(KEEP_MEMORY) $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision $(PRECISION) \
	--dynamo_backend no --num_cpu_threads_per_process $(THREADS)

.PHONY: help demo test test-oldest quality benchmark release

help:
	@echo "make demo       pre-train a small MAE on the bundled images, evaluate it, show the results (in runs/)"
	@echo "make test       run the tests"
	@echo "make test-oldest  the same with the oldest versions that setup.cfg names (OLDEST=python3.10)"
	@echo "make quality    check style, format and types"
	@echo "make benchmark  measure speed and memory"
	@echo "make release    build the wheel and the source archive into dist/, and check them; nothing is uploaded"
	@echo "PYTHON=python3.12 make ...  make .venv with another Python (3.10 or later)"

.venv/.installed: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is not Python 3.10 or later. Name one that is, as in: PYTHON=python3.12 make ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@echo "Installing into .venv. The first time takes some minutes (PyTorch is several GB)."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@

# PC cores without AVX-512 take twice as long for an epoch. They get fewer epochs.
SLOW := $(shell grep -qsw avx2 /proc/cpuinfo && ! grep -qsw avx512f /proc/cpuinfo && echo yes)

# A demo that was interrupted goes on. A finished demo is only shown.
demo: .venv/.installed
	@test -f runs/demo/README.md || $(LAUNCH) run_pretrain.py demo $(SLOW:yes=--num_train_epochs 20) --resume_from_checkpoint auto
	@test -f runs/demo_eval/results.txt || $(LAUNCH) run_eval.py demo_eval $(SLOW:yes=--num_train_epochs 12) --resume_from_checkpoint auto
	@echo; echo "What pre-training gained (accuracy in %; all figures are in runs/demo_eval):"
	@cat runs/demo_eval/results.txt
	@echo "What the model reconstructs: runs/demo/reconstruction.png"

test: .venv/.installed
	$(BIN)/python -m pytest

# The first Python that setup.cfg names, with the versions of tests/oldest.txt.
OLDEST ?= python3.10
.venv-oldest/.installed: setup.cfg tests/oldest.txt
	@test -x .venv-oldest/bin/python || $(OLDEST) -m venv .venv-oldest || { rm -rf .venv-oldest; exit 1; }
	@.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore .venv-oldest/bin/python -m pip install --quiet --constraint tests/oldest.txt \
		--editable '.[train,dev,dicom]'
	@touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest

quality: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The others measure accuracy or read strangers' files. They take up to an hour, each by its own command.
benchmark: .venv/.installed
	@for file in $(filter-out $(patsubst %,benchmarks/%.py,continue corpus scenes),$(wildcard benchmarks/*.py)); do echo "== $$file"; PYTHONPATH=. $(BIN)/python $$file || exit 1; done

release: .venv/.installed
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
