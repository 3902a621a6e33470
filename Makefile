# On a fresh machine: `make compare`, `make test` (lint, types and the fast tests) and `make test-slow` (the other tests).
PYTHON ?= python3
# torch is installed first and pinned: an unpinned torch can pull gigabytes. Override with TORCH='torch==2.11.0'.
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
CONSTRAINTS = .venv/constraints.txt
# A file's tests go to one worker, which builds their fixtures once.
WORKERS ?= 2
# tests start hundreds of interpreters, which are to find compiled modules
export PYTHONDONTWRITEBYTECODE :=
PYTEST = .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: setup compare test test-slow lint types docs clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@echo "Installing into .venv (about a minute): $(TORCH) and the pinned requirements"
	$(PYTHON) -m venv .venv
	grep -v '^torch==' constraints.txt > $(CONSTRAINTS)
	echo '$(TORCH)' >> $(CONSTRAINTS)
	$(PIP) '$(TORCH)' numpy -c $(CONSTRAINTS)
	$(PIP) -e '.[plots,arc,test]' -c $(CONSTRAINTS)
	touch $@

compare: setup
	.venv/bin/loopgrad compare -m experiment=sudoku4,recall output_dir=results/shortcuts

test: setup lint types
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow --durations=15

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# pyright reads the packages under their installed names through a tree of links
types: setup
	@mkdir -p .ns/loopgrad
	@for file in __init__.py __main__.py py.typed; do ln -sfn ../../loopgrad/$$file .ns/loopgrad/$$file; done
	@for package in gradients models analysis experiments; do ln -sfn ../../$$package .ns/loopgrad/$$package; done
	.venv/bin/pyright

.venv/docs: .venv/ready
	$(PIP) -e '.[docs]' -c $(CONSTRAINTS)
	touch $@

# the site, in docs/_build/html; a warning is an error, and nothing is fetched
docs: .venv/docs
	.venv/bin/python -m sphinx --builder html --nitpicky --fail-on-warning --keep-going --quiet docs docs/_build/html

clean:
	rm -rf docs/_build .venv .ns build dist *.egg-info .pytest_cache .ruff_cache
