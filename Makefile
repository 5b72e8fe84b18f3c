# Two commands do everything: `make quickstart` runs the main job, `make test` runs the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OUT ?= runs/quickstart
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# They ask for torch < 2.10 and mlx < 0.27 but run on ours: without --no-deps pip would replace those.
MOSHI := moshi==0.2.13 moshi_mlx==0.3.0
export NO_TORCH_COMPILE := 1

.PHONY: help quickstart test slow plans lint format types clean

help:
	@echo "make quickstart   the whole chain on this machine; then open $(OUT)/report.html"
	@echo "make test         the test suite (make slow: the long tests; make plans: TPU slices)"
	@echo "make lint types   ruff and pyright;  make format rewrites the files"

quickstart: $(VENV)/.run
	$(BIN)/mvjax quickstart --out $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m slow --durations=12

plans: $(VENV)/.dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m plans

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck .ci/run tools/launch/*.sh

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -e ".[torch,mlx]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -e ".[dev]"
	$(PIP) install --quiet --no-deps $(MOSHI)
	@touch $@ $(VENV)/.run
