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
ifneq ($(origin QUERY),undefined)
override QUERY := $(value QUERY)
export QUERY
endif
override OPTIONS := $(value OPTIONS)
export OPTIONS
N ?= 10

# What sets up prints on stderr: stdout is for what a command is asked for.
.PHONY: help
help:  ## list the commands
	@echo 'dbt_nn: neural networks as dbt models'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		awk -F '|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: demo
demo: server  ## set up, load the networks, let them write and draw
	@$(PY) scripts/demo.py

# make takes blanks from the front of a variable, and " Emma" is another token than
# "Emma": complete.py looks at what make itself was called with.
.PHONY: gpt2
gpt2: checkpoint  ## complete PROMPT="…" (OPTIONS="temperature=0.8 top_k=40")
	@MAKE_PID=$$PPID $(PY) scripts/complete.py

.PHONY: next
next: checkpoint  ## show the N=10 likeliest tokens after PROMPT="…"
	@MAKE_PID=$$PPID $(PY) scripts/complete.py --next '$(N)'

.PHONY: look
look: checkpoint  ## look inside gpt2 on PROMPT="…": a table, and output/look.html
	@MAKE_PID=$$PPID $(PY) scripts/look.py

.PHONY: ddpm
ddpm: checkpoint  ## draw images (OPTIONS="seed=3 batch_size=4") to pictures/
	@$(PY) scripts/draw.py

.PHONY: search
search: encoder  ## find the paragraphs of a novel nearest to QUERY="…"
	@$(PY) scripts/search.py

.PHONY: setup
setup:  ## make .venv and install the locked packages
	@sh scripts/setup.sh >&2

.PHONY: setup-test
setup-test:
	@sh scripts/setup.sh test

.PHONY: server
server: setup  ## start the embedded PostgreSQL (or check your own)
	@$(PY) scripts/server.py start >&2

.PHONY: stop
stop:  ## stop the embedded PostgreSQL
	@if [ -x $(PY) ]; then $(PY) scripts/server.py stop; fi

.PHONY: checkpoint
checkpoint: server  ## load the bundled checkpoints if they are not loaded yet
	@$(PY) scripts/load_checkpoint.py checkpoints/gpt2-twin \
		--name gpt2_twin --if-changed >&2
	@$(PY) scripts/load_checkpoint.py checkpoints/ddpm-twin \
		--name ddpm_twin --if-changed >&2

.PHONY: encoder
encoder: server  ## load all-MiniLM-L6-v2 if it is not loaded yet (91 MB, once)
	@$(PY) scripts/load_checkpoint.py sentence-transformers/all-MiniLM-L6-v2 \
		--name minilm --if-changed >&2

.PHONY: seed
seed: checkpoint  ## load the default prompts and texts, seeds/*.csv
	@$(DBT) --quiet seed

.PHONY: docs
docs: checkpoint  ## write the documentation site to target/static_index.html
	@$(DBT) docs generate --static
	@echo 'open target/static_index.html, or run .venv/bin/dbt docs serve'

.PHONY: lineage
lineage: checkpoint  ## draw docs/lineage.png anew (needs Chromium or Chrome)
	@$(PY) scripts/lineage.py

.PHONY: look-pictures
look-pictures: checkpoint  ## draw docs/look*.png anew (needs Chromium or Chrome)
	@$(PY) scripts/look_pictures.py

.PHONY: test
test: lint seed  ## check style, and run all tests but the long ones
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not long'

.PHONY: test-long
test-long: setup-test seed  ## run the others but `make distributed`: faults, mutations, documents
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long \
		--ignore tests/python/spark/test_spark_cluster.py

.PHONY: distributed
distributed: setup-test  ## try networks on a Spark cluster here (Java; DISTRIBUTED_TEXTS=3000)
	@REQUIRE_JAVA=1 $(PY) -m pytest tests/python/spark/test_spark_cluster.py

.PHONY: check
check: checkpoint  ## compare every layer with transformers and diffusers
	@$(PY) scripts/check.py

.PHONY: bench
bench: setup-test checkpoint  ## time the networks beside others, into docs/benchmarks.md
	@$(PY) scripts/bench.py --write

# Layers in both forms, see macros/engines/form.sql. Blocks and layers after the first
# of a kind differ in their number only; an incremental model looks for its table.
.PHONY: lint
lint: setup-test  ## check Python, YAML and SQL, without a database
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(DBT) --quiet parse --target-path target/lint
	@$(DBT) --quiet compile --target-path target/lint/plain \
		--no-introspect --no-populate-cache --exclude config.materialized:incremental
	@$(DBT) --quiet compile --target-path target/lint/fast --vars 'compiled_kernels: fast' \
		--no-introspect --no-populate-cache --select config.materialized:layer \
		--exclude test_type:data
	@find target/lint/*/compiled/dbt_nn/models -name '*.sql' -type f \
		! -name '*_h_[1-9]*' ! -name '*_layer_[1-9]*' ! -name '*blocks_[1-9]*' ! -name '*resnets_[1-9]*' \
		! -name '*attentions_[1-9]*' -exec $(PY) -m sqlfluff lint {} +

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
	@rm -rf target logs .pytest_cache integration_tests/target \
		integration_tests/logs integration_tests/dbt_packages .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean:  ## remove all that was set up, .venv and the database with its data too; asks (YES=1)
	@if [ -x $(PY) ]; then \
		$(PY) scripts/uninstall.py $(if $(filter 1 yes,$(YES)),--yes); \
	elif [ -e .postgres ]; then \
		echo 'error: to stop its server, Python packages are needed: make setup' >&2; \
		exit 1; \
	else \
		echo 'nothing is set up here'; \
	fi
