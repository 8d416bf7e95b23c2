# make quickstart   the main job on small real images, in an environment of its own: .venv
# make test         the tests, in the same environment
# make lint         ruff and mypy
PYTHON ?= python3
VENV ?= .venv
PADDLE ?= cpu
BIN := $(VENV)/bin
ONNX := $(if $(filter gpu,$(PADDLE)),onnx-paddle2,onnx)

.PHONY: quickstart test lint

quickstart: $(BIN)/python
	$(BIN)/pip install -q -e '.[$(PADDLE),$(ONNX),quickstart]'
	$(BIN)/python tools/quickstart.py

test: $(BIN)/python
	$(BIN)/pip install -q -e '.[$(PADDLE),$(ONNX),openvino,lite,test]'
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(BIN)/python
	$(BIN)/pip install -q -e '.[serve,lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
