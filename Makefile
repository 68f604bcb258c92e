# make demo   the whole idea in some minutes: two stages on synthetic speech; CORPORA=DIR uses real corpora there
# make test   lint, type check and every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The demo's settings; see demo/run.py --help.
RUN ?= runs/demo
CORPORA ?=
LIMIT ?=
ROUNDS ?=
DEMO_OPTIONS = --run "$(RUN)" $(if $(CORPORA),--corpora "$(CORPORA)") $(if $(LIMIT),--limit $(LIMIT)) \
	$(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: demo test lint types clean

demo: $(READY)
	$(BIN)/python demo/run.py $(DEMO_OPTIONS)

test: lint types
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY)
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/exhubert
	$(BIN)/python -m mypy

# Made anew when what is installed changes; the mark is written last, so a broken installation is tried again.
$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt \
		--editable ".[train,demo,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info
