# Both main targets set up .venv first, which takes no time when nothing has changed.

BIN := .venv/bin
PYTHON ?= python3
# Without bytecode every process of a run compiles torch, vLLM and the rest anew: 20 s each.
unexport PYTHONDONTWRITEBYTECODE
# Two files of tests at a time, with a thread each.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: help setup quickstart test lint test-fast test-stack bench clean

help:
	@echo "make quickstart   set up, then train a small model and report what it learned"
	@echo "make test         set up, then lint and run every test"
	@echo "make lint         ruff, pyright, import contracts, spelling"
	@echo "make test-fast    the tests that start no engine; make test-stack: the others"
	@echo "make bench        set up, then measure steps and the algorithms against their limits"
	@echo "make clean        remove .venv and caches (runs/ stays)"

setup:
	@$(PYTHON) tools/setup_environment.py

quickstart: setup
	@$(BIN)/rlstack quickstart

test: setup lint test-fast test-stack

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell

test-fast: setup
	$(SIDE_BY_SIDE) -m "not real_stack and not alone"
	$(BIN)/python -m pytest -q -m alone

test-stack: setup
	$(SIDE_BY_SIDE) -m real_stack

bench: setup
	@$(BIN)/python -m benchmarks.step
	@$(BIN)/python -m benchmarks.ppo
	@$(BIN)/python -m benchmarks.algorithms
	@$(BIN)/python -m benchmarks.sandbox
	@$(BIN)/python -m benchmarks.rewards

clean:
	rm -rf .venv .setup.log .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build dist
