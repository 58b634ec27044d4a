# Every target makes .venv when it is missing and re-uses it later.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
JOBS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults test-gpu test-rules format picture venv clean

help: ## this list
	@sed -n 's/^\([a-z%-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(STAMP) ## train a small language model with two workers, one of which gets killed (some 5 minutes)
	@$(BIN)/shoestring run demo $(ARGS)

test: $(STAMP) ## all tests but those that take minutes each
	@scripts/run-tests -m 'not long' -n $(JOBS) $(ARGS)

test-faults: $(STAMP) ## only the tests that kill, hang and starve real processes
	@$(PYTEST) -m faults $(ARGS)

test-gpu: $(STAMP) ## only the tests that need a GPU
	@$(PYTEST) -m gpu $(ARGS)

test-rules: $(STAMP) ## only the house rules: imports, sizes, types, style
	@$(PYTEST) tests/rules $(ARGS)

format: $(STAMP) ## ruff's formatter and its safe fixes
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix .

bench-%: $(STAMP) ## a benchmark by name; QUICK=1 for a short one
	@$(BIN)/python -m benchmarks.$(subst -,_,$*) $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

picture: $(STAMP) ## docs/report.png from a run: make picture RUN=runs/demo-1 (needs Chromium)
	@$(BIN)/python -m shoestring.report.picture $(RUN) docs/report.png

venv: $(STAMP) ## only set up

$(STAMP): pyproject.toml constraints/cpu.txt scripts/make-venv
	@PYTHON=$(PYTHON) scripts/make-venv

clean: ## remove .venv and caches; runs stay
	rm -rf $(VENV) .cache *.egg-info
