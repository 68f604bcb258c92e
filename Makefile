# make demo   the whole idea in some minutes: two stages on synthetic speech; CORPORA=DIR uses real corpora there
# make replicate         the paper's claims on four corpora or yours (CORPORA="DIR ..."), hours, resumable; DEVICE=cuda
# make replicate-report  its table, claims and pictures, of what is finished
# make test   lint, type check and every test but the heaviest
# make test-slow      the heaviest: kills and memory in their whole form
# make test-avx2      the numeric tests, held to what most laptops' processors can do
# make test-releases  the model's tests, and a training, on several releases of transformers, and how far their logits
#                     differ; SLOW=1 runs all on each, with the slow ones; `make release-environments` installs them
# make test-peers     transformers' own common tests on our classes, HuBERT's as the control
# make hashes         constraints-hashes.txt anew; HASHES=1 with any target installs what stands there, and nothing else
# make test-faults    damaged, lying and harmful files of every kind, and kills, full disks and deaths in every command,
#                     by SEED=0; the tests have a quick part
# make bench          what the model costs beside what its arithmetic costs, in runs/speed; bench-quick, the least of it
PYTHON ?= python3
# With HASHES=1 an environment of its own, of the very files whose SHA-256 stand in constraints-hashes.txt (but torch's).
HASHES ?=
VENV := $(if $(HASHES),.hashed,.venv)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The demo's settings; see demo/run.py --help.
RUN ?= $(if $(filter replicate%,$(MAKECMDGOALS)),runs/replication,runs/demo)
CORPORA ?=
LIMIT ?=
ROUNDS ?=
DEMO_OPTIONS = --run "$(RUN)" $(if $(CORPORA),--corpora "$(CORPORA)") $(if $(LIMIT),--limit $(LIMIT)) \
	$(if $(ROUNDS),--rounds $(ROUNDS))

# Those of `make replicate`; see replication/run.py --help.
WORKERS ?=
OPTIONS ?=

# A process for each core, as the tests' models are too small for more threads; conftest.py puts the longest files first.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile \
	--no-loadscope-reorder
# Those whose numbers depend on the processor's kernels.
NUMERIC_TESTS := $(patsubst %,tests/test_%.py,model model_modes model_precision model_inputs published \
	fast_path)

