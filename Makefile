# `make demo` and `make test` are all the set-up there is: each makes .venv first if it is not there.
# A target's comment after ## is what `make help` says of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test coverage lab app setup lint types help clean-venv

demo: setup  ## clips of the released model; then demo music, dataset, training, new music
	$(BIN)/python MainScripts/demo.py

# one thread a process: with more, the processes fight for the cores
test: setup $(VENV)/.test-ready  ## all tests, notebooks included
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

coverage: setup $(VENV)/.test-ready  ## which lines of Libraries the fast tests run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow" --cov=Libraries --cov-report=term-missing:skip-covered

lab: setup  ## JupyterLab in MainScripts
	cd MainScripts && ../$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)

# without the pins: Gradio asks for an older Pillow than they name
app: setup  ## the page in a browser
	$(BIN)/python -c "import gradio" 2>/dev/null || $(BIN)/python -m pip install --quiet "gradio>=6"
	$(BIN)/python MainScripts/app.py --browser

setup: $(VENV)/.ready  ## only make .venv with what the program needs

lint: $(VENV)/.test-ready types  ## format, check style and types, strip notebooks
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/nbstripout MainScripts/*.ipynb

types: $(VENV)/.test-ready  ## check the types of the core ([tool.mypy] in pyproject.toml)
	$(BIN)/mypy

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/.test-ready: tests/requirements.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -r tests/requirements.txt
	touch $@

clean-venv:  ## remove .venv
	rm -rf $(VENV)
