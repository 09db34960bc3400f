# Everything here makes .venv when it is missing and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo showcase test test-kernels lint

demo: $(INSTALLED)
	$(BIN)/longtake render configs/demo.yaml

showcase: $(INSTALLED)
	$(BIN)/longtake render configs/showcase.yaml
	$(BIN)/python -m longtake.bench.long.showcase out/showcase

# In two processes, as much of the time is spent waiting; ARGUMENTS=-n0 for one.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --maxfail=20

test: $(INSTALLED)
	$(PYTEST) -m "not gpu" $(ARGUMENTS)

# Tests marked numerical, with kernels for a processor of 2008: they add up in another order than the kernels for this one.
PLAIN_KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2

test-kernels: $(INSTALLED)
	$(PLAIN_KERNELS) $(PYTEST) -m "numerical and not gpu" $(ARGUMENTS)

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
