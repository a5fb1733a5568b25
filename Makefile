# On a fresh machine with Python 3.10 or newer and a C++ compiler:
#
#   make demo     a chest CT registered to a radiograph, with pictures in demo-out/
#   make test     lint and tests; where nvcc is installed, the CUDA sources are compiled too
#
# Each makes its own .venv and builds the kernels first.  Variables:
#
#   PYTHON   the interpreter that makes the .venv      (python3)
#   VENV     where it is                               (.venv)
#   TORCH    what to install as torch, for pip         (torch, as pinned in constraints.txt)
#   CXX      the C++ compiler                          (c++)
#   NVCC     the CUDA compiler, or "none"              (nvcc, where it is found)
#
# If PYTHON already has a torch with CUDA, 2.10 or newer, the .venv uses that one and installs none.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
export XREG_CACHE ?= $(CURDIR)/.cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PY := $(VENV)/bin/python
PIP = $(PY) -m pip install --quiet -c $(VENV)/constraints.txt
BUILT_FROM := setup.py pyproject.toml constraints.txt $(wildcard cuda/*)
INSTALLED := $(VENV)/.xreg-installed
CUDA_CHECKED := build/cuda-check.txt

# The folder of PYTHON's own CUDA torch; empty where there is none, or TORCH says what to take.
FIND_CUDA_TORCH := import torch, os; v = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]); \
	print(os.path.dirname(os.path.dirname(torch.__file__)) if torch.version.cuda and v >= (2, 10) else "")
CUDA_TORCH = $(if $(filter torch,$(TORCH)),$(shell $(PYTHON) -c '$(FIND_CUDA_TORCH)' 2>/dev/null))
PINNED_TORCH = $(if $(filter torch,$(TORCH)),$(if $(CUDA_TORCH),,yes))

# The packages of one extra, as pyproject.toml names them.
LIST_EXTRA := import re, sys; from importlib.metadata import requires; \
	print("\n".join(r.split(";")[0] for r in requires("xreg") if re.search("extra == .%s\\b" % sys.argv[1], r)))

.PHONY: demo test lint bench cuda-check install clean distclean

demo: $(INSTALLED)
	$(VENV)/bin/xreg demo -o demo-out $(DEMO_ARGS)

test: $(INSTALLED)-test $(CUDA_CHECKED)
	$(PY) -m ruff check .
	$(PY) -m pytest $(PYTEST_ARGS)

# The registers that each kernel takes, from a compilation that is as new as the sources.
cuda-check: $(CUDA_CHECKED)
	@test ! -f $< || cat $<

$(CUDA_CHECKED): setup.py $(wildcard cuda/*) | $(INSTALLED)
	@$(PY) setup.py -q cuda_check

lint: $(INSTALLED)-test
	$(PY) -m ruff check .

bench: $(INSTALLED)-bench
	$(PY) benchmarks/projector.py $(BENCH_ARGS)
	$(PY) benchmarks/registration.py $(BENCH_ARGS)

install: $(INSTALLED)-test

clean:
	rm -rf build dist *.egg-info demo-out .pytest_cache .ruff_cache .hypothesis
	rm -f xreg/_lib/*.so xreg/_lib/*.dylib $(INSTALLED)*
	find xreg tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .cache

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "xreg: there is no $(PYTHON). Install Python 3.10 or newer \
	(Debian: apt install python3 python3-venv), or say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "xreg: needs Python 3.10 or newer, \
	and $(PYTHON) is $$($(PYTHON) --version 2>&1). Say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "xreg: $(PYTHON) cannot make virtual environments. \
	Install its venv module (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(if $(CUDA_TORCH),--system-site-packages) $(VENV)

$(INSTALLED): $(BUILT_FROM) | $(PY)
	@command -v $${CXX:-c++} >/dev/null || { echo "xreg: there is no C++ compiler to build the kernels with. \
	Install one (Debian: apt install g++), or name it in CXX"; exit 1; }
	@$(if $(PINNED_TORCH),cat,grep -v '^torch==') constraints.txt > $(VENV)/constraints.txt
	@echo "installing what xreg needs (torch is a few hundred MB), and building the kernels"
	$(PIP) setuptools wheel
	$(if $(CUDA_TORCH),echo "$(CUDA_TORCH)" > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cuda_torch.pth",$(PIP) "$(TORCH)")
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(INSTALLED)-%: $(INSTALLED)
	$(PY) -c '$(LIST_EXTRA)' $* > $(VENV)/$*.txt
	$(PIP) -r $(VENV)/$*.txt
	@touch $@
