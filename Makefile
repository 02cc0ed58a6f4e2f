# `make demo` and `make test` are all the set-up there is: each makes .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lab app setup lint clean-venv

demo: setup
	$(BIN)/python MainScripts/demo.py

# one thread a process: with more, the processes fight for the cores
test: setup $(VENV)/.test-ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lab: setup
	cd MainScripts && ../$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root)

# without the pins: Gradio asks for an older Pillow than they name
app: setup
	$(BIN)/python -c "import gradio" 2>/dev/null || $(BIN)/python -m pip install --quiet "gradio>=6"
	$(BIN)/python MainScripts/app.py --browser

setup: $(VENV)/.ready

lint: $(VENV)/.test-ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/nbstripout MainScripts/*.ipynb

$(VENV)/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/.test-ready: tests/requirements.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -r tests/requirements.txt
	touch $@

clean-venv:
	rm -rf $(VENV)
