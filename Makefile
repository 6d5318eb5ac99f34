# Everything runs in .venv, which is made on first use and again when setup.py or constraints.txt change. torch comes
# with it, so the native operator is compiled after it. llava-torch asks for torch 2.0 and transformers 4.36, but its
# models run on current ones; tests patch them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check clean

# make demo                 draw a clip, compose it, evaluate a tiny checkpoint
# make demo VIDEO=path.mp4  the same with your own file
demo: $(READY)
	$(BIN)/dynimg demo $(if $(VIDEO),"$(VIDEO)")

test: $(READY)
	$(BIN)/python -m pytest

# What make test does not look at: style and types.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): setup.py pyproject.toml constraints.txt $(wildcard dynimg_plugin/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -c constraints.txt --no-deps llava-torch
	$(BIN)/dynimg build-ext
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo_out
