# Everything runs in .venv of this clone; the stamp file says which pyproject.toml it was made from.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ENV    := HF_HUB_OFFLINE=1
SRC    := src experiments tests docs benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format docs bench mini-data mini clean

help:           ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(STAMP) ## make .venv and install efface with everything needed for development

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## erase "church" from the embedded model by four methods and write a page about it
	$(ENV) $(BIN)/efface demo -o demo

test: $(STAMP)  ## run the tests (one torch thread per process: two spinning pools are slower than none)
	$(ENV) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-slow: $(STAMP) ## run the tests that take minutes
	$(ENV) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m slow

check: $(STAMP) docs ## formatting, lint, types, and that the documentation builds
	$(BIN)/ruff format --check $(SRC)
	$(BIN)/ruff check $(SRC)
	$(BIN)/basedpyright

format: $(STAMP) ## rewrite the files as the formatter and the linter want them
	$(BIN)/ruff format $(SRC)
	$(BIN)/ruff check --fix $(SRC)

docs: $(STAMP)  ## build the documentation into site/
	$(ENV) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP) ## run every benchmark of benchmarks/ and keep its record there
	@set -e; for file in benchmarks/[a-z]*.py; do echo "$$file"; $(ENV) PYTHONPATH=. $(BIN)/python "$$file"; done

mini-data: $(STAMP) ## fetch and rasterise the artwork that the embedded model learns from
	$(BIN)/python -m experiments.mini data

mini: $(STAMP)  ## train the embedded model and its judges again (hours; resumable)
	$(BIN)/python -m experiments.mini all

clean:          ## remove what make has made, except .venv
	rm -rf site demo dist build .pytest_cache .ruff_cache
	find src experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
