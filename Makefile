# `make help` lists the commands.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

DEMO ?= .demo
BIN := .venv/bin
CORES := $(shell nproc)

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

venv:  ## build .venv for the CPU from the pinned lists in envs/
	@envs/install.sh

demo: venv  ## the whole workflow with real vLLM on the CPU: tiny model, six clips, two ranks
	@$(BIN)/python -m video_pipeline.testing.demo $(DEMO)
	@VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/snakemake --cores $(CORES) --resources gpu=2 \
	    --configfile config/demo.yaml --directory $(DEMO)
	@echo
	@head -n 3 $(DEMO)/results/output.describe.jsonl
	@echo
	@echo "output   $(DEMO)/results/output.describe.jsonl  (a random model: its text is noise)"
	@echo "summary  $(DEMO)/results/output.describe.summary.json"
	@echo "report   $(DEMO)/results/output.describe.report.html  (open it in a browser)"

# Tests that wait, for a time limit or for SLURM, leave two cores idle: hence three files.
test: venv  ## the tests, three files at a time
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
	    -m "not families"

families: venv  ## the answers of every model family against transformers, with real vLLM
	@$(BIN)/python -m pytest -n 2 --max-worker-restart 0 -m families

test-fast: venv  ## the unit tests that take seconds: no vLLM, no SLURM, no browser (2 minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit -m "not slow"

lowest: venv  ## the unit tests with the lowest versions that pyproject.toml allows (10 minutes)
	@rm -rf .lowest
	@$(BIN)/python -m pip install -qq --no-deps --no-compile --no-input --target .lowest \
	    -r envs/lowest.txt
	@PYTHONPATH=$(CURDIR)/.lowest $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit

soak: venv  ## 2,000 samples and 50 random kills: nothing lost, nothing twice (5 minutes)
	@$(BIN)/python tests/soak.py

lint: venv  ## format, lint and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

bench: venv  ## measure, and write docs/benchmarks.md (an hour on 2 cores; needs a quiet machine)
	@$(BIN)/python -m benchmarks

config-docs: venv  ## write config/config.yaml, config/README.md and the JSON Schema
	$(BIN)/python -m video_pipeline.config config

docs: venv  ## install envs/docs.txt, and build the documentation into site/
	@$(BIN)/python -m pip install -qq --no-deps --no-input --disable-pip-version-check -r envs/docs.txt
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html; to search in it, too: $(BIN)/python -m http.server -d site"

clean:  ## remove the demo, the built documentation and caches; .venv stays
	rm -rf $(DEMO) site .lowest .pytest_cache .mypy_cache .ruff_cache

.PHONY: help venv demo test families test-fast lowest soak lint bench config-docs docs clean
