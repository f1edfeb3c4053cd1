# Everything runs in a virtual environment of its own; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-all lint clean

demo: $(READY)
	$(BIN)/openese demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" --durations=10

test-all: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .

# pip and its cache make a second run cheap; the stamp makes it free.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[test,compiler]" -c constraints.txt $(PIP_FLAGS)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
