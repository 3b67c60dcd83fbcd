PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-deep parity lint bench bench-checkpoints bench-diffusion bench-pool wheel clean

demo: .venv/base  ## Remove an object from a photograph.
	@mkdir -p demo
	@$(BIN)/iopaint-core run --overwrite --image examples/astronaut.jpg --mask examples/astronaut-mask.png --output demo/astronaut.jpg
	@echo "Before: examples/astronaut.jpg"
	@echo "After:  demo/astronaut.jpg (the mission patch on the suit is gone)"

test: .venv/dev  ## Run the whole suite.
	$(BIN)/python -m pytest

test-deep: .venv/dev  ## Search longer for sequences that break the pool.
	$(BIN)/python -m pytest tests/deep

parity: .venv/dev .venv-peer/bin/iopaint  ## Compare pictures with IOPaint 1.6.0, in an environment of its own of 6 GB.
	$(BIN)/python -m pytest -s tests/parity

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: .venv/dev  ## Build sdist and wheel, and try the wheel in an empty environment.
	rm -rf dist build/empty
	$(BIN)/python -m build
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet dist/*.whl
	cd build/empty && bin/iopaint-core list && bin/iopaint-core doctor

bench:  ## Measure against IOPaint 1.6.0; the first run sets up two environments of 6 GB.
	$(PYTHON) benchmarks/run.py --setup

bench-checkpoints:  ## Measure how checkpoints are told apart, in the environments of `make bench`.
	$(PYTHON) benchmarks/checkpoints.py

bench-diffusion:  ## Measure what a diffusion model's call takes around the pipeline's, in the environments of `make bench`.
	$(PYTHON) benchmarks/diffusion.py

bench-pool:  ## Measure the pool against other ways to hold models; half an hour, 9 GB of weights, the same environments.
	$(PYTHON) benchmarks/pool.py --setup

clean:
	rm -rf .venv demo dist build

.venv/base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv-peer/bin/iopaint:
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet iopaint==1.6.0
	.venv-peer/bin/python -m pip install --quiet --upgrade torch torchvision 'numpy<2'
