# Scaffold a service, test the template. Everything runs through uv: the machine's, or else
# one that is put into .venv with nothing but python3.

PYTHON ?= python3
COPIER = copier>=9.19.1,<10
# One before 0.4.27 knows no groups of dependencies.
UV := $(shell uv run --group dev --help >/dev/null 2>&1 && echo uv || echo .venv/bin/uv)

# uv trusts only the certificates it brings; a machine behind a proxy has its own.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/cert.pem /etc/ssl/certs/*),true,false)
# Copier lets git look for submodules, by a script of git's that needs sed.
WITH_SED = PATH="$$PATH:/usr/bin:/bin"
# The rest of what is rendered becomes Python only then.
HARNESS = --config template/tests/harness/ruff.toml template/tests/harness
# Named in the recipe, make would run all of it even where it is only to show it (-n).
TESTED = MAKEFLAGS= $(MAKE) --no-print-directory -C "$$dest" test
# Of no concern here: an activated environment of another project, where else pip is to install, what
# of which project uv is to run without, and a lock file, since there is none.
unexport VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT
unexport UV_NO_DEV UV_NO_DEFAULT_GROUPS UV_NO_GROUP UV_NO_PROJECT UV_PROJECT UV_WORKING_DIR
unexport UV_FROZEN UV_LOCKED
# Without assertions there are no tests, as pytest says.
unexport PYTHONOPTIMIZE
# Programs of Python are run by their module, `python -m pytest`: the scripts in .venv/bin name the folder
# in which they were made, and are of no use where the clone was moved.

define HELP
make service DEST=../my-service    a new service with the default answers, and its tests
                                   other answers: ANSWERS="-d use_redis=false -d ci=gitlab"
make test                          the template's own tests (ARGS="-x -k update" goes to pytest)
                                   what CI runs, the thorough ones as well: ARGS="-m 'not slow'"
make test-faults                   those that take minutes: kill sweeps, many seeds, each feature alone
make test-updates                  projects of each release, updated: a release runs them as well
make bench                         what a test costs, beside the usual patterns, and with large tables
make recordings                    what README shows: the pictures of terminals, made of what really runs
make check                         formatter, linters and type checker over the template's own files
make format                        format and fix them, and hash the harness's files anew
make release VERSION=1.0.0         check that a release is ready, and tag it
make notes VERSION=1.0.0           what CHANGELOG.md says of it
endef

.PHONY: help service test test-faults test-updates bench recordings check format release notes uv
help:
	$(info $(HELP))
	@:

service: $(UV)
	@set -eu; dest="$(DEST)"; began=$$(date +%s); \
	case $$dest in \
	  "") echo 'Where to? For example: make service DEST=../my-service' >&2; exit 2;; \
	  "~/"*) dest=$$HOME/$${dest#"~/"};; \
	esac; \
	if [ -e "$$dest" ] && [ -n "$$(ls -A "$$dest")" ]; then \
	  echo "$$dest isn't empty. Choose another DEST, or update a service from within it: copier update" >&2; \
	  exit 2; \
	fi; \
	echo "1/2  copier copy: the template to $$dest"; \
	$(WITH_SED) "$(UV)" tool run --from "$(COPIER)" copier copy --quiet --defaults --vcs-ref HEAD $(ANSWERS) "$(CURDIR)" "$$dest"; \
	echo "2/2  make test, in $$dest"; \
	$(TESTED); \
	echo; \
	echo "$$dest: rendered and tested in $$(($$(date +%s) - began)) s. What next:"; \
	printf '  %s\n' "cd \"$$dest\"" "git init && git add -A && git commit -m 'Scaffold the service'" "make run"

test: $(UV)
	@$(WITH_SED) $(UV) run python -m pytest -n auto --dist worksteal $(ARGS)

test-faults: $(UV)
	@$(WITH_SED) $(UV) run python -m pytest -n auto --dist worksteal -m slow --ignore tests/update $(ARGS)

test-updates: $(UV)
	@$(WITH_SED) $(UV) run python -m pytest -n auto --dist worksteal -m "" tests/update $(ARGS)

recordings: $(UV)
	@$(WITH_SED) $(UV) run python -m tests.repository.recordings

bench: $(UV)
	@$(WITH_SED) $(UV) run python -m benchmarks.isolation $(ARGS)

check: $(UV)
	@$(UV) run ruff format --check .
	@$(UV) run ruff check .
	@$(UV) run ruff format --check $(HARNESS)
	@$(UV) run ruff check $(HARNESS)
	@$(UV) run python -m mypy
	@$(UV) run python -m yamllint --strict copier.yml

format: $(UV)
	@$(UV) run ruff format .
	@$(UV) run ruff check --fix .
	@$(UV) run ruff format $(HARNESS)
	@$(UV) run ruff check --fix $(HARNESS)
	@$(UV) run python -m tests.support.sums

release: $(UV)
	@$(WITH_SED) $(UV) run python -m tests.update.release "$(VERSION)"

notes: $(UV)
	@$(UV) run python -m tests.update.release --notes "$(VERSION)"

uv:;

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed. If it has another name here: make PYTHON=python3.13 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) can't make virtual environments. On Debian and Ubuntu: apt install python3-venv. Or install uv." >&2; exit 1; }
	@echo "No uv on this machine, or none since 0.4.27: putting one into .venv" >&2
	@.venv/bin/python -W ignore -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@.venv/bin/python -W ignore -m pip install --quiet --disable-pip-version-check uv
