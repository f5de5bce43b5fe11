# `make demo` and `make test` are all that a fresh machine needs: each first makes an environment, with torch for
# the CPU, or uses the active one. See .ci/environment.sh for PYTHON= and TORCH=.

IN := sh .ci/environment.sh
PYTEST = pytest -n auto --maxprocesses 8 --dist worksteal $(OPTIONS)
OPTIONS ?=
OF ?=
BENCH_JSON ?= bench/results/cpu.json

.PHONY: help demo doctor test lint test-fast test-long test-nightly test-serving test-all sanitize bench bench-gpu experiments docs dist release clean

help:
	@echo 'make demo      erase a concept from a language model and see what is left'
	@echo 'make test      lint, types, unit tests, examples: five to ten minutes on two cores'
	@echo 'make test-all  the same, then the long tier: half an hour on two slow cores'
	@echo 'make test-serving  the plugin in vLLM itself, in an environment of its own: half an hour'
	@echo 'make sanitize  the kernels alone, built with sanitizers (part of test-all)'
	@echo 'make bench     microbenchmarks against peers, into $(BENCH_JSON)'
	@echo 'make bench-gpu the same on an NVIDIA GPU, into bench/results/gpu.json: at most eight minutes'
	@echo 'make experiments  what papers claim of erasure, on real data: at most 45 minutes'
	@echo 'make doctor    what this installation has to work with'
	@echo 'make docs      the documentation as a site, into build/site/'
	@echo 'make dist      sdist and wheel, into dist/'
	@echo 'make release   VERSION=0.2.0: commit and tag a release; DRY_RUN=1 only shows it'
	@echo 'make clean     remove what was built; .venv stays'

demo:
	@$(IN) hf,audit leace-fast demo

doctor:
	@$(IN) hf,audit leace-fast doctor

# The types are checked beside the tests: that is one process of half a minute.
test:
	@$(IN) dev true
	@$(MAKE) --no-print-directory -j2 lint test-fast

test-fast:
	@$(IN) dev $(PYTEST)

lint:
	@$(IN) dev ruff check .
	@$(IN) dev ruff format --check .
	@$(IN) dev pyright

# Tests marked slow, and those of hypothesis.
test-long:
	@$(IN) dev $(PYTEST) -m '(slow or hypothesis) and not nightly'

# All that are marked nightly; with OF=origin/main those that differ from there touches, and a tenth.
test-nightly:
	@$(IN) dev $(PYTEST) -m nightly $(if $(OF),--nightly-of=$(OF))

# vLLM in .venv-serving; where no build of it fits this machine, that is said and nothing is tested.
test-serving:
	@sh .ci/serving.sh pytest -q -o addopts= --confcutdir=. . $(OPTIONS)

test-all: test test-long test-nightly

sanitize:
	@$(IN) dev pytest -m nightly tests/csrc/test_c_api.py

bench:
	@mkdir -p $(dir $(BENCH_JSON))
	@$(IN) dev pytest bench --benchmark-only --benchmark-json=$(BENCH_JSON)
	@$(IN) dev python bench/table.py $(BENCH_JSON)

# Correct first, then timed beside peers.
bench-gpu:
	@TORCH=cuda $(IN) dev python bench/gpu/run.py

# Strictly: a broken link, or a public name without an entry, is an error.
docs:
	@$(IN) docs python -m sphinx -W --keep-going -n -b html docs build/site

# All of them, or ONLY="glove spurious". What they need is fetched once into ~/.cache/leace-fast, pinned by hash.
experiments:
	@$(IN) hf,audit env PYTHONPATH=bench python -m experiments.run $(ONLY)

dist:
	@$(IN) dev python -m build --no-isolation

release:
	@$(IN) dev python .ci/release.py $(VERSION) $(if $(DRY_RUN),--dry-run)

clean:
	rm -rf build dist *.egg-info leace_fast/*.so .pytest_cache .ruff_cache .hypothesis
	find leace_fast tests -name __pycache__ -prune -exec rm -rf {} +
