PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2
export PYTHONDONTWRITEBYTECODE := # tests are compiled once, not by each worker each time

.PHONY: demo test test-fast test-deep parity lint bench bench-calls bench-checkpoints bench-diffusion bench-memory bench-pool bench-quality wheel clean

demo: .venv/base  ## Remove an object from a photograph, and the text from another.
	@mkdir -p demo
	@$(BIN)/iopaint-core run --overwrite --image examples/astronaut.jpg --mask examples/astronaut-mask.png --output demo/astronaut.jpg
	@echo "Before: examples/astronaut.jpg"
	@echo "After:  demo/astronaut.jpg (the mission patch on the suit is gone)"
	@$(BIN)/iopaint-core run --overwrite --model erase-text --image examples/astronaut-captioned.jpg --output demo/astronaut-captioned.jpg
	@echo "Before: examples/astronaut-captioned.jpg"
	@echo "After:  demo/astronaut-captioned.jpg (the caption was found, and is gone)"

test: .venv/dev dist/built  ## Run the whole suite, on two cores.
	DIST=dist $(PYTEST) --durations 20

test-fast: .venv/dev  ## Run what needs no torch, no other process and no package: seconds.
	$(PYTEST) -m 'not torch and not process and not package and not slow'

test-deep: .venv/dev  ## Run what searches longer, and paints everything as large as for users.
	$(PYTEST) -m slow

parity: .venv/dev .venv-peer/bin/iopaint .venv-rembg/bin/rembg  ## Compare pictures with IOPaint 1.6.0 and rembg, in environments of their own of 7 GB.
	$(BIN)/python -m pytest -s tests/parity

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: dist/built  ## Build sdist and wheel, and try the wheel in an empty environment.
	rm -rf build/empty
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet dist/*.whl
	cd build/empty && bin/iopaint-core list && bin/iopaint-core doctor

bench:  ## Measure against IOPaint 1.6.0; the first run sets up two environments of 6 GB.
	$(PYTHON) benchmarks/run.py --setup

bench-calls: .venv/base  ## Measure further clicks on a large image, and calls of a web service.
	$(BIN)/python benchmarks/calls.py

bench-checkpoints:  ## Measure how checkpoints are told apart, in the environments of `make bench`.
	$(PYTHON) benchmarks/checkpoints.py

bench-diffusion:  ## Measure what a diffusion model's call takes around the pipeline's, in the environments of `make bench`.
	$(PYTHON) benchmarks/diffusion.py

bench-quality: .venv/dev  ## Measure how near erasers come to what a mask hid, on photographs.
	$(BIN)/python -m pip install --quiet stlpips-pytorch torchsummary ipython scikit-image
	$(BIN)/python benchmarks/quality.py

bench-memory: .venv/dev  ## Measure the memory of 1,000 requests over models that do not fit together.
	$(BIN)/python benchmarks/memory.py

bench-pool:  ## Measure the pool against other ways to hold models; half an hour, 9 GB of weights, the same environments.
	$(PYTHON) benchmarks/pool.py --setup

clean:
	rm -rf .venv demo dist build

dist/built: pyproject.toml README.md LICENSE $(shell find iopaint_core iopaint_plugins -type f -not -path '*/__pycache__/*') | .venv/dev
	rm -rf dist
	$(BIN)/python -m build
	@touch $@

.venv/base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[text]'
	@touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv-peer/bin/iopaint:
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet iopaint==1.6.0
	.venv-peer/bin/python -m pip install --quiet --upgrade torch torchvision 'numpy<2'

.venv-rembg/bin/rembg:
	$(PYTHON) -m venv .venv-rembg
	.venv-rembg/bin/python -m pip install --quiet 'rembg[cpu,cli]'
