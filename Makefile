.DEFAULT_GOAL := help
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install everything into .venv (and etcd, by apt as root or from PyPI)
	@tools/setup.sh

.PHONY: lint types imports proto-check check
lint: ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ## Types, strict
	$(BIN)/mypy

imports: ## Import contracts
	PYTHONPATH=.:gen $(BIN)/lint-imports

.PHONY: proto
proto: ## Generate gen/ from protos/
	tools/proto.sh
