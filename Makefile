# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench-eval bench-measure bench-analyze bench-train findings format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

# torch goes first and alone, so that no other package chooses its build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: .venv/installed ## install, run the pocket study (minutes), write its report
	$(BIN)/sft-atlas run studies/pocket.yaml
	$(BIN)/sft-atlas report studies/pocket.yaml

test: .venv/installed-test ## install with the test extras, run the tests
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

check: .venv/installed-test ## lint, types, tests: what has to pass before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

bench-eval: .venv/installed-test ## time evaluation against lm-eval, into benchmarks/results (minutes)
	$(BIN)/python benchmarks/evaluate.py

bench-measure: .venv/installed-test ## time the measures against their peers, into benchmarks/results (minutes)
	$(BIN)/python benchmarks/measure.py

bench-analyze: .venv/installed-test ## time the answers against references, into benchmarks/results (minutes; TABLE=file: a released table too)
	$(BIN)/python benchmarks/analyze.py $(if $(TABLE),--table $(TABLE))

.venv/installed-bench: .venv/installed-test
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	@touch $@

bench-train: .venv/installed-bench ## time training against its peers, into benchmarks/results and docs (an hour; BENCH_TRAIN="--samples 32 128": half)
	$(BIN)/python benchmarks/train.py $(BENCH_TRAIN)

findings: .venv/installed ## write docs/findings-released-table.md from TABLE=evaluation_result.csv
	$(BIN)/sft-atlas import massive-sft $(TABLE) --store .findings
	$(BIN)/sft-atlas answers massive-sft --store .findings --format markdown --output docs/findings-released-table.md
	rm -rf .findings

format: .venv/installed-test ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## remove the environment and caches, never a store
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist
