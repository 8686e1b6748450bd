# make setup   the environment in .venv          make demo   a small student, alone and distilled
# make test    the tests                         make help   the variables
ENV ?=
VENV ?= $(if $(ENV),.venv-$(ENV),.venv)
PYTHON ?= python3
STACK ?=
TORCH ?=
TORCH_INDEX ?=
TASK ?= det
METHOD ?= wavelet-prompt
TESTS ?=
GPU_CHECK ?=
# Nothing newer than Python 3.8. str.decode: vermin takes that of NumPy, pycocotools and the like for Python 2's.
VERMIN = --target=3.8- --no-tips --violations --exclude str.decode freekd_mm tools speed tests docs setup.py
# The environments that the whole test suite is run in; results in docs/install.md.
MATRIX ?= py311-torch213 py38-torch21 py38-torch113 py313-onedl

# The environment's own Python runs a later set-up, so that PYTHON need not be repeated.
RUN_SETUP = $$(test -x $(VENV)/bin/python && echo $(VENV)/bin/python || echo $(PYTHON)) tools/setup_env \
	--venv '$(VENV)' --env '$(ENV)' --stack '$(STACK)' --torch '$(TORCH)' --torch-index '$(TORCH_INDEX)' \
	--python '$(if $(filter command line environment,$(origin PYTHON)),$(PYTHON))'

.PHONY: help setup demo test matrix lint docs doctor gpu-check

help:
	@echo 'make setup   [VENV=.venv] [PYTHON=python3] [STACK=openmmlab|onedl|...] [TORCH=2.13.0|installed] [TORCH_INDEX=url]'
	@echo 'make demo    [TASK=det|seg] [METHOD=wavelet-prompt]'
	@echo 'make test    [TESTS=tests/frequency] [ENV=py38-torch113]'
	@echo 'make matrix  the tests in each of $(MATRIX)'
	@echo 'make lint    formatting, lint, types, and nothing newer than Python 3.8'
	@echo 'make docs    the site: pages and API reference, in site/'
	@echo 'make doctor  which versions are here, and what is wrong with them'
	@echo 'make gpu-check  what a GPU does with the losses [PYTHON=python3] [GPU_CHECK="--layer 1"]; does not set up'
	@echo 'Every other target sets up first; that takes no time once it is done. See docs/install.md.'

setup:
	@test -x $(VENV)/bin/python || command -v $(PYTHON) >/dev/null || { \
		echo 'Set-up stopped: PYTHON=$(PYTHON) is not a program here'; \
		echo 'What to do: install Python 3.8 to 3.13, or name one: make setup PYTHON=/path/to/python3.11'; exit 1; }
	@$(RUN_SETUP)

demo: setup
	@$(VENV)/bin/python tools/demo.py --task $(TASK) --method $(METHOD)

test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 $(TESTS)

matrix:
	@failed=; for env in $(MATRIX); do \
		echo "== $$env"; $(MAKE) --no-print-directory test ENV=$$env TESTS='-rs $(TESTS)' || failed="$$failed $$env"; \
	done; test -z "$$failed" || { echo "Failed in:$$failed"; exit 1; }

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin $(VERMIN)

docs: setup
	$(VENV)/bin/python -m pip install -q --no-deps -r requirements/docs.txt
	$(VENV)/bin/python docs/build.py --out site

doctor:
	@$(VENV)/bin/python tools/doctor.py

# Somebody else's machine has its own environment: nothing is installed.
gpu-check:
	@$(if $(filter command line environment,$(origin PYTHON)),$(PYTHON),$(firstword $(wildcard $(VENV)/bin/python) $(PYTHON))) \
		-m speed.gpu_check $(GPU_CHECK)
