# Two commands matter to a newcomer: `make run` and `make test`. Both set up .venv first, and only when something changed.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup run test chaos bench check fmt lock clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.footnote-setup

# Override on the command line: make run PORT=9000, make test ARGS="-k fusion", make setup PYTHON=python3.12
PORT ?=
ARGS ?=
PYTHON ?=
SEED ?= 1
ROUNDS ?= 20
DOCUMENTS ?= 500
CORPUS ?=
VERBS ?= embed ingest query start streams
# On Linux the locked torch brings its CUDA libraries along, which is most of this.
MIN_FREE_GB ?= $(if $(filter Linux,$(shell uname -s)),8,3)

# Where an image forbids to keep bytecode, each process that we start would compile a thousand modules again: 5 s instead of 2.
export PYTHONDONTWRITEBYTECODE :=

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  (variables: PORT=, ARGS=, PYTHON=, MIN_FREE_GB=, of chaos SEED=, ROUNDS=, DOCUMENTS=, of bench CORPUS=, VERBS=)'

setup: $(STAMP) ## Create or refresh .venv from requirements.lock (instant when nothing changed)
	@:

# The stamp is touched last, so an interrupted set-up runs again. uv is taken from PATH, or put into the venv;
# `uv pip sync` keeps a uv that lives in a venv made by python -m venv.
$(STAMP): requirements.lock pyproject.toml
	@set -eu; \
	fail() { echo "make: $$*" >&2; exit 1; }; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	  python=; \
	  for name in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	    if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then python=$$name; break; fi; \
	  done; \
	  [ -n "$$python" ] || fail "needs Python 3.11, 3.12 or 3.13: install one (Debian: apt install python3 python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; \
	  free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); \
	  [ "$$free" -ge $(MIN_FREE_GB) ] || fail "a first set-up takes up to $(MIN_FREE_GB) GB and $$free GB are free here: free some space, or skip this check with MIN_FREE_GB=0"; \
	  command -v uv >/dev/null 2>&1 || "$$python" -c 'import venv, ensurepip' 2>/dev/null \
	    || fail "$$python lacks the venv module: apt install python3-venv (or install uv), then run make again"; \
	  echo "Setting up $(VENV) with $$("$$python" --version) (once; a few minutes where nothing is cached)"; \
	  rm -rf $(VENV); \
	  if command -v uv >/dev/null 2>&1; then uv venv --quiet --python "$$("$$python" -c 'import sys; print(sys.executable)')" $(VENV); \
	  else "$$python" -m venv $(VENV); fi; \
	fi; \
	if command -v uv >/dev/null 2>&1; then uv=uv; else \
	  uv=$(BIN)/uv; [ -x $$uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7,<1'; \
	fi; \
	if $$uv pip sync --python $(BIN)/python --require-hashes requirements.lock \
	  && $$uv pip install --quiet --python $(BIN)/python --no-deps --editable .; then touch $@; else \
	  fail "set-up stopped with $$(df -Ph . | awk 'NR == 2 { print $$4 }') free here: mend what the lines above say, then run make again; it resumes"; \
	fi

run: setup ## Start the service, ingest data/samples, answer a first question, serve until Ctrl-C
	@exec $(BIN)/footnote serve --demo $(if $(PORT),--port $(PORT)) $(ARGS)

test: setup ## Run the whole suite (ARGS= goes to pytest)
	@exec $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# Combinations and faults are chosen by name: make chaos ARGS="-k 'redis and postgres and worker'"
chaos: setup ## Break an installation at random, many times, and count what was lost (SEED=, ROUNDS=, DOCUMENTS=)
	@FOOTNOTE_TEST_CHAOS_SEED=$(SEED) FOOTNOTE_TEST_CHAOS_ROUNDS=$(ROUNDS) FOOTNOTE_TEST_CHAOS_DOCUMENTS=$(DOCUMENTS) \
	  FOOTNOTE_TEST_CHAOS_REPORT=$(abspath chaos.tsv) $(BIN)/python -m pytest tests/chaos tests/contracts/test_weaviate_cluster.py $(ARGS)

# SciFact in the BEIR layout: corpus.jsonl and queries.jsonl. Some 20 minutes; VERBS="embed ingest query start streams scale" measures all.
bench: setup ## Measure ours and the peers side by side, and write docs/benchmarks.md (CORPUS=, VERBS=, ARGS=)
	@[ -n "$(CORPUS)" ] || { echo 'make: say where SciFact is: make bench CORPUS=/path/to/scifact' >&2; exit 1; }
	$(BIN)/python benchmarks/bench.py $(VERBS) report --corpus $(CORPUS) $(ARGS)

check: setup ## Format, lint, types and import contracts, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup ## Format and fix what ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# No header and no index lines: the lock is the same whichever mirror resolved it. It keeps the pins that still fit;
# `make lock ARGS=--upgrade` takes the newest.
lock: ## Rewrite requirements.lock from pyproject.toml (ARGS=--upgrade for the newest)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	$$uv pip compile --quiet --universal --generate-hashes --no-header \
	  --python-version 3.11 --extra dev $(ARGS) --output-file requirements.lock pyproject.toml

clean: ## Remove .venv and the caches; data/var, which holds your documents, stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find app ingest retrieval prompts tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
