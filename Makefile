# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test lint setup gpu-check

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt setup.sh
	@./setup.sh

demo: .venv/.ready
	@.venv/bin/dreamgen demo --out runs/demo

test: .venv/.ready
	@.venv/bin/python -m pytest

gpu-check: .venv/.ready
	@.venv/bin/python benchmarks/gpu_check.py

lint: .venv/.ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
