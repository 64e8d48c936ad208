# `make` prints what there is. Everything is set up on first use.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python
DBT := .venv/bin/dbt

export DO_NOT_TRACK := 1
export DBT_SEND_ANONYMOUS_USAGE_STATS := false
export HF_HUB_DISABLE_TELEMETRY := 1
# the interpreter for .venv, if python3 is not the one: make PYTHON=python3.12
export PYTHON

# Taken as they are written (make would expand a $ in them, a shell the quotes),
# and handed on in the environment.
ifneq ($(origin PROMPT),undefined)
override PROMPT := $(value PROMPT)
export PROMPT
endif
override OPTIONS := $(value OPTIONS)
export OPTIONS

.PHONY: help
help:  ## list the commands
	@echo 'dbt_nn: neural networks as dbt models'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		awk -F '|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: demo
demo: seed  ## set up, load the bundled networks, let them write and draw
	@$(PY) scripts/demo.py

.PHONY: gpt2
gpt2: checkpoint  ## complete PROMPT="…" (OPTIONS="temperature=0.8 top_k=40")
	@$(PY) scripts/complete.py

.PHONY: ddpm
ddpm: checkpoint  ## draw images (OPTIONS="seed=3 batch_size=4") to pictures/
	@$(PY) scripts/draw.py

.PHONY: setup
setup:  ## make .venv and install the locked packages
	@sh scripts/setup.sh

.PHONY: setup-test
setup-test:
	@sh scripts/setup.sh test

.PHONY: server
server: setup  ## start the embedded PostgreSQL (or check your own)
	@$(PY) scripts/server.py start

.PHONY: stop
stop:  ## stop the embedded PostgreSQL
	@if [ -x $(PY) ]; then $(PY) scripts/server.py stop; fi

.PHONY: checkpoint
checkpoint: server  ## load the bundled checkpoints if they are not loaded yet
	@$(PY) scripts/load_checkpoint.py checkpoints/gpt2-twin \
		--name gpt2_twin --if-changed
	@$(PY) scripts/load_checkpoint.py checkpoints/ddpm-twin \
		--name ddpm_twin --if-changed

.PHONY: seed
seed: checkpoint  ## load the default prompts, seeds/prompts.csv
	@$(DBT) --quiet seed --select prompts

.PHONY: docs
docs: checkpoint  ## write the documentation site to target/static_index.html
	@$(DBT) docs generate --static
	@echo 'open target/static_index.html, or run .venv/bin/dbt docs serve'

.PHONY: test
test: lint seed  ## run every check and test
	@$(PY) -m pytest -n 2 --dist loadfile

.PHONY: check
check: checkpoint  ## compare every layer with transformers and diffusers
	@$(PY) scripts/check.py

.PHONY: test-fast
test-fast: lint seed  ## the same without the slow tests
	@$(PY) -m pytest -n 2 --dist loadfile -m 'not slow'

.PHONY: bench
bench: setup-test checkpoint  ## time the networks beside transformers and diffusers
	@$(PY) scripts/bench.py

# Blocks and layers after the first of a kind differ in their number only; an
# incremental model looks for its table.
.PHONY: lint
lint: setup-test  ## check Python, YAML and SQL, without a database
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(DBT) --quiet parse --target-path target/lint
	@$(DBT) --quiet compile --target-path target/lint \
		--no-introspect --no-populate-cache --exclude config.materialized:incremental
	@find target/lint/compiled/dbt_nn/models -name '*.sql' -type f \
		! -name '*_h_[1-9]*' ! -name '*blocks_[1-9]*' ! -name '*resnets_[1-9]*' \
		! -name '*attentions_[1-9]*' ! -path '*/unit_tests/*' -exec $(PY) -m sqlfluff lint {} +

.PHONY: format
format: setup-test  ## bring Python files to that style
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

.PHONY: lock
lock: setup  ## write both requirements files anew from pyproject.toml
	@$(PY) -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@sh scripts/lock.sh

.PHONY: clean
clean:  ## remove what dbt and the tools wrote
	@rm -rf target logs .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## also remove .venv and the database with all its data
	@if [ -x $(PY) ]; then $(PY) scripts/server.py delete; fi
	@rm -rf .venv
