# make demo   the whole idea in some minutes: two stages on synthetic speech; CORPORA=DIR uses real corpora there
# make test   lint, type check and every test
# make test-releases   the model's tests on several releases of transformers, and how far their logits differ; SLOW=1
#                      adds the slow ones
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

# Each file has the pins of one release of transformers; constraints.txt has those of everything else.
RELEASES := $(patsubst tests/releases/%.txt,%,$(wildcard tests/releases/*.txt))
# What needs no extra: the model and its loading.
RELEASE_TESTS := $(wildcard tests/test_model*.py tests/test_convert.py tests/test_audio.py tests/test_published.py \
	tests/test_pipeline.py tests/test_users_scripts.py)
SLOW ?=
RELEASE_PYTHON = env HF_HOME="$(CURDIR)/.releases/$*/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	PYTHONDONTWRITEBYTECODE= .releases/$*/bin/python

.PHONY: demo test test-releases $(RELEASES:%=test-%) lint types clean

demo: $(READY)
	$(BIN)/python demo/run.py $(DEMO_OPTIONS)

# A process for each core, as the tests' models are too small for more threads; the order keeps the longest files early.
test: lint types
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# Two releases at a time. One that fails holds up no other, and the table is printed all the same.
test-releases: .releases/.wheel
	rm -f .releases/*/tests.xml
	failed=0; \
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(RELEASES:%=test-%) || failed=1; \
	$(BIN)/python tests/release_logits.py $(RELEASES:%=.releases/%) && exit $$failed

$(RELEASES:%=test-%): test-%: .releases/%/.ready
	$(RELEASE_PYTHON) -m pytest -q $(if $(SLOW),,-m "not slow") -p no:cacheprovider --junitxml=.releases/$*/tests.xml \
		tests/release_logits.py $(RELEASE_TESTS)

# Compiling all of torch and transformers takes twice as long as installing them: what is imported is compiled then.
.releases/%/.ready: tests/releases/%.txt .releases/.wheel
	$(PYTHON) -m venv --clear .releases/$*
	awk -F== 'NR == FNR { own[$$1]; next } !($$1 in own)' $< constraints.txt > .releases/$*/constraints.txt
	.releases/$*/bin/python -m pip install --disable-pip-version-check --quiet --no-compile \
		--constraint .releases/$*/constraints.txt --requirement $< transformers==$* pytest .releases/*.whl
	touch $@

# One editable wheel for all releases: pip would build it once for each, all in this folder at the same time.
.releases/.wheel: $(READY)
	mkdir -p .releases && rm -f .releases/*.whl
	$(BIN)/python -c "from setuptools.build_meta import build_editable; build_editable('.releases')" \
		> .releases/wheel.log 2>&1 || { cat .releases/wheel.log; exit 1; }
	touch $@

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
	rm -rf $(VENV) .releases build dist *.egg-info
