# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test lint setup

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt setup.sh
	@./setup.sh

demo: .venv/.ready
	@.venv/bin/dreamgen demo --out runs/demo

test: .venv/.ready
	@.venv/bin/python -m pytest

lint: .venv/.ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
