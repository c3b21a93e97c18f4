# Each target sets up .venv first; from the second call on that costs a second. Another interpreter: make PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 > /dev/null && python3.11 -c '' 2> /dev/null && echo python3.11 || echo python3)
RUN_DIR ?= runs/demo
# For the second pair, Python 3.12 with Megatron-Core 0.19; empty where there is none.
SECOND_PYTHON ?= $(shell for python in python3.12 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12*/bin/python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2> /dev/null && echo $$python && break; done)
# What setting it up takes at most, with pip's downloads and cache; 5 GB of it stay.
SECOND_GB ?= 12
# The representative part for CI; SECOND_TESTS=tests/distributed for all of those. Tests of one process come last: they leave
# behind groups of ranks, whose threads cost what others then wait for.
SECOND_TESTS ?= tests/distributed/test_layouts.py tests/convert/test_megatron.py tests/unit/test_mcore_*.py

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGES := $(VENV)/.packages
BUILT := $(VENV)/.built

.PHONY: help setup demo test test-second-pair second-tests test-long bench clean

help:
	@echo 'make demo       the whole experiment at small size, into $(RUN_DIR) (RUN_DIR=... for elsewhere)'
	@echo 'make test       the tests'
	@echo 'make test-second-pair  those of Megatron on Python 3.12 with Megatron-Core 0.19, in .venv312'
	@echo 'make test-long  the long campaigns'
	@echo 'make bench      the benchmarks; figures are kept in benchmarks/results'
	@echo 'make clean      remove .venv and what was built; runs/ stays'

setup: $(BUILT)

$(PACKAGES): $(wildcard requirements/*)
	@requirements/check_system.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
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

test-second-pair:
ifeq ($(SECOND_PYTHON),)
	@echo 'second pair: SKIPPED, there is no Python 3.12 on this machine (make test-second-pair SECOND_PYTHON=...)'
else
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1048576)}'); \
	if [ ! -e .venv312/.packages ] && [ "$$free" -lt $(SECOND_GB) ]; then \
		echo "second pair: SKIPPED, $$free GB are free on this disk; setting up .venv312 takes up to $(SECOND_GB) GB" \
			'(make test-second-pair SECOND_GB=... if you know better)'; exit; \
	fi; \
	second='$(MAKE) --no-print-directory VENV=.venv312 PYTHON=$(SECOND_PYTHON)'; \
	$$second setup || { echo 'second pair: FAILED, nothing was tested: .venv312 could not be set up for' \
		'$(SECOND_PYTHON), for the reason above. Cure it, or remove .venv312, and start again.' >&2; exit 1; }; \
	$$second second-tests
endif

second-tests: $(BUILT)
	$(BIN)/python -m pytest -q -m 'not long' $(SECOND_TESTS)

test-long: $(BUILT)
	$(BIN)/python -m pytest -q -m long

bench: $(BUILT)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf .venv .venv312 build *.egg-info megatron_nca/*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
