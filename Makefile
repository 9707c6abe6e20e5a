# One command does everything, set-up included: `make demo` or `make test` on a fresh machine.
#
# Inside a virtual environment everything is installed there; otherwise in .venv. PYTHON names another interpreter.

PYTHON ?= python3
VENV := $(shell $(PYTHON) -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else ".venv")')
PY := $(VENV)/bin/python
# One stamp for each pair of checkout and environment: an editable install belongs to both.
STAMP := .setup/done_in_$(subst /,_,$(VENV))

# Several processes share the cores: each one with a thread pool of its own would only get in the others' way.
export OMP_NUM_THREADS ?= 1
# No screen is needed by anything here.
export SDL_VIDEODRIVER ?= dummy
# Hundreds of processes import the same files, which are compiled once, whatever the image says that this runs in.
unexport PYTHONDONTWRITEBYTECODE
# Test processes that run beside each other.
JOBS ?= 2

# Each process starts with a half of the list, so that what the tests of a file share is made once, and helps with the other half.
PYTEST := $(PY) -m pytest -n $(JOBS) --dist worksteal

.PHONY: help setup demo test test-slow test-faults lint format check bench docs fuzz sbom audit dist figures-smoke rooms mutants clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-13s %s\n", $$1, $$2}'

setup: $(STAMP)  ## install everything, once, and again when pyproject.toml or constraints.txt has changed

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# torch has no version in pyproject.toml's range that suits every machine, so it is resolved together with the pins: on its own,
# pip would take the newest build, with gigabytes of CUDA libraries. Twenty thousand files are then compiled on all cores, where
# pip takes one; a few are templates that no Python can read, hence no word about them.
$(STAMP): pyproject.toml setup.py constraints.txt $(VENV)/pyvenv.cfg
	@echo 'Installing into $(VENV): one to five minutes, once'
	$(PY) -m pip install -qq --no-compile -c constraints.txt -e '.[dev]'
	@$(PY) -m compileall -qq -j 0 $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || true
	@mkdir -p $(@D) && touch $@

demo: setup  ## train, plot and audit a small agent
	$(PY) -m sf_fixpo.demo

test: lint  ## what CI runs: lint, then every test that is not slow
	$(PYTEST) -m "not slow"

# One at a time: each fills the cores, and some have to be done within a time.
test-slow: setup  ## the tests that train to a threshold
	$(PY) -m pytest -m slow

# Some faults need the right to mount. What is known stays: an outcome that was as it must be is not tried again.
test-faults: setup  ## break a run in ninety ways, one by one, and write docs/faults.md (an hour or two)
	$(PY) -m benchmarks.faults

lint: setup  ## style, formatting, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: setup  ## rewrite the files as `lint` wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

check: test  ## same as test

bench: setup  ## the learner beside stock sample-factory, on this machine
	$(PY) -m benchmarks.learner

figures-smoke: setup  ## the paper's eight figures at the smallest scale, which says only that they can be made (three minutes)
	$(PY) -m benchmarks.figure all --scale=smoke

docs: setup  ## the site, in build/site; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -c docs/site . build/site
	@echo 'build/site/index.html'

FUZZ_INPUTS ?= 100000
fuzz: setup  ## damaged and hostile inputs at every door, FUZZ_INPUTS in all (half an hour)
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(PY) -m pytest -n $(JOBS) --timeout 7200 tests/fuzz

# In an environment of their own: what these programs bring along is none of the package's.
RELEASE := .setup/release
$(RELEASE)/done: constraints.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install -qq -c constraints.txt build twine cyclonedx-bom pip-audit
	@touch $@

sbom: setup $(RELEASE)/done  ## bill of materials of this environment, CycloneDX, in build/sbom.json
	@mkdir -p build
	$(RELEASE)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o build/sbom.json $(PY)
	@echo 'build/sbom.json'

audit: setup $(RELEASE)/done  ## known vulnerabilities of the pinned versions; says so where their data base cannot be reached
	$(PY) -m benchmarks.vulnerabilities --pip_audit=$(RELEASE)/bin/pip-audit

dist: setup $(RELEASE)/done  ## sdist and wheel in dist/, checked
	rm -rf dist
	$(RELEASE)/bin/python -m build -q
	$(RELEASE)/bin/python -m twine check --strict dist/*
	@ls -l dist

rooms: setup  ## the picture of the rooms in CONTRIBUTING.md, from today's imports
	$(PY) -m benchmarks.rooms --write

mutants: setup  ## break the algorithm and the guarantee's files line by line: what does no test notice? (an hour)
	$(PY) -m pip install -qq -c constraints.txt -e '.[mutants]'
	$(PY) -m benchmarks.mutants --results=benchmarks/results/mutants.json --report=docs/mutants.md

clean:  ## remove what was built; trained agents in train_dir stay
	rm -rf .setup .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
