# Everything here makes .venv when it is missing and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint

demo: $(INSTALLED)
	$(BIN)/longtake render configs/demo.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu" --maxfail=20 $(ARGUMENTS)

# mypy cannot see through an editable install, so it checks the wheel, unpacked.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .build
	$(BIN)/python -m pip wheel -q --no-deps -w .build .
	$(BIN)/python -m pip install -q --no-deps --target .build/typed .build/*.whl
	MYPYPATH=.build/typed $(BIN)/mypy -p longtake

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test,dev]"
	touch $@
