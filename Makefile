# `make` lists the targets. Needs GNU make 3.81 or newer, Rust, and Python 3.10 or newer.

# The interpreter to build and test for: `make test PYTHON=python3.13`. Each has an environment and a
# build folder of its own, so that several can be used side by side.
PYTHON ?= python3
# More arguments for the program that a target runs: `make demo ARGS=--help`, `make test-python ARGS='-k lock'`.
ARGS ?=
# More interpreters for `make matrix`, beside those on PATH and in pyenv.
PYTHONS ?=

SHELL := /bin/sh
.SUFFIXES:
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-core test-loom test-python matrix sweep soak seeded-bugs lint stubs bench bench-kills clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.13] [ARGS=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- the interpreter ------------------------------------------------------------------------------

ifneq (,$(filter-out help clean matrix,$(MAKECMDGOALS)))
  about := $(shell $(PYTHON) -ISc 'import sys, os, importlib.machinery as m; print(\
    sys.version_info >= (3, 10) and "%d.%d%s" % (sys.version_info[:2] + (sys.abiflags,)),\
    m.EXTENSION_SUFFIXES[0],\
    os.path.realpath(getattr(sys, "_base_executable", sys.executable)))')
  version := $(word 1,$(about))
  suffix := $(word 2,$(about))
  base_python := $(wordlist 3,99,$(about))
  ifeq (,$(about))
    $(error $(PYTHON) does not run. Name a Python, 3.10 or newer: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3)
  endif
  ifeq (False,$(version))
    $(error $(PYTHON) is older than 3.10. Name a newer one: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3)
  endif
  ifeq (,$(shell command -v cargo))
    $(error There is no cargo. Install Rust first: https://rustup.rs)
  endif
endif

venv := .venv/$(version)
bench_venv := .venv/bench-$(version)
target := target/py$(version)
extension := python/desist/_core$(suffix)

# As in an activated environment, which maturin and PyO3 look for.
export VIRTUAL_ENV := $(CURDIR)/$(venv)
export PYO3_PYTHON := $(CURDIR)/$(venv)/bin/python
export PATH := $(CURDIR)/$(venv)/bin:$(PATH)
unexport PYTHONHOME PYTHONPATH
# The dependency group that the tests need.
tests := test
ifeq (3.13t,$(version))
  # PyO3 does not support it any more: a pass there is evidence, not support.
  export UNSAFE_PYO3_SKIP_VERSION_CHECK := 1
  tests := test-free-threaded
endif

# $(call quietly,LOG,COMMAND): the output of COMMAND goes to LOG, and is shown only if it fails.
quietly = @mkdir -p $(dir $(1)); { $(2); } >$(1) 2>&1 </dev/null || { s=$$?; cat $(1) >&2; exit $$s; }

# $(call passed,LOG): print the number of passed Rust tests in LOG. No test at all is a failure.
passed = @awk '/^test result: ok/ { n += $$4 } END { print "   " n + 0 " passed"; exit !n }' $(1)

# --- the extension --------------------------------------------------------------------------------

sources := $(sort $(shell find src -name '*.rs')) Cargo.toml Cargo.lock pyproject.toml

# Make and cargo compare mtimes. A file that was moved or copied into place can have an old mtime, and a
# binary built before would pass for fresh. Such a file has a new ctime: touch it.
ifneq (,$(version))
  $(shell mkdir -p target; [ ! -e target/seen ] || \
    find $(sources) -cnewer target/seen ! -newer target/seen -exec touch {} +; touch target/seen)
endif

# A deleted source has no time to compare, but the list of sources differs.
$(target)/sources: FORCE
	@mkdir -p $(@D); echo '$(sources)' | cmp -s - $@ || echo '$(sources)' >$@
FORCE:

# The extension lies in python/desist, which is installed as editable: .py files are used in place. Its
# time is set to the start of its build, so that a source saved meanwhile counts as newer.
reinstall = $(filter Cargo.toml pyproject.toml $(venv)/ready,$?)
$(extension): $(sources) $(target)/sources $(venv)/ready
	@echo "building desist for CPython $(version)$(if $(wildcard $(target)/release),, (first time: about a minute))" >&2
	@touch $(target)/started
	$(call quietly,$(target)/build.log,maturin develop --release --locked --target-dir $(target) \
	    $(if $(reinstall),--group base,--skip-install))
	@touch -r $(target)/started $@

# --- the environments -----------------------------------------------------------------------------

# $(call make_venv,FOLDER): make a fresh environment, with a pip that supports dependency groups.
define make_venv
	@"$(base_python)" -Ic 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(base_python) has no ensurepip, which makes virtual environments: install it" \
	        "(Debian, Ubuntu: apt install python$(version)-venv), or name another interpreter:" \
	        "make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(1)" >&2
	@rm -rf $(1)
	$(call quietly,target/log/venv.log,"$(base_python)" -m venv $(1) && $(1)/bin/python -m pip install -qU pip)
endef

# `ready` contains the interpreter that an environment was made with; another one makes it anew.
ifneq (,$(version))
  ifneq ($(base_python),$(shell cat $(venv)/ready 2>/dev/null))
    .PHONY: $(venv)/ready
  endif
  ifneq ($(base_python),$(shell cat $(bench_venv)/ready 2>/dev/null))
    .PHONY: $(bench_venv)/ready
  endif
endif

$(venv)/ready:
	$(call make_venv,$(venv))
	$(call quietly,target/log/pip.log,$(venv)/bin/python -m pip install -q --group base)
	@echo '$(base_python)' >$@

$(venv)/group-%: pyproject.toml $(venv)/ready
	$(call quietly,target/log/pip.log,$(venv)/bin/python -m pip install -q --group $*)
	@touch $@

$(bench_venv)/ready:
	$(call make_venv,$(bench_venv))
	@echo '$(base_python)' >$@

$(bench_venv)/peers: benches/python/requirements.txt $(bench_venv)/ready
	$(call quietly,target/log/pip.log,$(bench_venv)/bin/python -m pip install -q -r $<)
	@touch $@

# Benchmarks measure a wheel, as users install it, and not the checkout.
$(bench_venv)/desist: $(extension) $(wildcard python/desist/*.py python/desist/*/*.py) $(bench_venv)/peers
	@rm -rf $(target)/wheel
	$(call quietly,$(target)/wheel.log,maturin build --release --locked --target-dir $(target) \
	    --interpreter $(venv)/bin/python --out $(target)/wheel && \
	    $(bench_venv)/bin/python -m pip install -q --no-index --no-deps --force-reinstall $(target)/wheel/*.whl)
	@touch $@

# --- the targets ----------------------------------------------------------------------------------

demo: $(extension) ## kill random workers all the time, and compare what is left
	@$(venv)/bin/desist demo $(ARGS)

test: test-core test-loom test-python ## all tests

test-core: ## ... of the Rust core alone, without Python
	@echo "== core: cargo test"
	$(call quietly,target/log/core.log,cargo test --locked --features file)
	$(call passed,target/log/core.log)

test-loom: ## ... every interleaving of the core's hand-offs
	@echo "== core: loom models"
	$(call quietly,target/log/loom.log,RUSTFLAGS="$$RUSTFLAGS --cfg loom" \
	    cargo test --release --locked --lib --target-dir target/loom loom_)
	$(call passed,target/log/loom.log)

test-python: $(extension) $(venv)/group-$(tests) ## ... of the Python package
	@echo "== CPython $(version): pytest"
	@$(venv)/bin/python -m pytest -q $(ARGS)

matrix: ## ... on every CPython that is found, 3.10 or newer, with a table at the end
	@$(PYTHON) tools/matrix.py $(addprefix --python=,$(PYTHONS)) -- $(ARGS)

sweep: $(extension) $(venv)/group-$(tests) ## ... the sweeps alone, and how many points each has
	@$(venv)/bin/python -m pytest $(wildcard tests/python/test_sweep*.py) $(ARGS)

soak: $(extension) $(venv)/group-$(tests) ## the tests that take minutes
	PROPTEST_CASES=20000 cargo test --release --locked --features file model
	cargo test --release --locked --features file --test rust -- --ignored
	$(venv)/bin/python -m pytest -m soak --timeout=3600 $(ARGS)

seeded-bugs: ## plant bugs in the core, and check that the loom models find each: half an hour
	@python3 tests/seeded_bugs.py $(ARGS)

lint: $(extension) $(venv)/group-lint ## formatting, lints, types, stub against module, spelling
	cargo fmt --check
	cargo fmt --check --manifest-path benches/rust/Cargo.toml
	cargo clippy -q --locked --all-targets -- -D warnings
	cargo clippy -q --locked --all-targets --features python --target-dir $(target) -- -D warnings
	RUSTFLAGS="$$RUSTFLAGS --cfg loom" cargo clippy -q --locked --lib --tests --target-dir target/loom -- -D warnings
	RUSTDOCFLAGS="$$RUSTDOCFLAGS -D warnings" cargo doc -q --locked --no-deps
	ruff check -q
	ruff format -q --check
	mypy
	$(venv)/bin/python -m mypy.stubtest desist
	pyright --verifytypes desist --ignoreexternal >$(target)/verifytypes.log || { cat $(target)/verifytypes.log; exit 1; }
	typos

stubs: $(venv)/group-test ## write python/desist/_core.pyi from the extension
	$(call quietly,$(target)/stubs.log,$(venv)/bin/python tools/stubs.py python/desist/_core.pyi)

bench: $(bench_venv)/desist ## measure against the peers, Rust and then Python
	@cargo run -q --release --manifest-path benches/rust/Cargo.toml
	@$(bench_venv)/bin/python benches/python/run.py $(ARGS)

bench-kills: $(bench_venv)/desist ## random kills against desist, the usual recipe and the peers: ten minutes
	@$(bench_venv)/bin/python benches/python/kills.py $(ARGS)

clean: ## remove everything that was built or downloaded
	rm -rf target benches/rust/target .venv dist .hypothesis .pytest_cache .mypy_cache .ruff_cache
	rm -f python/desist/_core.*.so
	find python tests examples benches -name __pycache__ -prune -exec rm -rf {} +
