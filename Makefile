# Everything that these targets install lives in .venv of the checkout.
# PYTHON picks the interpreter that makes it; ARGS goes to the tool that a target runs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-engines check docs bench clean

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
DEBIAN := .venv/debian
export PATH := $(CURDIR)/$(DEBIAN)/usr/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed ## Run the demo (ARGS="--seed 3 --seconds 60").
	@$(BIN)/kvmon demo $(ARGS)

test: .venv/.installed .venv/.tools .venv/.npm .venv/.guidellm ## Run the tests (ARGS="-m 'not slow'" for the short ones).
	@$(BIN)/python -m pytest -n 2 --dist worksteal --durations 15 $(ARGS)

# Against engines as they are published: vLLM in an environment of its own, with the transformers that it wants, and the
# newest transformers in that of the other tests. Two versions of numba would throw away each other's machine code.
test-engines: .venv/.installed .venv-engines/.installed ## Run the tests against real engines.
	@NUMBA_CACHE_DIR=$(CURDIR)/.venv-engines/numba .venv-engines/bin/python -m pytest -n 2 --dist worksteal --durations 10 $(ARGS) $(wildcard tests/engines/test_vllm*.py)
	@$(BIN)/python -m pytest -n 2 --dist worksteal --durations 5 $(ARGS) $(wildcard tests/engines/test_transformers*.py)

check: .venv/.installed ## Check format, lint, types and that generated files are up to date.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@diff -u docs/metrics.md <($(BIN)/kvmon metrics --markdown) \
	  || { echo "docs/metrics.md is out of date: run 'make docs' and commit it" >&2; exit 1; }
	@diff -u docs/scenarios.md <($(BIN)/python docs/generate.py --scenarios) \
	  || { echo "docs/scenarios.md is out of date: run 'make docs' and commit it" >&2; exit 1; }
	@diff -u docs/engines.md <($(BIN)/python docs/generate.py --engines) \
	  || { echo "docs/engines.md is out of date: run 'make docs' and commit it" >&2; exit 1; }
	@diff -u docs/export.md <($(BIN)/python docs/export_columns.py) \
	  || { echo "docs/export.md is out of date: run 'make docs' and commit it" >&2; exit 1; }
	@$(BIN)/python -m dashboards.source --check