# Each file has what differs on one release of transformers from what `make test` runs with: torch and the rest are the
# same, in $(VENV).
RELEASES := $(patsubst tests/releases/%.txt,%,$(wildcard tests/releases/*.txt))
# The release that `make test` runs with, in $(VENV); only the logits are computed again on it.
PINNED := $(patsubst transformers==%,%,$(filter transformers==%,$(file < constraints.txt)))
# What leans on transformers: the model, what saves and loads it, its pipeline, users' scripts, a training with a resume.
RELEASE_TESTS := $(patsubst %,tests/test_%.py,model model_modes model_start model_inputs model_folder published \
	pipeline saved_by_others users_scripts training_releases fast_path)
# Of the releases between the first and the last, unless SLOW=1: loading and training.
BETWEEN := 5.0.0 5.10.4
BETWEEN_TESTS := $(patsubst %,tests/test_%.py,model model_folder saved_by_others training_releases)
SLOW ?=
# Of the benchmarks and of `make replicate`: cpu or cuda.
DEVICE ?= cpu
RELEASE_PYTHON = env HF_HOME="$(CURDIR)/.releases/$*/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	PYTHONDONTWRITEBYTECODE= $(if $(filter $(PINNED),$*),$(BIN),.releases/$*/bin)/python
RELEASE_ENVIRONMENTS := $(patsubst %,.releases/%/.ready,$(filter-out $(PINNED),$(RELEASES)))

.PHONY: demo test test-slow test-avx2 test-faults test-releases release-environments test-peers $(RELEASES:%=test-%) \
	bench bench-quick replicate replicate-report hashes lint types clean

demo: $(READY)
	$(BIN)/python demo/run.py $(DEMO_OPTIONS)

# It goes on where it was stopped.
replicate: $(READY)
	$(BIN)/python replication/run.py --run "$(RUN)" --device $(DEVICE) $(if $(CORPORA),--corpora $(CORPORA)) \
		$(if $(WORKERS),--workers $(WORKERS)) $(OPTIONS)

replicate-report: $(READY)
	$(BIN)/python replication/report.py "$(RUN)" $(OPTIONS)

test: lint types
	$(PYTEST) -m "not heavy"

test-slow: $(READY)
	$(PYTEST) -m heavy

test-avx2: $(READY)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -q -m "not slow and not heavy" $(NUMERIC_TESTS)

SEED ?= 0

# The clips are those of EXHUBERT_SHARED, where that is set, and else synthetic.
test-faults: $(READY)
	$(BIN)/python tests/faults/run.py --seed $(SEED)

# Two releases at a time. One that fails holds up no other, and the table is printed all the same.
test-releases: $(READY)
	rm -f .releases/*/tests.xml
	failed=0; \
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target \
		$(patsubst %,test-%,$(filter-out $(BETWEEN),$(RELEASES)) $(BETWEEN)) || failed=1; \
	$(BIN)/python tests/release_logits.py $(RELEASES:%=.releases/%) && exit $$failed

release-environments: $(RELEASE_ENVIRONMENTS)

.SECONDEXPANSION:
$(RELEASES:%=test-%): test-%: $$(if $$(filter $(PINNED),$$*),$(READY),.releases/$$*/.ready)
	mkdir -p .releases/$*
	$(RELEASE_PYTHON) -m pytest -q -m "not heavy$(if $(SLOW),, and not slow)" -p no:cacheprovider \
		--junitxml=.releases/$*/tests.xml tests/release_logits.py $(if $(filter $(PINNED),$*),,\
		$(if $(SLOW),$(RELEASE_TESTS),$(if $(filter $(BETWEEN),$*),$(BETWEEN_TESTS),$(RELEASE_TESTS))))

# An environment of its own whose packages come before those of $(VENV).
.releases/%/.ready: tests/releases/%.txt $(READY)
	$(PYTHON) -m venv --clear --without-pip .releases/$*
	own=$$(.releases/$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	shared=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	echo "import site; site.addsitedir('$$shared')" > "$$own/shared.pth" && \
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile --target "$$own" \
		--requirement $<
	touch $@

# From the package registry; where that fails the tests are skipped. Their markers are not ours.
PEERS := .peers/transformers-$(PINNED)

test-peers: $(READY)
	test -d $(PEERS) || { $(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps \
		--no-build-isolation --no-binary transformers --dest .peers "transformers==$(PINNED)" && \
		tar --extract --file $(PEERS).tar.gz --directory .peers && touch $(PEERS)/tests/__init__.py && \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target .peers/packages \
		parameterized; } || echo "transformers' source distribution could not be fetched"
	PYTHONPATH="$(PEERS):.peers/packages" $(PYTEST) --override-ini addopts=--confcutdir=tests -p no:cacheprovider \
		-rs tests/peers.py

# Nothing else should run on the machine. DEVICE=cuda measures on the GPU.
bench: $(READY)
	$(BIN)/python benchmarks/speed.py --device $(DEVICE)

bench-quick: $(READY)
	$(BIN)/python benchmarks/speed.py --device $(DEVICE) --quick

# After a change of constraints.txt.
hashes: $(READY)
	$(BIN)/python tests/pin_hashes.py

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY)
	mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/exhubert
	$(BIN)/python -m mypy

# Made anew when what is installed changes; the mark is written last, so a broken installation is tried again.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile

$(READY): setup.cfg pyproject.toml constraints.txt $(if $(HASHES),constraints-hashes.txt)
	$(PYTHON) -m venv $(VENV)
ifdef HASHES
	$(PIP_INSTALL) --require-hashes --no-deps --only-binary :all: --requirement constraints-hashes.txt
	$(PIP_INSTALL) --no-deps --only-binary :all: $$(grep '^torch==' constraints.txt)
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check --disable-pip-version-check
else
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[train,demo,dev]"
endif
	touch $(READY)

clean:
	rm -rf .venv .hashed .releases .peers build dist *.egg-info
