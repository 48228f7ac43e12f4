# Each target makes .venv first if it is missing. Options: PYTHON=python3.12, PIP_ARGS="--index-url ...",
# JOBS=4 (of test), NOTEBOOK=notebooks/01_images.ipynb (of demo and lab), PORT=8866 (of studio).
PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= logical
NOTEBOOK ?= notebooks/00_start_here.ipynb
PORT ?= 8866
STAMP := .venv/.stamp
DOCS_STAMP := .venv/.docs
BIN := .venv/bin
TESTS := $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Waiting threads spin shortly, then give their core away. Endless spinning (the default) makes training
# ten times slower beside one other busy process; no spinning (OMP_WAIT_POLICY=PASSIVE) makes it 1.6 times
# slower on a quiet machine.
export GOMP_SPINCOUNT ?= 1000

.PHONY: setup demo test coverage attack lint docs lab studio
.DEFAULT_GOAL := setup

setup: $(STAMP)  ## make .venv and install everything at the tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and $(PYTHON) is \
	$$($(PYTHON) --version 2>&1); name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make virtual environments; \
	on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[notebooks,evaluation,cluster,dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## the main job: train, sample and score at preset tiny
	$(BIN)/python -m maetok_lab run $(NOTEBOOK)

test: $(STAMP)  ## all tests but the slow ones; no network, no GPU
	$(TESTS)

coverage: $(STAMP)  ## the same tests, and the share of the library's lines that they run
	$(TESTS) --cov

attack: $(STAMP)  ## half an hour of kills, full disks, damaged files, second writers, crowds: all must survive
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/attack -q

lint: $(STAMP)  ## style and layout of all Python, the notebooks included
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

docs: $(DOCS_STAMP)  ## the site, into site/ (open site/index.html); it needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html is the page to open"

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	@touch $(DOCS_STAMP)

lab: $(STAMP)  ## JupyterLab on this machine only, behind a token
	$(BIN)/python -m jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. \
	--LabApp.default_url=/lab/tree/$(NOTEBOOK) $(if $(filter 0,$(shell id -u)),--allow-root)

studio: $(STAMP)  ## the mask demo as a web page, for a few visitors at once, at the address that is printed
	$(BIN)/python -m maetok_lab studio notebooks/mask_demo.ipynb --port $(PORT)
