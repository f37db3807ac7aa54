# make demo    digits: data, training, evaluation, figures (again: resumes, or says what is there)
# make test    the tests            make check    format, lint and types
# make docs    the site, into site/
# make clean   remove the environment and what builds left; trained models in runs/ stay
# The interpreter is a choice: make PYTHON=python3.12 demo

PYTHON = python3
VENV = .venv
INSTALL = $(VENV)/bin/python -m pip install --constraint constraints.txt --editable
RUN = PATH="$$(cd $(VENV)/bin && pwd):$$PATH"

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/installed
	$(RUN) mmfusion data digits --output runs/digits/data
	$(RUN) mmfusion train --config digits.yaml
	$(RUN) mmfusion eval --model runs/digits

test: $(VENV)/installed-dev
	$(RUN) python -m pytest

check: $(VENV)/installed-dev
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON): Python 3.10 or newer is needed; choose one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "$(PYTHON): no venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo test check docs clean
