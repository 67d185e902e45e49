# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: setup demo test test-slow gpu-check lint docs

# Processes that run the tests; each may start a small Ray of its own.
TEST_PROCESSES ?= 2
PYTEST = .venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt setup.sh
	@./setup.sh

demo: .venv/.ready
	@.venv/bin/dreamgen demo --out runs/demo

test: .venv/.ready
	@$(PYTEST) -m "not slow"

test-slow: .venv/.ready
	@$(PYTEST) -m slow

gpu-check: .venv/.ready
	@.venv/bin/python benchmarks/gpu_check.py

lint: .venv/.ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyright

docs: .venv/.ready
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
