# README's two commands: `make rehearsal` and `make test`. They share one .venv and are quick the second time.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Run, not only found: a version manager's shim may stand for a Python that is not installed.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.10 python3,$(shell $(p) -c 'print("$(p)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
# The tests start hundreds of interpreters; where the environment forbids it, each would compile the suite anew.
unexport PYTHONDONTWRITEBYTECODE
RUN := $(shell date -u +%Y%m%d-%H%M%S)

.PHONY: help rehearsal test lint bench wheelhouse clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 found; install Python 3.10 to 3.13."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    rm -rf $(VENV); apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); \
	  else rm -rf $(VENV); echo "python3 -m venv failed; install the package python3-venv."; exit 1; fi; }

# One stamp per set of extras; a changed pyproject.toml installs again.
$(VENV)/.rehearsal: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) (about a minute the first time; torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rehearsal]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.rehearsal
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rehearsal,dev]'
	@touch $@

rehearsal: $(VENV)/.rehearsal ## train a tiny LLaMA2 through InternEvo on the CPU, judge it, sign the report
	@$(BIN)/python -m pytest suites/perf -m tiny -q --run-dir reports/$(RUN)-tiny-perf
	@$(BIN)/conformance bundle reports/$(RUN)-tiny-perf -o reports/$(RUN)-tiny-perf.tar
	@$(BIN)/conformance verify reports/$(RUN)-tiny-perf.tar
	@echo "report: reports/$(RUN)-tiny-perf/report.html"

# What some tests need beyond Python: a real Slurm cluster, network namespaces, a browser. Without them these tests skip.
PACKAGES := slurm-wlm munge iproute2 chromium openssl git
$(VENV)/.packages: $(VENV)/.rehearsal
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing for the tests: $(PACKAGES)"; \
	  (export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PACKAGES)) >$(VENV)/packages.log 2>&1 \
	  || echo "Some packages are missing (see $(VENV)/packages.log); the tests that need them skip."; \
	fi
	@touch $@

test: lint $(VENV)/.packages ## the suite's own tests
	@$(BIN)/python -m pytest suites/selftest -q -rs -n 2 --dist worksteal -m "not long"

lint: $(VENV)/.dev ## ruff, strict mypy, and the one direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

# A benchmark ends with 0, 3 (below its bar) or 4 (needs a device that is not here); with anything else it broke.
bench: $(VENV)/.dev ## run the benchmarks that this machine can, each beside its baseline; the documents name their options
	@for script in suites/selftest/benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python $$script; code=$$?; \
	  case $$code in 0|3|4) ;; *) echo "$$script broke."; exit $$code;; esac; done

# EXTRAS=data,rehearsal also gathers torch and InternEvo 0.2.2 for a rehearsal there; INTERNEVO names a mirror or a clone
# in place of GitHub, and empty leaves InternEvo out.
EXTRAS ?= data
INTERNEVO ?= https://github.com/InternLM/InternEvo
TAGS := v0.2.3dev20240201 v0.3.1dev20240229
wheelhouse: | $(BIN)/python ## gather in wheelhouse/ what a site without a network installs (docs/vendor.md)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir wheelhouse '.[$(EXTRAS)]'
	@test -z "$(INTERNEVO)" || { clone=$$(mktemp -d) && trap 'rm -rf "$$clone"' EXIT \
	  && git clone --quiet --bare -- "$(INTERNEVO)" "$$clone" \
	  && git --git-dir="$$clone" bundle create --quiet wheelhouse/InternEvo.bundle $(TAGS); } || { \
	  echo "The wheels are gathered, InternEvo is not: $(INTERNEVO) could not be cloned or lacks a tag of $(TAGS)."; \
	  echo "Name a mirror or a clone with INTERNEVO=PATH, or leave it out with INTERNEVO= ."; exit 1; }
	@echo "There: pip install --no-index --find-links wheelhouse 'internevo-conformance[$(EXTRAS)]'"
	@test -z "$(INTERNEVO)" || echo "       conformance internevo get --from wheelhouse/InternEvo.bundle"

clean: ## remove the venv and caches; reports stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
