# On a fresh machine, two commands do everything: `make study` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EARS := .ears
OUT ?= runs
# Number of neutral test prompts in the evidence, with four seeds each.
TEST_PROMPTS ?= 24
# How long `make fuzz` runs, and its seed. Shells have a variable SECONDS of their own, so only the command line sets it.
SECONDS_ := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),600)
SEED ?= 0
# torch is installed first, by itself: a machine that provides its own build (CPU only, or for its GPU) installs that
# one, and the other packages are then resolved to fit it.
TORCH := $(shell grep '^torch==' constraints.txt)
# Where a browser is on macOS, which has none on its path.
MAC_CHROME := '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome'
# The interpreters to try, in order; `make PYTHON=/path/to/python study` uses that one instead.
PYTHON ?= python3.11 python3.12 python3.13 python3

# One thread per process: work is spread over processes, and threads beyond the number of cores only wait.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help install study test docs fuzz drive browser lint format evidence claims ears agreement notebooks versions clean

help:
	@echo 'make study     install, steer tempo and timbre on the bundled model, and write $(OUT)/index.html'
	@echo 'make test      install, then run ruff, pyright and pytest'
	@echo 'make docs      build the documentation as a site in build/site (LINKS=1 also tries every link to elsewhere)'
	@echo 'make fuzz      read damaged and malicious files with every loader for SECONDS (default 600)'
	@echo 'make notebooks run the notebooks from top to bottom and save their outputs'
	@echo 'make evidence  measure the tables in docs/evidence.md and the model card (no time limit)'
	@echo 'make claims    measure every claim on MODELS (such as etude,etude-2=folder; FULL=1 takes hours per model)'
	@echo 'make ears      install third-party models in $(EARS), apart from audiolens; with WAVS=folder, measure its WAV files'
	@echo 'make agreement  compare the measures with those models (UPDATE=1 writes docs/ears.md)'
	@echo 'make versions  run the exact tests on the lowest, pinned and newest versions of the dependencies'
	@echo 'make drive     call every public name with wrong arguments, CALLS times, drawn by SEED (default 10000, 0): no foreign error'
	@echo 'make lint      run ruff and pyright only'
	@echo 'make format    format the code with ruff'
	@echo 'make clean     remove the environment, caches and builds (results in $(OUT)/ stay)'
	@echo
	@echo 'Options: PYTHON=... (3.11 or newer), OUT=... (where studies are written, default runs), FORCE=1 (repeat finished'
	@echo 'studies), TEST_PROMPTS=... (for evidence, default 24), UPDATE=1 (write tables into the documentation)'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@python=''; for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "audiolens needs Python 3.11 or newer; tried: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "==> Creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV) || { echo "Could not create $(VENV): is the venv module installed (Debian: apt install python3-venv)?" >&2; exit 1; }; \
	fi
	@echo '==> Installing $(TORCH) (the largest download, once)'
	@$(BIN)/python -m pip install --quiet '$(TORCH)'
	@echo '==> Installing audiolens and its tools at the versions in constraints.txt'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

study: $(STAMP)
	@for concept in tempo timbre; do \
	  if [ -z '$(FORCE)' ] && [ -f $(OUT)/$$concept/summary.json ]; then \
	    echo "==> $$concept is already done, in $(OUT)/$$concept; 'make study FORCE=1' repeats and replaces it"; \
	    continue; \
	  fi; \
	  echo "==> Steering $$concept on étude"; \
	  $(if $(FORCE),rm -rf $(OUT)/$$concept/stages;) \
	  $(BIN)/audiolens study $$concept --out $(OUT)/$$concept$(if $(FORCE), --force); \
	done
	@$(BIN)/audiolens report $(OUT) --index
	@echo '==> Results: open $(OUT)/index.html in a browser'

lint: $(STAMP)
	@echo '==> ruff'
	@$(BIN)/ruff check .
	@echo '==> pyright'
	@$(BIN)/pyright

# The tests of the page open it in a browser. Without one they say so; in CI, Chromium is installed. Each process gets
# whole files as far as possible, so that what the tests of a file share is made once.
test: lint $(if $(CI),browser)
	@echo '==> pytest'
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

# Every warning is an error. The pages need no network, and open without a server.
docs: $(VENV)/.docs
	@echo '==> Building the documentation'
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto --conf-dir docs/site \
	  --doctree-dir build/doctrees $(if $(LINKS),--builder linkcheck) . build/$(if $(LINKS),links,site)
	@echo '==> $(if $(LINKS),Links: build/links/output.txt,Open build/site/index.html in a browser)'

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

browser:
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome || command -v $(MAC_CHROME); } >/dev/null; then \
	  echo '==> Installing Chromium, in which the tests open the pages'; \
	  sudo=''; if [ "$$(id -u)" != 0 ]; then sudo='sudo -n'; fi; \
	  { $$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >$(VENV)/browser.log 2>&1 \
	    || { tail -n 5 $(VENV)/browser.log >&2; echo 'Could not install Chromium with apt-get: install it or Chrome by hand.' >&2; exit 1; }; \
	fi

fuzz: $(STAMP)
	@HF_HUB_OFFLINE=1 PYTHONPATH=.:tests:benchmarks $(BIN)/python -m hostile.fuzz --seconds $(SECONDS_) --seed $(SEED)

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

evidence: $(STAMP)
	@echo '==> Measuring the evidence; this takes a while'
	@$(BIN)/python benchmarks/evidence.py --out $(OUT)/evidence --test $(TEST_PROMPTS)$(if $(UPDATE), --update)
	@echo '==> Tables: $(OUT)/evidence'

claims: $(STAMP)
	@$(BIN)/python benchmarks/claims.py --out $(OUT)/claims --models '$(MODELS)'$(if $(FULL), --full)$(if $(UPDATE), --update)

# An environment apart, so that neither its pins nor its licences touch audiolens: madmom's models are not for commercial use.
ears: $(EARS)/.installed
	@if [ -n '$(WAVS)' ]; then $(EARS)/bin/python benchmarks/ears/hear.py '$(WAVS)'; else \
	  echo "==> $(EARS) is ready: make ears WAVS=folder measures a folder of WAV files"; \
	fi

$(EARS)/.installed: benchmarks/ears/requirements.txt | $(STAMP)
	@echo '==> Installing the models of others in $(EARS)'
	@$(BIN)/python -m venv --clear $(EARS)
	@$(EARS)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

agreement: $(STAMP) $(EARS)/.installed
	@PYTHONPATH=.:benchmarks $(BIN)/python -m ears.compare --out $(OUT)/ears$(if $(UPDATE), --update)

notebooks: $(STAMP)
	@echo '==> Running the notebooks'
	@HF_HUB_OFFLINE=1 $(BIN)/python notebooks/execute.py

versions: $(STAMP)
	@echo '==> Testing the lowest, pinned and newest versions'
	@$(BIN)/python benchmarks/versions.py

drive: $(STAMP)
	@echo '==> Calling every public name with wrong arguments'
	@HF_HUB_OFFLINE=1 PYTHONPATH=.:tests $(BIN)/python -m hostile.drive --calls $(or $(CALLS),10000) --seed $(or $(SEED),0)

clean:
	rm -rf $(VENV) $(EARS) .venv-versions build dist docs/reference .pytest_cache .ruff_cache
	find audiolens analysis tests benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
