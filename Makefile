# Each target sets up .venv first; from the second call on that costs a second. Another interpreter: make PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 > /dev/null && python3.11 -c '' 2> /dev/null && echo python3.11 || echo python3)
RUN_DIR ?= runs/demo

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGES := .venv/.packages
BUILT := .venv/.built

.PHONY: help setup demo test test-long bench clean

help:
	@echo 'make demo       the whole experiment at small size, into $(RUN_DIR) (RUN_DIR=... for elsewhere)'
	@echo 'make test       the tests'
	@echo 'make test-long  the long campaigns'
	@echo 'make bench      the benchmarks; figures are kept in benchmarks/results'
	@echo 'make clean      remove .venv and what was built; runs/ stays'

setup: $(BUILT)

$(PACKAGES): $(wildcard requirements/*)
	@requirements/check_system.sh $(PYTHON)
	$(PYTHON) -m venv .venv
	version=$$($(BIN)/python -c 'import sys; print("py312" if sys.version_info >= (3, 12) else "py311")') && \
	$(PIP) install -q -r requirements/base-$$version.txt \
		-r requirements/dev.txt -r requirements/deepspeed.txt
	@touch $@

$(BUILT): $(PACKAGES) setup.py pyproject.toml $(wildcard csrc/*)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

demo: $(BUILT)
	$(BIN)/megatron-nca run launch/recipes/demo.yaml --run-dir $(RUN_DIR)
	@echo 'report: $(RUN_DIR)/report/report.md, curves: $(RUN_DIR)/report/curves.png'
	@sed -n '/^## Result/,$$ s/^- //p' $(RUN_DIR)/report/report.md

test: $(BUILT)
	$(BIN)/python -m pytest -q -m 'not long'

test-long: $(BUILT)
	$(BIN)/python -m pytest -q -m long

bench: $(BUILT)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf .venv build *.egg-info megatron_nca/*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
