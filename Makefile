# Every command sets itself up: .venv is made on the first call; later calls install nothing until the requirements change.
#   make reproduce [PRESET=laptop] [MODEL=...]   the main job: ends with the table and where the report is
#   make test [ARGS="-k ste"]                    everything, notebooks included
#   make lab                                     JupyterLab on the book's index
#   make docs                                    the site: docs/_build/html/index.html, in an environment of its own
#   make test-lab [ARGS="-k 03"]                 every notebook, top to bottom, in JupyterLab in a browser
#   make export | readme | clean | distclean     for those who edit the notebooks
# PYTHON=... chooses the interpreter; PIP_ARGS=... and TORCH_ARGS=... go to pip (say, a mirror, or the index of another torch build).
PRESET ?= laptop
MODEL ?=
ARGS ?=
PIP_ARGS ?=
TORCH_ARGS ?=
VENV := .venv

# 3.11 first; better one that can make virtual environments than one that cannot (Debian packs that apart: python3-venv)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CAN_VENV := import venv, ensurepip
PYTHONS := python3.11 python3 python3.12 python3.13
ifndef PYTHON
PYTHON := $(firstword $(shell for c in '$(CAN_VENV); $(NEW_ENOUGH)' '$(NEW_ENOUGH)'; do for p in $(PYTHONS); do $$p -c "$$c" 2>/dev/null && echo $$p; done; done; true))
endif

# A stamp's name carries what it depends on: the requirements (contents, not dates), the interpreter and this folder (a moved venv is broken).
PINS := settings.ini constraints.txt setup.py pyproject.toml
hash = $(shell { $(1); } | cksum | cut -d' ' -f1)
HOME_KEY := $(call hash,echo "$(CURDIR)"; $(PYTHON) -V 2>&1)
PINS_KEY := $(call hash,cat $(PINS))
MADE := $(VENV)/.made-$(HOME_KEY)
RUN := $(VENV)/.run-$(PINS_KEY)
DEV := $(VENV)/.dev-$(PINS_KEY)
# The site needs neither torch nor the library: it has an environment of its own, of the extra `docs`
DOCS_VENV := .venv-docs
DOCS_WANTS := $(foreach w,$(shell sed -n 's/^docs_requirements = //p' settings.ini),'$(w)')
DOCS_KEY := $(call hash,sed -n '/^docs_requirements/p' settings.ini; cat constraints.txt)
DOCS := $(DOCS_VENV)/.made-$(HOME_KEY)-$(DOCS_KEY)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS) -c constraints.txt

.PHONY: help reproduce test test-lab lab docs venv venv-run export readme clean distclean
.NOTPARALLEL:

help:
	@sed -n '2,8s/^# \{0,3\}//p' Makefile

reproduce: venv-run
	@$(VENV)/bin/jumprelu-sae reproduce --preset '$(PRESET)' $(if $(MODEL),--model '$(MODEL)') $(ARGS)

test: venv
	@$(VENV)/bin/python -m pytest $(ARGS)

test-lab: venv
	@$(VENV)/bin/python -m pytest tests/test_lab.py -m lab_all -s $(ARGS)

docs: $(DOCS)
	@$(DOCS_VENV)/bin/python docs/pages.py $(ARGS)

lab: venv
	@$(VENV)/bin/python -m jupyter lab --config=tools/lab_config.py --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

venv: $(DEV)
venv-run: $(RUN)

export: venv
	$(VENV)/bin/nbdev-export
	$(VENV)/bin/nbdev-clean
	$(VENV)/bin/python tools/make_readme.py

readme: venv
	$(VENV)/bin/python tools/make_readme.py

clean:
	rm -rf build dist _proc _docs _site docs/_build *.egg-info .pytest_cache
	find . \( -path ./$(VENV) -o -path ./$(DOCS_VENV) \) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(DOCS_VENV)

$(MADE):
	@if [ -z '$(PYTHON)' ]; then echo 'Python 3.11 or newer is needed: apt-get install python3 python3-venv, or say PYTHON=/path/to/python3.11' >&2; exit 2; fi
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo '$(PYTHON) does not run or is older than 3.11: say PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(PYTHON) -c '$(CAN_VENV)' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv (as root, or with sudo), then run make again" >&2; exit 2; }
	@echo 'Making $(VENV) with $(PYTHON) (once)'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUN): | $(MADE)
	@echo 'Installing what the reproduction needs into $(VENV) (once, some minutes)'
	@rm -f $(VENV)/.run-* $(VENV)/.dev-*
	@$(PIP) $(TORCH_ARGS) setuptools torch
	@$(PIP) --no-build-isolation -e '.[embedded,report]'
	@touch $@

$(DEV): | $(MADE)
	@echo 'Installing what the tests and JupyterLab need into $(VENV) (once, some minutes)'
	@rm -f $(VENV)/.run-* $(VENV)/.dev-*
	@$(PIP) $(TORCH_ARGS) setuptools torch
	@$(PIP) --no-build-isolation -e '.[all]'
	@touch $(RUN) $@

$(DOCS):
	@if [ -z '$(PYTHON)' ]; then echo 'Python 3.11 or newer is needed: apt-get install python3 python3-venv, or say PYTHON=/path/to/python3.11' >&2; exit 2; fi
	@echo 'Making $(DOCS_VENV) with what the site needs (once, a minute)'
	@$(PYTHON) -m venv --clear $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS) -c constraints.txt $(DOCS_WANTS)
	@touch $@
