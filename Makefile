# Two commands from a fresh clone: `make figures` and `make test`.  Each first makes .venv, with the versions in
# constraints.txt, where it is missing or older than pyproject.toml or constraints.txt.
#
#   make figures PROFILE=paper ONLY=loss_vs_depth DEVICE=cuda
#   make test PYTEST_ARGS="tests/test_datasets.py -x"
#
# On Linux, PyPI's torch is the CUDA build, gigabytes of it.  Without a GPU, take the small one, in .venv from then on:
#
#   make figures TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# torch alone is looked for there: an index beside PyPI for all could give any package its own under a name of PyPI's.

TORCH_INDEX ?=
PROFILE ?= quick
DEVICE ?= auto
ONLY ?=
PYTEST_ARGS ?=
ARGS ?=

# JupyterLab asks root for a word of consent; in a container there is often nobody else.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# The Python that .venv is made from: the first that is new enough and can make one.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

PY := .venv/bin/python
PIP := $(PY) -m pip install -q --no-build-isolation -c constraints.txt

# Tests run beside each other, a process for each core and one thread in each.  (With --pdb, one process in all.)
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

# Every call of flowstudy's own is held against the shapes and types of its signature, which takes half as long again.
CHECKED := --jaxtyping-packages=flowstudy,beartype.beartype

# A user's own pip settings for other places must not lead out of .venv.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PIP_TARGET PIP_PREFIX PIP_ROOT

.DELETE_ON_ERROR:
.PHONY: help figures gallery records test test-types test-slow mutants test-integrations test-cuda-emulated \
	test-lower-bounds lab gpu-bundle peers types docs lock check-lock package lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

FIGURES := $(PY) -m flowstudy figures --device $(DEVICE) $(addprefix --only ,$(ONLY))

figures: .venv/.studies ## every study's figures, real data, into figures/PROFILE/ (PROFILE=quick DEVICE=auto ONLY=)
	@$(FIGURES) --profile $(PROFILE)

gallery: .venv/.studies ## figures/gallery anew, which git keeps: of the quick profile (DEVICE=auto)
	@$(FIGURES) --profile quick --gallery figures/gallery

records: .venv/.studies ## REPLICATION.md and its records anew, which git keeps (PROFILE= DEVICE= ONLY=)
	@$(FIGURES) --profile $(PROFILE) --records .

test: .venv/.dev ## the tests, but for the slow ones (PYTEST_ARGS=)
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-types: .venv/.dev ## the same tests, the shapes and types in signatures checked at every call (PYTEST_ARGS=)
	@$(PYTEST) -m "not slow" $(CHECKED) $(PYTEST_ARGS)

test-slow: .venv/.triton ## the others, signatures checked: whole studies, killed runs, wide nets (PYTEST_ARGS=)
	@$(PYTEST) -m slow $(CHECKED) $(PYTEST_ARGS)

mutants: .venv/.dev ## small slips in the code, 11 a package, that no test notices: an hour (ARGS="--package nets --seed 1")
	@$(PY) tests/mutants.py $(ARGS)

# The pages of the documentation that need these packages.
PAGES := $(foreach page,hugging_face lightning,"tests/test_docs.py::test_a_page_can_be_followed_as_written[docs/how-to/$(page).md]")

test-integrations: .venv/.integrations ## Lightning, Hugging Face, Dask and Optuna: against the real packages
	@$(PY) -m pytest tests/test_integrations.py tests/test_dask.py tests/test_dask_network.py tests/test_optuna.py \
		$(PAGES) $(PYTEST_ARGS)

test-cuda-emulated: .venv/.dev ## those for a GPU on emulated ones, signatures checked; skipped without g++
	@if ! command -v $${CXX:-g++} >/dev/null; then \
		echo "Skipped: no C++ compiler $${CXX:-g++} to build the emulated GPUs of tests/emulator with."; \
	else $(PY) tests/emulator/build.py && PYTHONPATH=$(CURDIR)/tests/emulator$${PYTHONPATH:+:$$PYTHONPATH} \
		$(PYTEST) -m gpu $(CHECKED) $(PYTEST_ARGS); fi

lab: .venv/.lab ## JupyterLab on studies/, paths as from here (ARGS="--no-browser --port 8890")
	@$(PY) -m jupyterlab studies --MappingKernelManager.root_dir="$(CURDIR)" $(AS_ROOT) $(ARGS)

peers: .venv/.core ## what the benchmarks compare with, into .venv
	@$(PIP) --no-deps -r benchmarks/peers.txt

gpu-bundle: .venv/.dev ## build/flowstudy-gpu.tgz: all that `python -m benchmarks.gpu` needs where nothing can be fetched
	@$(PY) -m benchmarks.gpu.bundle

