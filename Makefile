# blockpunch: every target makes and reuses .venv by itself; nothing else is set up by hand.
#
#   make test       lint, types, then the fast tests      make demo     EfficientNet-Lite0, pruned and compiled
#   make test-slow  the slow tests too                    make lint     ruff and mypy alone
#   make readme     measure the README's table again      make clean    remove .venv, caches and results
#   make peers      DeepSparse in an environment of its own, for benchmarks/engine.py
#   make fuzz       ROUNDS=10 rounds of new random examples for the property-based tests
#   make check-networks   every network, pruned every way, against ONNX Runtime (half an hour)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# The CPU build of torch is wanted; the pin is the one release the project is tested with.
TORCH ?= torch==2.13.0
EXTRAS := all,openvino,ncnn,mnn,toolchain,demo,test
# Linux gives two cores to two test processes best when each computes on one thread.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
ROUNDS ?= 10
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# A machine-wide choice of BLAS kernels would slow numpy's own products down.
unexport OPENBLAS_CORETYPE

.PHONY: help setup test test-slow fuzz check-networks lint demo readme peers clean

help:
	@sed -n '3,8s/^# *//p' Makefile

setup: $(STAMP)

# The stamp is the last thing made, so an interrupted installation is taken up again by the next run.
$(STAMP): pyproject.toml
	@rm -f $(STAMP)
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  python=""; \
	  for candidate in $${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3; do \
	    if "$$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "blockpunch needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv); set PYTHON=/path/to/python3" >&2; \
	    exit 1; fi; \
	  echo "== making $(VENV) with $$($$python --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "== installing blockpunch[$(EXTRAS)] and $(TORCH) into $(VENV) (about 2 GB on disk, a minute or more the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[$(EXTRAS)]"
	@$(PY) -c 'import blockpunch, numpy, onnx, onnxruntime, torch; \
	print(f"== installed: torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, numpy {numpy.__version__}")'
	@touch $(STAMP)

lint: $(STAMP)
	@echo "== ruff"; $(PY) -m ruff check src tests benchmarks examples
	@echo "== mypy"; $(PY) -m mypy

test: lint
	@echo "== pytest"; $(TEST_ENV) $(PY) -m pytest -n $(JOBS) -m "not slow"

test-slow: lint
	@echo "== pytest, slow tests too"; $(TEST_ENV) $(PY) -m pytest -n $(JOBS)

fuzz: $(STAMP)
	@for round in $$(seq $(ROUNDS)); do \
	  $(TEST_ENV) $(PY) -m pytest -n $(JOBS) -m "hypothesis and not slow" --hypothesis-profile=fuzz; done

check-networks: $(STAMP)
	@$(TEST_ENV) $(PY) benchmarks/check_networks.py

demo: $(STAMP)
	@$(PY) examples/efficientnet_lite0.py --output demo

# DeepSparse 1.8.0 wants older packages than ours, and Python 3.8 to 3.11.
peers: $(STAMP)
	@test -x .peers/deepsparse/bin/python || $${PYTHON:-python3.11} -m venv .peers/deepsparse
	@.peers/deepsparse/bin/python -m pip install --quiet --disable-pip-version-check "deepsparse==1.8.0" "numpy<2"

readme: $(STAMP)
	@$(PY) benchmarks/engine.py bars
	@$(PY) benchmarks/engine.py publish

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis demo out
