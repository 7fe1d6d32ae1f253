# Every target sets up .venv first, once, and again when the dependencies change; nothing outside this folder is touched.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test slow check fix sanitize equality soak bench docs clean

BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs-installed # what only `make docs` needs, so that nothing else waits for it
NATIVE := cmake/CMakeLists.txt $(addprefix w2v_ray/text/,_beam.cpp _align.hpp _ngram.hpp) # the C++ module, built again when these change
# The sanitizers' libraries come before Python; Python's own leaks at exit are not looked at.
SANITIZED = ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so) $$(c++ -print-file-name=libstdc++.so.6)" \
  $(BIN)/python tests/native/run_with.py build/sanitize
PYTHONS := python3.12 python3.11 python3

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP) ## create .venv and install everything into it (about 3 GB)

# A name on PATH may be a launcher for an interpreter that is not there: only one that runs and is new enough counts.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	@if [ ! -x $(BIN)/python ]; then \
	  python=; \
	  for name in $(PYTHONS); do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then echo "no Python 3.11 or newer on PATH (tried: $(PYTHONS)); install one" >&2; exit 1; fi; \
	  echo "creating .venv with $$("$$python" --version)"; \
	  "$$python" -m venv .venv || { rm -rf .venv; echo "$$python cannot create environments; install its venv package" >&2; exit 1; }; \
	fi
	@$(BIN)/python -m pip install -q -c constraints.txt uv || echo "uv cannot be installed; using pip, which is slower" >&2
	@if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[test,dev]'; then :; else \
	  $(BIN)/python -m pip install -c constraints.txt -e '.[test,dev]'; \
	fi
	@$(BIN)/python -m pip install -q -c constraints.txt --no-deps pyctcdecode # its metadata asks for NumPy below 2; its code does not
	@$(BIN)/python -m pip install -q -c constraints.txt --no-deps axe-playwright-python # for the axe-core in it alone
	@touch $@

demo: setup ## transcribe the speech that ships with the project
	@$(BIN)/w2v-ray demo

test: setup ## the whole test suite, without what needs a GPU or is in `make slow`
	$(BIN)/python -m compileall -q w2v_ray # for the hundreds of processes it starts, where they may not write bytecode
	$(BIN)/pytest

slow: setup ## what takes too long for every change (an hour): all commands of the documentation, clusters, three nights, the recipes of the demo
	$(BIN)/pytest -m slow

check: setup ## lint, format, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_imports.py

fix: setup ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize: setup ## the native module's tests and five minutes of hostile input under ASan and UBSan (needs cmake)
	cmake -S cmake -B build/sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DW2V_RAY_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	cmake --build build/sanitize
	$(SANITIZED) pytest tests/text -p no:cacheprovider
	$(SANITIZED) tests/native/fuzz_beam.py --minutes 5

equality: setup ## the beam search beside pyctcdecode on 2,000 random cases and 500 noisy utterances (some minutes)
	$(BIN)/python tests/native/equality_beam.py

soak: setup ## ten minutes in which workers are killed every few seconds, and the rows compared with those of a quiet run
	$(BIN)/python benchmarks/soak.py --minutes 10

bench: setup ## every benchmark but the soak, one after another; each prints one JSON line
	@for script in $(filter-out benchmarks/soak.py benchmarks/gpu_figures.py,$(wildcard benchmarks/*.py)); do echo "== $$script" >&2; $(BIN)/python "$$script"; done

$(DOCS_STAMP): $(STAMP) pyproject.toml constraints.txt
	@if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt 'mkdocs-material>=9.8,<10' 'mkdocstrings[python]>=1,<2'; else \
	  $(BIN)/python -m pip install -c constraints.txt 'mkdocs-material>=9.8,<10' 'mkdocstrings[python]>=1,<2'; \
	fi
	@touch $@

docs: $(DOCS_STAMP) ## rewrite the generated parts of docs/ and the schema of job files, check every link, build build/site
	$(BIN)/w2v-ray schema > pipelines/job.schema.json
	$(BIN)/python docs/build.py
	$(BIN)/pytest tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean: ## remove the environment, caches and builds
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