types: .venv/.types ## every public name has its type (pyright), and the README's Python passes mypy
	@$(PY) .ci/public_types.py

docs: .venv/.docs ## the documentation's site, into build/docs/; a warning is an error
	@rm -rf build/docs
	@$(PY) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "Read build/docs/index.html"

# Everything in constraints.txt but torch and what its CUDA builds bring: of those each machine takes its own.
APART = $(shell sed -nE 's/^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==.*/--no-emit-package \1/p' constraints.txt)

lock: ## lock.txt, constraints.txt with the files' hashes, after each change of it (needs uv)
	@uv pip compile constraints.txt --universal --python-version 3.11 --no-deps --generate-hashes --no-annotate -q \
		--custom-compile-command "make lock" $(APART) -o lock.txt

check-lock: .venv/.core ## the files that pip would take today are those of lock.txt, by their hashes
	@$(PY) -m pip install -q --dry-run --ignore-installed --require-hashes --no-deps -r lock.txt

package: .venv/.package ## wheel and sdist, tried in an empty environment outside the repository
	@$(PY) .ci/try_package.py

test-lower-bounds: ## the tests on the oldest versions that pyproject.toml admits, in .venv-lower (PYTEST_ARGS=)
	@$(MAKE) --no-print-directory .venv-lower/.done
	@OMP_NUM_THREADS=1 .venv-lower/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m "not slow" $(PYTEST_ARGS)

lint: .venv/.dev ## style, the layering, the workflow's schema, and no notebook outputs in git
	@$(PY) -m ruff check .
	@$(PY) .venv/bin/lint-imports --no-logo --no-cache
	@$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	@git ls-files -z -- '*.ipynb' | xargs -0 -r $(PY) -m nbstripout --verify --keep-id \
		|| { echo "Strip them: .venv/bin/nbstripout --keep-id studies/*.ipynb" >&2; exit 1; }

clean: ## remove .venv and caches; results and figures stay
	rm -rf .venv .venv-lower build dist *.egg-info .pytest_cache .ruff_cache

# The stamps.  Each is written last, so an installation that fails or is killed is done again.

.venv/.core: pyproject.toml constraints.txt
	@$(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		test -n "$(PYTHON)" || { echo "No Python 3.11 or newer that can make a virtual environment was found." \
			"Install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
		echo "Making .venv with $(PYTHON)" && $(PYTHON) -m venv --clear .venv; }
	@echo "Installing flowstudy and what it needs into .venv (minutes the first time, seconds later)"
	@$(PIP) setuptools
	@$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	@$(PIP) -e .
	@echo "$(CURDIR)" > $@

.venv/.studies: .venv/.core
	@echo "Installing what runs notebooks"
	@$(PIP) -e '.[studies]'
	@touch $@

.venv/.dev: .venv/.studies
	@echo "Installing what the tests need"
	@$(PIP) -e '.[dev]'
	@touch $@

# Triton's steps for GPUs run in its interpreter, and are compiled, where there is no GPU; it exists for Linux alone.
.venv/.triton: .venv/.dev
	@if test "$$(uname -s)" = Linux; then \
		echo "Installing Triton, without which the tests of a GPU's steps are skipped"; $(PIP) --no-deps triton; fi
	@touch $@

.venv/.types: .venv/.dev
	@echo "Installing pyright and mypy"
	@$(PIP) -e '.[types]'
	@touch $@

.venv/.docs: .venv/.core
	@echo "Installing Sphinx"
	@$(PIP) -e '.[docs]'
	@touch $@

.venv/.package: .venv/.core
	@echo "Installing what builds and checks packages"
	@$(PIP) -e '.[package]'
	@touch $@

.venv-lower/.done: pyproject.toml constraints-lower.txt
	@echo "Making .venv-lower with the oldest versions that pyproject.toml admits"
	@$(PYTHON) -m venv --clear .venv-lower
	@.venv-lower/bin/python -m pip install -q -c constraints-lower.txt setuptools
	@.venv-lower/bin/python -m pip install -q --no-build-isolation -c constraints-lower.txt -e '.[dev,studies]'
	@touch $@

.venv/.lab: .venv/.core
	@echo "Installing JupyterLab"
	@$(PIP) -e '.[lab]'
	@touch $@

.venv/.integrations: .venv/.dev
	@echo "Installing Lightning, Hugging Face transformers, Dask and Optuna"
	@$(PIP) -e '.[integrations,cluster]'
	@touch $@

# A folder that was copied or moved must not run the code of the old one, nor a Python that has gone.
ifneq ($(shell test -x $(PY) && cat .venv/.core 2>/dev/null),$(CURDIR))
.PHONY: .venv/.core
endif
