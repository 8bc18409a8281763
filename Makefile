# Two commands to know: `make demo` and `make test`.  Each makes the environment it needs first.
# PYTHON=python3.11 (a version, a command or a path) picks another Python than the newest found.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help demo cluster-demo test test-full soak check gpu-gate gpu-gate-full pins clean

PYTHON ?=
BOOTSTRAP := python3 tools/bootstrap.py --python "$(PYTHON)"

help:
	echo "make demo       serve the built-in model over gRPC and stream a few answers from it"
	echo "make cluster-demo  start four workers and a router, stream, and kill a worker"
	echo "make test       format, lint, types and tests"
	echo "make test-full  the longer tests too, 20 rounds of each fault; hours; writes results/"
	echo "make soak       hours of load; writes results/"
	echo "make check      format, lint, types"
	echo "make gpu-gate   compile kernels and steps for a GPU, without one; gpu-gate-full: all of them"
	echo "make pins       write constraints/ anew from pyproject.toml"
	echo "make clean      remove environments and caches"

demo:
	bin=$$($(BOOTSTRAP))
	$$bin/python -m rtp_jax.serving.demo

cluster-demo:
	bin=$$($(BOOTSTRAP))
	$$bin/python -m rtp_jax.serving.cluster_demo

check:
	bin=$$($(BOOTSTRAP))
	$$bin/ruff format --check
	$$bin/ruff check
	$$bin/basedpyright --pythonpath $$bin/python

test: check
	bin=$$($(BOOTSTRAP))
	$$bin/pytest --results=results-local/test.json
	oldest=$$($(BOOTSTRAP) --beside-oldest)
	if [[ -n $$oldest ]]; then
		echo "smoke on the oldest Python"
		$$oldest/pytest -m smoke
	fi

test-full: check
	bin=$$($(BOOTSTRAP))
	$$bin/pytest -m "not soak" --results=results/$$(date +%F)-test-full.json

soak:
	bin=$$($(BOOTSTRAP))
	$$bin/pytest -m soak --results=results/$$(date +%F)-soak.json

gpu-gate:
	bin=$$($(BOOTSTRAP))
	$$bin/python -m tools.gpu_gate

gpu-gate-full:
	bin=$$($(BOOTSTRAP))
	mkdir -p results-local
	$$bin/python -m tools.gpu_gate --full --json results-local/gpu-gate.json

pins:
	bin=$$($(BOOTSTRAP))
	for line in 3.11 3.12; do
		$$bin/uv pip compile --quiet --upgrade pyproject.toml --extra dev --python-version $$line \
			--generate-hashes --no-header --no-annotate --no-emit-index-url \
			--output-file constraints/py$${line/./}.txt
	done

clean:
	rm -rf .venv-py* .pytest_cache .ruff_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
