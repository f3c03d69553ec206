# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make train    installs Squall into .venv and trains the digits on two processes
#   make test     installs it with the developers' tools and passes every check

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test check format lint types layers tests chaos browser wheel clean

train: $(VENV)/.installed
	$(BIN)/squall train digits --processes 2

test: check tests

check: format lint types layers

format: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

tests: $(VENV)/.installed-dev browser
	$(BIN)/python -m pytest -q

# Fifteen hundred fault schedules in simulated time, five minutes; then a hundred kills of real processes at random moments,
# half an hour on two cores; with DATA=DIR also on a slice of CIFAR-10 in it.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.schedules --seeds 1000
	$(BIN)/python -m tests.batch_schedules --seeds 500
	$(BIN)/python -m tests.kills --seeds 10
	$(BIN)/python -m tests.chaos --kills 100 $(if $(DATA),--data $(DATA))

# The report is looked at in a real browser: Debian's, installed here if there is none and we may.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v $$name && command -v chromedriver; then exit 0; fi; done >/dev/null; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium, in which the tests look at the report"; \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; \
	else \
	  echo "the tests look at the report in a browser, and there is none: install chromium and chromedriver" \
	    "(Debian: sudo apt-get install chromium chromium-driver)" >&2; exit 1; \
	fi

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[report]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev,report,images]'
	touch $@ $(VENV)/.installed
