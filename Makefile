# make demo: train, evaluate and report on drawn faces.  make test: lint and the whole test suite.
# make gpu-kit: collect in gpu_kit/ what a GPU machine without a network lacks; see docs/gpu.md.
PYTHON ?= python3
EXTRAS ?= test
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format clean gpu-kit

# uv installs in seconds; where it is unavailable, pip takes a minute or two. Without compiled bytecode every script would
# start 4 s later where PYTHONDONTWRITEBYTECODE is set, as in many containers.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if $(BIN)/python -m uv --version >/dev/null 2>&1; \
	then $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[$(EXTRAS)]'; \
	else $(BIN)/python -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]'; fi
	touch $@

demo: $(VENV)/.installed
	rm -rf runs/fer_vgg_demo
	$(BIN)/python scripts/train.py --config=configs/fer_vgg.py:demo --workdir=runs/fer_vgg_demo

# Each group has workers of its own: one process for the whole suite has crashed. A crashed worker ends the run at once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
test: $(VENV)/.installed lint
	$(PYTEST) tests/data tests/models tests/ops
	$(PYTEST) tests/benchmark tests/evaluate tests/export tests/predict
	$(PYTEST) tests/runs
	$(PYTEST) tests/train tests/test_*.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each piece is optional: make gpu-kit FER2013_SHEETS=PATH VOTES=PATH WIDERFACE=PATH WEIGHTS="PATH PATH"
gpu-kit: $(VENV)/.installed
	$(BIN)/python scripts/launch/gpu_kit.py --fer2013_sheets="$(FER2013_SHEETS)" --votes="$(VOTES)" \
		--widerface="$(WIDERFACE)" --weights="$(WEIGHTS)" $(KIT_FLAGS)

clean:
	rm -rf $(VENV) runs/fer_vgg_demo
