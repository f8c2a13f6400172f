# From a clean clone, with CPython 3.10 or newer and make: `make demo`, `make test`.
# What pip is told by its configuration or by PIP_* variables holds here too.

PYTHON ?= python3
OUT ?= afmi-demo
# For more: make test ARGS="-k afmi", make test ARGS="-m slow"
ARGS ?=
WORKERS ?= 4

# The build's own needs have their versions in constraints.txt as well; pip takes those from here.
PIP_CONSTRAINT ?= constraints.txt
PIP_BUILD_CONSTRAINT ?= constraints.txt
export PIP_CONSTRAINT PIP_BUILD_CONSTRAINT

PY := .venv/bin/python
INSTALL := $(PY) -m pip install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo app test check format docs bench clean distclean
.DELETE_ON_ERROR:

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '%-17s%s\n' "$$name" "$$text"; done

demo: .venv/.demo ## Explain a few real photographs, offline, and say where the pictures are
	@$(PY) -m afmi demo --out "$(OUT)"

app: .venv/.app ## Open the page that explains photographs in the browser, offline; ARGS="…" goes to afmi app
	@$(PY) -m afmi app $(ARGS)

test: .venv/.dev ## Run the tests; ARGS="…" goes to pytest
	@$(PY) -m pytest -q -n auto --maxprocesses $(WORKERS) --dist worksteal $(ARGS)

check: .venv/.dev ## Check format, lint, types and the order of imports
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright
	.venv/bin/lint-imports

format: .venv/.dev ## Format the code, mend what lint can mend, and write the stubs
	$(PY) -m tools.stubs
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: .venv/.docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench: .venv/.bench ## Measure the cost of explanations against bare passes and peers (ARGS=--quick: minutes)
	$(PY) -m benchmarks.speed $(ARGS)

clean: ## Remove what was built or drawn, but keep .venv
	rm -rf build dist site afmi-demo afmi-out afmi-results afmi-reproduced .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests training tools benchmarks docs -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf .venv

# The stamps: what is installed is installed again only when the versions asked for change.

.venv/.made:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "afmi needs CPython 3.10 or newer, and there is no '$(PYTHON)'; name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "afmi needs CPython 3.10 or newer, but '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1 | head -n 1); name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv module; install it (Debian, Ubuntu: apt install python3-venv) or name another: make PYTHON=… …" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@touch $@

.venv/.demo: .venv/.made pyproject.toml constraints.txt
	@echo "Installing afmi into .venv (once; PyTorch is large)"
	@$(INSTALL) -e '.[demo]'
	@touch $@

.venv/.app: .venv/.made pyproject.toml constraints.txt
	@echo "Installing afmi and its page into .venv (once; PyTorch is large)"
	@$(INSTALL) -e '.[app]'
	@touch $@

.venv/.dev: .venv/.made pyproject.toml constraints.txt
	@echo "Installing afmi and its tools into .venv (once; PyTorch is large)"
	@$(INSTALL) -e '.[dev]'
	@touch $@ .venv/.demo .venv/.app

.venv/.docs: .venv/.made pyproject.toml constraints.txt
	@echo "Installing afmi and what builds its documentation into .venv (once; PyTorch is large)"
	@$(INSTALL) -e '.[docs]'
	@touch $@

.venv/.bench: .venv/.made pyproject.toml constraints.txt
	@echo "Installing afmi and what it is measured against into .venv (once; PyTorch is large)"
	@$(INSTALL) -e '.[bench]'
	@touch $@
