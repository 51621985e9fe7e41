# `make demo` and `make test` do all of their own set-up; `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= .data
export PYTHON VENV

.PHONY: help
help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: demo
demo: ## Run the whole stack here and watch a GPU overheat (ARGS="--port-offset 100" moves its ports)
	@scripts/venv.sh local
	@$(BIN)/gpu-telemetry up --demo --data $(DATA) $(ARGS)

.PHONY: test
test: ## Set up all that the tests need, check, and run them (ARGS="-k name" chooses)
	@scripts/test-programs.sh
	@scripts/venv.sh dev
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(ARGS)

.PHONY: bench
bench: ## Measure what a page, a sample and a record cost (BENCH_JSON=FILE writes the figures; ARGS=--quick)
	@scripts/venv.sh dev
	@$(BIN)/python -m benchmarks $(ARGS)

# Every round begins from a seed of its own, and the seeds go up from SOAK_SEED where it is given.
SOAK_SECONDS ?= 120
.PHONY: soak
soak: ## Kill, cut, stall, fuzz and load it, each for SOAK_SECONDS; prints figures and seeds (SOAK_SEED=n repeats one)
	@scripts/test-programs.sh
	@scripts/venv.sh dev
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest tests/integration/alerting/trust $(ARGS)
	$(BIN)/python -m pytest -q --hypothesis-profile=anew tests/unit
	FUZZ_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -rP --show-capture=stdout tests/fuzz
	$(BIN)/python -m benchmarks.load --seconds $(SOAK_SECONDS) $(addprefix --seed ,$(SOAK_SEED))

.PHONY: clean
clean: ## Remove the demo's data and what the tools cached
	@scripts/clean.sh $(DATA)

.PHONY: lint
lint: ## Check style, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: dashboards
dashboards: ## Write grafana/dashboards anew from grafana/boards
	$(BIN)/python -m grafana.generate

.PHONY: lock
lock: ## Compile the pinned, hashed requirements anew
	cd requirements && for set in base local dev; do \
	  ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-header --output-file $$set.txt $$set.in || exit 1; done
