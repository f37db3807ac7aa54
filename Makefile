# make demo    digits: data, training (on the CPU), evaluation, figures (again: resumes, or says
#              what is there)
# make emoji   a small model in colour: drawings from npm, codec, training, evaluation (half an hour)
# make test    the tests            make check    format, lint and types
# make docs    the site, into site/
# make clean   remove the environment and what builds left; trained models in runs/ stay
# The interpreter is a choice: make PYTHON=python3.12 demo

PYTHON = python3
VENV = .venv
NPM = npm
SETS = runs/emoji/sets
EMOJI = noto-1.2.9 twemoji-1.2.5 fluent-emoji-flat-1.2.6 emojione-1.2.3
PACKAGES = $(EMOJI:%=$(SETS)/iconify-json-%.tgz)
INSTALL = $(VENV)/bin/python -m pip install --constraint constraints.txt --editable
RUN = PATH="$$(cd $(VENV)/bin && pwd):$$PATH"

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/installed
	$(RUN) mmfusion data digits --output runs/digits/data
	$(RUN) CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 mmfusion train --config digits.yaml --ranks 2 data.micro_rows=12
	$(RUN) mmfusion eval --model runs/digits

emoji: $(VENV)/installed-emoji $(PACKAGES)
	$(RUN) mmfusion data emoji $(PACKAGES) --output runs/emoji/data
	$(RUN) mmfusion data linear-codec "runs/emoji/data/draw-*.tar" --config emoji_small \
		--output runs/emoji/data/codec.safetensors
	$(RUN) CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 mmfusion train --config emoji_small --ranks 2 data.micro_rows=4
	$(RUN) mmfusion eval --model runs/emoji_small

$(SETS)/iconify-json-%.tgz:
	@mkdir -p $(SETS)
	@command -v $(NPM) > /dev/null || { \
		echo "$(@F): no npm to fetch it with; put it into $(SETS) (npm pack, docs/data.md)," \
			"or say where it is: make SETS=FOLDER emoji" >&2; exit 1; }
	cd $(SETS) && $(NPM) pack --silent "@iconify-json/$$(echo $* | sed 's/-\([0-9.]*\)$$/@\1/')"

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

$(VENV)/installed-emoji: $(VENV)/installed
	$(INSTALL) '.[emoji]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo emoji test check docs clean
