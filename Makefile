# Two commands do everything: `make quickstart` runs the main job, `make test` runs the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OUT ?= runs/quickstart
# What `make quickstart` installs besides: EXTRAS=torch certifies PyTorch's export, too.
EXTRAS ?=
BIN := $(VENV)/bin
comma := ,
RUN := $(VENV)/.run$(if $(EXTRAS),-$(EXTRAS))
INSTALL := -m pip --disable-pip-version-check install --quiet

# They ask for torch < 2.10 and mlx < 0.27 but run on ours: without --no-deps pip would replace those.
MOSHI := moshi moshi_mlx
# What the lower bounds are tried with: the model, the step, the loop, records, checkpoints.
QUICK := tests/nn/test_model.py tests/nn/test_xattn.py tests/test_gates.py tests/data/test_records.py \
	tests/train/test_step.py tests/train/test_checkpoint.py tests/train/test_fit.py
# What adds floats, beside what others compute: quick, for `make other-processor`.
NUMERIC := tests/nn/test_layers.py tests/nn/test_xattn.py tests/nn/test_depformer.py \
	tests/nn/test_backbone.py tests/codec/test_mimi.py tests/runtimes/test_runtimes.py \
	tests/runtimes/test_torch_runtime.py::test_precisions_stay_near_float32 \
	tests/runtimes/test_torch_runtime.py::test_what_a_gpu_captures_is_one_program_fed_by_its_buffers \
	tests/weights/test_families.py
# The instructions of an older processor in all that adds floats: PyTorch, oneDNN, MKL, numpy's OpenBLAS, XLA.
OTHER := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	OPENBLAS_CORETYPE=Nehalem XLA_FLAGS=--xla_cpu_max_isa=AVX2
export NO_TORCH_COMPILE := 1

.PHONY: help quickstart test other-processor slow long plans plans-gpu test-lowest resolve lint format types house \
	constraints clean

help:
	@echo "make quickstart    the whole chain on this machine; then open $(OUT)/report.html"
	@echo "make test          the test suite (make slow, make long: longer ones; make plans, make plans-gpu: TPUs, GPUs)"
	@echo "make other-processor  numeric tests as on an older processor, at a fifth of their bounds"
	@echo "make test-lowest   quick tests with the lowest versions that pyproject.toml allows"
	@echo "make resolve       every extra, as pip would install it in the oldest and the newest Python"
	@echo "make lint types    ruff and pyright;  make format rewrites the files;  make house: rooms and arrows"
	@echo "make constraints   the newest versions that pyproject.toml allows, into constraints.txt"

quickstart: $(RUN)
	$(BIN)/mvjax quickstart --out $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

other-processor: $(VENV)/.dev
	$(OTHER) $(BIN)/python -m pytest -n 2 --dist worksteal --margin 5 $(NUMERIC)

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow --durations=12

long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long

plans: $(VENV)/.dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m plans

# With an empty XLA_FLAGS the tests' fast compilation of toys is off.
plans-gpu: $(VENV)-gpu/.dev
	XLA_FLAGS= JAX_PLATFORMS=cpu $(VENV)-gpu/bin/python -m pytest -m plans_gpu tests/plan/test_plans_gpu.py

test-lowest: $(VENV)-lowest/.dev
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist worksteal $(QUICK)

resolve: | $(BIN)/python
	$(BIN)/python tools/resolve.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck .ci/run tools/launch/*.sh

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

house:
	$(PYTHON) tools/check_house.py

constraints:
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python $(INSTALL) -e ".[dev]"
	$(VENV)-newest/bin/python $(INSTALL) --no-deps $(MOSHI)
	$(VENV)-newest/bin/python tools/constraints.py freeze > constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-gpu $(VENV)-lowest $(VENV)-newest build *.egg-info

$(BIN)/python $(VENV)-gpu/bin/python $(VENV)-lowest/bin/python:
	$(PYTHON) -m venv $(@D:/bin=)

# Not compiled: of 17,000 files a quickstart imports a third, and compiles those itself, once.
$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) --no-compile -c constraints.txt -e ".[train,mlx,serve$(addprefix $(comma),$(EXTRAS))]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -c constraints.txt -e ".[dev]"
	$(BIN)/python $(INSTALL) -c constraints.txt --no-deps $(MOSHI)
	@touch $@ $(VENV)/.run

$(VENV)-gpu/.dev: pyproject.toml constraints.txt | $(VENV)-gpu/bin/python
	$(VENV)-gpu/bin/python $(INSTALL) -c constraints.txt -e ".[train,gpu-plan]" pytest beartype hypothesis
	@touch $@

$(VENV)-lowest/.dev: pyproject.toml constraints.txt tools/constraints.py | $(VENV)-lowest/bin/python
	$(PYTHON) tools/constraints.py lowest > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python $(INSTALL) -c $(VENV)-lowest/constraints.txt -e ".[train]" \
		pytest pytest-xdist beartype hypothesis
	@touch $@
