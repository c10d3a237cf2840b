# One word per chore. Everything installs into $(VENV) through constraints.txt, so that it is repeatable.

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
SUM := $(shell cat constraints.txt pyproject.toml | cksum | tr -d ' ')
READY := $(VENV)/.ready-$(SUM)
BIN := $(abspath $(VENV))/bin
RUN := PYTHONPATH=$(CURDIR) $(BIN)/python
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -p no:cacheprovider

.PHONY: demo test test-slow test-kill test-fuzz test-gpu test-browser test-latex test-ray test-slurm check bench clean help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	touch $(READY)

demo: $(READY) ## generate data, run a study, write its report ($(OUT)/)
	$(RUN) -m anban.tasks.change.demo $(OUT)/generated-scenes
	$(RUN) -m anban study change/demo data.root=$(OUT)/generated-scenes --out $(OUT)/runs --device cpu

test: $(READY) ## the whole suite for a CPU machine
	$(PYTEST) -n 2 $(ARGS)

test-slow: $(READY) ## minutes of training
	$(PYTEST) -m slow $(ARGS)

test-kill: $(READY) ## kills runs of every task and resumes them; the ledger after a hundred deaths (half an hour)
	$(RUN) -m benchmarks.kill $(ARGS)

test-fuzz: $(READY) ## ten thousand damaged files for every reader (a quarter of an hour)
	$(PYTEST) -m fuzz tests/fuzz tests/audit $(ARGS)

test-gpu: $(READY) ## what needs a CUDA device
	$(PYTEST) -m gpu $(ARGS)

test-browser: $(READY) ## opens a report in Chromium, which it installs (Debian)
	command -v chromium || { apt-get update -q && apt-get install -qy chromium; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(PYTEST) -m browser $(ARGS)

test-latex: $(READY) ## compiles the LaTeX tables, with the TeX it installs (Debian)
	command -v pdflatex || { apt-get update -q && apt-get install -qy texlive-latex-recommended; }
	$(PYTEST) -m latex $(ARGS)

test-ray: $(READY) ## the audit on a local Ray of two workers, which it installs
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(PYTEST) -m ray $(ARGS)

test-slurm: $(READY) ## a study on a real SLURM of one node, which it installs (Debian, as root)
	command -v slurmctld || { apt-get update -q && apt-get install -qy slurm-wlm munge; }
	$(PYTEST) -m slurm $(ARGS)

check: $(READY) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## benchmarks; figures go to benchmarks/results/
	$(RUN) -m benchmarks $(ARGS)

clean: ## remove what make made here
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
