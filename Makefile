# Everything runs from .venv, which is made from requirements.lock with plain pip. `make up` is the product.

PYTHON := .venv/bin/python
# Checks and tests use their own installations, never the one in var/.
CHECK_ENV := COUNTERSIGN_VAR=.venv/check-var

.PHONY: up test check bench storm shots lock venv clean

up: venv
	@exec $(PYTHON) manage.py up

test: venv
	@exec $(PYTHON) -m pytest

check: venv
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(CHECK_ENV) $(PYTHON) -m mypy
	@.venv/bin/lint-imports
	@$(CHECK_ENV) $(PYTHON) manage.py check --fail-level WARNING
	@$(CHECK_ENV) $(PYTHON) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run

# Each part also runs alone: `.venv/bin/python -m benchmarks.inference --only lr --peers none` takes a minute.
bench: venv
	@status=0; for part in startup inference scaling promotions; do $(PYTHON) -m benchmarks.$$part || status=1; done; exit $$status

storm: venv
	@exec $(PYTHON) -m benchmarks.storm

shots: venv
	@exec $(PYTHON) -m tests.browser.screenshots

# Needs uv on the PATH. No index addresses, no uv.lock: the result installs anywhere with plain pip.
lock:
	@uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
	  pyproject.toml --group dev --output-file requirements.lock

# The installed lock is kept inside .venv: equal files mean that there is nothing to do.
# Compiling every package would take longer than starting the product; Python compiles what it imports.
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))

venv:
	@if cmp -s requirements.lock .venv/requirements.lock && $(PYTHON) -c '' 2>/dev/null; then exit 0; fi; \
	found=''; \
	for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c '$(SUPPORTED)' 2>/dev/null; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'Countersign needs Python 3.11 to 3.14 with its venv module' \
	    '(on Debian and Ubuntu: apt install python3-venv): install it and run make again.' >&2; \
	  exit 1; \
	fi; \
	echo 'Installing the packages of requirements.lock; the first time takes a minute or two.'; \
	{ [ "$$found" = $(PYTHON) ] || "$$found" -m venv --clear .venv; } && \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input --no-compile \
	  --require-hashes --requirement requirements.lock && \
	cp requirements.lock .venv/requirements.lock || { \
	  echo 'The packages could not be installed: see the reason above, and run make again.' >&2; exit 1; }

clean:
	@rm -rf .venv
