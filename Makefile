# Everything runs in .venv, which is made on first use and again when setup.py or constraints.txt change. torch comes
# with it, so the native operator is compiled after it. llava-torch asks for torch 2.0 and transformers 4.36, but its
# models run on current ones; tests patch them.
PYTHON ?= python3
INSTALL := install --no-compile# Python compiles what is imported, once; all of it would take two minutes
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The lower end of the ranges: a venv that sees the packages of .venv, with the older ones on top. torch comes from there.
OLDEST := .venv-oldest
OLDEST_READY := $(OLDEST)/.ready
OLDEST_NAMES := families day_zero rope attention loading original suggest processing places
OLDEST_TESTS := $(foreach name,$(OLDEST_NAMES),tests/test_$(name).py)

# Each worker is a process with one torch thread and up to 2 GB; `pytest` alone runs the same tests one by one.
PARALLEL := -n 2 --dist worksteal

# Else every process would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-oldest oldest check clean

# make demo                 draw a clip, compose it, ask the small trained models about it, score them
# make demo VIDEO=path.mp4  the same with your own file
demo: $(READY)
	$(BIN)/dynimg demo $(if $(VIDEO),"$(VIDEO)")

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

# make oldest                          installs the environment of the next two
# make test-oldest                     the families' part of the tests with the oldest transformers that we take
# make test-oldest ARGS="-m oldest"    its quick part, which CI runs
oldest: $(OLDEST_READY)

test-oldest: oldest
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(OLDEST_TESTS) $(ARGS)

# What make test does not look at: style and types.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): setup.py pyproject.toml constraints.txt $(wildcard dynimg_plugin/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(INSTALL) -c constraints.txt -e ".[dev]"
	$(BIN)/pip $(INSTALL) -c constraints.txt --no-deps llava-torch
	$(BIN)/dynimg build-ext
	touch $@

$(OLDEST_READY): constraints-oldest.txt $(READY)
	$(BIN)/python -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -c "import sysconfig as s; print(s.get_path('purelib'))" > $(OLDEST)/.packages
	$(BIN)/python -c "import sysconfig as s; print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
		> "$$(cat $(OLDEST)/.packages)/newest.pth"
	$(OLDEST)/bin/pip $(INSTALL) -r constraints-oldest.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info demo_out
