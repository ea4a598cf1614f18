# masksmith: two commands matter, `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
JOBS ?= 2
TASK ?= binary
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help env demo quick test style lint unit docs docs-test systems faults audit bench bench-all clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== environment: building $(VENV) (about a minute with a warm package cache)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "masksmith needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

env: $(VENV)/.installed  ## build the environment

demo: env  ## generate data and go the whole way, three minutes: demo/report.html (TASK=binary, multiclass, multilabel or instances)
	@echo "== demo: generated images ($(TASK)), in demo-data/"
	@$(BIN)/masksmith example demo-data --task $(TASK) $(if $(filter binary,$(TASK)),--train 600 --test 100,--train 200 --test 40)
	@echo "== demo: check, folds, plan, train, predict, tune, submit, report: three minutes, in demo/"
	@$(BIN)/masksmith compete demo-data/data --out demo --budget 3m
	@echo "== demo: the submission against the answers, which the program had not seen"
	@$(BIN)/masksmith score $(if $(filter binary,$(TASK)),demo/submission.csv demo-data/solution.csv --metric tgs_map --shape 101x101,$(if $(filter multilabel,$(TASK)),demo/submission.csv demo-data/solution.csv,demo/masks demo-data/solution --task $(TASK)))
	@echo "== demo: open demo/report.html"

quick: style  ## style, types, layers and the fast unit tests: under three minutes on two cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not real"

test: lint unit  ## everything that must pass: style, types, spelling, layers, all tests: under fourteen minutes on two cores, with the environment

style: env
	@echo "== style, types, layers"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

lint: style
	@echo "== spelling"
	@$(BIN)/codespell src tests tools docs benchmarks *.md

unit: env
	@echo "== tests ($(JOBS) processes of one thread; with real data where MASKSMITH_SHARED names it: $${MASKSMITH_SHARED:-not set})"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"
	@# checking the types of every array at every call takes 40% of the slow tests' time; the fast ones have it
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow and not heavy" -o addopts="-q --strict-markers" --durations=8

$(VENV)/.docs: $(VENV)/.installed
	@$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## build the documentation without network: site/index.html
	@$(BIN)/python tools/docs_site.py

docs-test: env  ## run every command of the documentation on generated images (PAGES=docs/start/kaggle.md …: of these; about ten minutes)
	@$(BIN)/python tools/docs_test.py $(PAGES)

systems: env  ## what make test leaves out: systems of many nets, small; a Ray cluster and the site, where the extras ray and docs are installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m heavy

faults: env  ## stop a small run (TASK=binary, …) in every way; each must end with the bits of a clean one (half an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --jobs 2 --task $(TASK)

audit: env  ## versions with known holes, risky calls in src; then pip-audit (AUDIT_ONLINE=1: it must answer)
	@$(BIN)/python tools/audit.py

bench: env  ## ours and the usual script in turn: benchmarks/results/latest.json (needs a quiet machine)
	@$(BIN)/python benchmarks/bench.py $(if $(ALBUMENTATIONS),--albumentations $(ALBUMENTATIONS))

bench-all: bench  ## all else that the documents claim
	@$(BIN)/python benchmarks/train_step.py
	@$(BIN)/python benchmarks/depthwise.py
	@$(BIN)/python benchmarks/sweep.py
	@$(BIN)/python benchmarks/predict_runtime.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/budget.py
	@$(BIN)/python benchmarks/losses.py
	@$(BIN)/python benchmarks/metrics.py
	@$(BIN)/python benchmarks/augment.py
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/checkpointing.py

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo demo-data site build/docs
