# make engine   set up, build the shipped model's INT8 engine, show what it is worth
# make test     set up, pass the tests
# make one      set up, pass one file of them: make one TEST=tests/unit/graph/test_cost.py
# make docs     set up, build the documentation's site in runs/site/html
# make release  set up, make the files of a release in dist/
# All make and use .venv/; PYTHON chooses the interpreter (3.11 to 3.13).

# A name on the PATH may be a shim of pyenv without that version behind it, so each is tried.
PYTHON ?= $(shell for name in python3.12 python3.11 python3.13; do $$name -c '' 2>/dev/null && exec echo $$name; done; echo python3)
VENV := .venv
RUN := $(VENV)/bin/python
# Progress for a person, and no hundred lines in a log.
QUIET := $(shell test -t 2 || echo --quiet)
# For pip besides: --no-compile spares minutes where the environment is thrown away soon.
PIP_FLAGS ?=
OUTPUT ?= runs/quickstart

.PHONY: engine test one slow lint docs release clean

engine: $(VENV)/.engine
	@echo "building the INT8 engine of the shipped model into $(OUTPUT); this takes one to two minutes"
	@$(RUN) -m edge_effdet.build_engine --int8 --backend fastest --fall-back --output $(OUTPUT)

test: $(VENV)/.dev lint
	$(RUN) -m pytest

one: $(VENV)/.dev
	@test -n "$(TEST)" || { echo "no test is named; run make one TEST=tests/unit/graph/test_cost.py"; exit 2; }
	$(RUN) -m pytest -n 0 $(TEST)

slow: $(VENV)/.dev
	$(RUN) -m pytest -n 0 -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --project pyproject.toml
	$(VENV)/bin/lint-imports

docs: $(VENV)/.dev
	$(RUN) -m release.site

release: $(VENV)/.release
	$(RUN) -m release.make

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "edge_effdet builds on Python 3.11 to 3.13 and $(PYTHON) is another; run make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# What an engine is built with, and what the commands need that `make engine` ends with. No torch.
$(VENV)/.engine: EXTRAS = engine,benchmark,deploy,serve
$(VENV)/.engine: SIZE = 0.12 GB to download, 0.7 GB on the disk
$(VENV)/.dev: EXTRAS = dev
$(VENV)/.dev: SIZE = 3.7 GB to download, 8 GB on the disk, most of it torch's libraries for GPUs

$(VENV)/.release: EXTRAS = release
$(VENV)/.release: SIZE = 4 GB to download, 8 GB on the disk, those of the tests among them

$(VENV)/.engine $(VENV)/.dev $(VENV)/.release: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing packages into $(VENV): $(SIZE)"
	@$(RUN) -m pip install $(QUIET) $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) runs