docs: .venv/.installed ## Write the generated pages anew (ten minutes).
	@$(BIN)/kvmon metrics --markdown > docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md
	@$(BIN)/python docs/generate.py --scenarios > docs/scenarios.md.new && mv docs/scenarios.md.new docs/scenarios.md
	@$(BIN)/python docs/generate.py --engines > docs/engines.md.new && mv docs/engines.md.new docs/engines.md
	@$(BIN)/python docs/export_columns.py > docs/export.md.new && mv docs/export.md.new docs/export.md
	@$(BIN)/python docs/generate.py --figure2 > docs/figure.new && mv docs/figure.new docs/paged-vs-standard.svg
	@$(BIN)/python -m dashboards.source
	@mkdir -p docs/verdicts
	@for name in $$($(BIN)/kvmon explain | cut -d ' ' -f 1); do \
	  $(BIN)/python docs/generate.py --verdict $$name > docs/verdicts/$$name.md; done
	@for name in $$($(BIN)/python docs/lessons.py --list); do for what in page:md picture:svg; do \
	  $(BIN)/python docs/lessons.py --$${what%:*} $$name > docs/lessons/new && mv docs/lessons/new docs/lessons/$$name.$${what#*:}; \
	  done; done; $(BIN)/python docs/lessons.py --index > docs/lessons/README.md
	@$(BIN)/kvmon alerts -o alerts --force > /dev/null
	@$(BIN)/kvmon alerts -o deploy/kubernetes/monitoring --format prometheusrule --force > /dev/null
	@$(BIN)/python docs/generate.py --confusion > docs/confusion.new && mv docs/confusion.new docs/verdicts/README.md

bench: .venv/.installed .venv/.peers ## Run the benchmarks and print their table (ARGS="probe fold" for some of them).
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean: ## Remove .venv and everything else that the other targets made.
	@rm -rf .venv .venv-engines .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@[ -x $(BIN)/pip ] || { rm -rf .venv; $(call make_venv,.venv); }
	@# torch first: what depends on it would otherwise choose one with CUDA.
	@$(BIN)/pip install --quiet --constraint constraints.txt torch
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# Without what they ask for: one wants Kerberos headers to build a file of JSON, the other nothing that is used here.
	@$(BIN)/pip install --quiet --no-deps grafana-dashboard-builder==0.10.0a3 grafana-foundation-sdk==0.0.21
	@touch $@

# torch first, and what the engine brings for CUDA goes again: it breaks the import of a build for CPUs. kvmon comes last
# and must find everything as it is. Where a wheel cannot be had this fails, and says which.
ENGINES := .venv-engines/bin/python -m pip
.venv-engines/.installed: pyproject.toml tests/engines/requirements.txt tests/engines/sources.py
	@[ -x .venv-engines/bin/pip ] || { rm -rf .venv-engines; $(call make_venv,.venv-engines); }
	@$(ENGINES) install --quiet torch==2.13.0
	@$(ENGINES) install --quiet torch==2.13.0 --requirement tests/engines/requirements.txt
	@$(ENGINES) uninstall --quiet --yes torchvision torchaudio torchcodec 2> /dev/null
	@$(ENGINES) freeze > .venv-engines/without-kvmon.txt
	@$(ENGINES) install --quiet --editable .
	@.venv-engines/bin/python -m tests.engines.sources .venv-engines/sources
	@touch $@

# What `make bench` measures beside kvmon, in an environment of its own. Without it those rows say that it is missing.
.venv/.peers: .venv/.installed tests/benchmarks/peers.txt
	@{ [ -x .venv/peers/bin/pip ] || $(BIN)/virtualenv --quiet .venv/peers; } \
	  && .venv/peers/bin/pip install --quiet --requirement tests/benchmarks/peers.txt && touch $@ \
	  || echo "kvmon: tests/benchmarks/peers.txt cannot be installed here; the rows of the peers will say so" >&2

# A public load generator for the tests of the server, in an environment of its own that sees the packages of .venv: alone
# it would bring another torch. Without it the test skips and says how to get it, and fails where CI is set.
.venv/.guidellm: .venv/.installed
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  { [ -x .venv/guidellm/bin/pip ] || $(BIN)/virtualenv --quiet .venv/guidellm; } \
	  && $(BIN)/python -c "$$purelib" > "$$(.venv/guidellm/bin/python -c "$$purelib")/kvmon.pth" \
	  && .venv/guidellm/bin/pip install --quiet guidellm==0.8.1 && touch $@ \
	  || echo "kvmon: guidellm cannot be installed here; its test will say so" >&2

# Debian ships the venv module without what fills it; that is a package of its own.
define make_venv
if $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null; then $(PYTHON) -m venv $(1); \
elif command -v virtualenv > /dev/null; then virtualenv --quiet --python $(PYTHON) $(1); \
elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
  apt-get update -qq && apt-get install -y -qq python3-venv > /dev/null && $(PYTHON) -m venv $(1); \
else echo "kvmon: no way to make a virtual environment: run 'apt-get install python3-venv' and try again" >&2; exit 1; fi
endef

# Prometheus, promtool and Alertmanager run what we generate. Their packages are unpacked, not installed: no root, and no
# daemon starts. Chromium and npm need too many others for that and are installed where that is allowed. Without them the
# tests that need them skip and say how to get them.
.venv/.tools: .venv/.installed
	@if ! { command -v prometheus && command -v promtool && command -v prometheus-alertmanager; } > /dev/null \
	  && command -v apt-get > /dev/null; then \
	  mkdir -p $(DEBIAN)/download && cd $(DEBIAN)/download; \
	  get='apt-get download -qq prometheus prometheus-alertmanager'; \
	  if $$get 2> /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && $$get; }; \
	  then for package in *.deb; do dpkg-deb -x $$package ..; done; \
	  else echo "kvmon: prometheus cannot be downloaded here; its tests need" \
	    "'apt-get install prometheus prometheus-alertmanager'" >&2; fi; \
	fi
	@if ! { command -v chromium && command -v npm; } > /dev/null; then \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -qq \
	    && apt-get install -y -qq --no-install-recommends chromium npm; } > /dev/null \
	  || echo "kvmon: chromium and npm cannot be installed here; their tests need 'apt-get install chromium npm'" >&2; \
	fi
	@touch $@

# What draws and type-checks the dashboards. Without it those tests skip and say how to get it, and fail where CI is set.
.venv/.npm: tests/dashboards/package.json tests/dashboards/package-lock.json .venv/.tools
	@mkdir -p .venv/npm && cp tests/dashboards/package.json tests/dashboards/package-lock.json .venv/npm/ \
	  && (cd .venv/npm && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error > /dev/null) && touch $@ \
	  || echo "kvmon: Grafana's libraries cannot be installed here; their tests need 'apt-get install npm'" >&2
