# `make` alone prints this help.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A mesh is eight processes, each of which would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run edge test clients check format protos docs dashboards slo lock sbom licences vulnerabilities bench bench-all bench-history bench-analysis score chaos chaos-full chaos-planted fuzz fuzz-wire soak rolling scale upgrade release image image-test env clean

help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP) ## install everything into .venv, from the hash-pinned lock

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

run: $(STAMP) ## start the whole mesh on this machine, with the simulator ticking
	@$(BIN)/openmanager up

edge: $(STAMP) ## run Envoy before the mesh of this machine: REST and gRPC-Web at http://127.0.0.1:50443 (ARGUMENTS=--help)
	@$(BIN)/python scripts/run_edge.py $(ARGUMENTS)

test: $(STAMP) ## run every test, three beside each other (WORKERS=3)
	@$(BIN)/python -m pytest -q --numprocesses $(or $(WORKERS),3) --dist loadfile

clients: $(STAMP) ## build clients in Go, Node.js, Java and Rust from the protos, and hold each against a mesh (minutes at first)
	@TEST_CLIENTS=1 $(BIN)/python -m pytest -q -rs tests/clients

check: $(STAMP) ## run all static checks, fastest first
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against protos/released.binpb.gz
	@$(BIN)/python scripts/protos.py --check
	@$(BIN)/python scripts/configuration.py --check
	@$(BIN)/python scripts/dashboards.py --check
	@$(BIN)/python scripts/slo.py --check
	@$(BIN)/python scripts/licences.py --check
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

format: $(STAMP) ## format the code
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

protos: $(STAMP) ## generate openmanager/api from protos/
	@$(BIN)/python scripts/protos.py

docs: $(STAMP) ## generate docs/configuration.md
	@$(BIN)/python scripts/configuration.py

dashboards: $(STAMP) ## generate deploy/grafana/dashboards
	@$(BIN)/python scripts/dashboards.py

slo: $(STAMP) ## generate deploy/slo/alerts.yaml
	@$(BIN)/python scripts/slo.py

sbom: $(STAMP) ## write dist/openmanager.cdx.json, a CycloneDX bill of what the lock installs
	@$(BIN)/python scripts/sbom.py

licences: $(STAMP) ## check the licences of what the lock installs, and write docs/licences.md
	@$(BIN)/python scripts/licences.py

vulnerabilities: $(STAMP) ## ask what is known to be vulnerable of what the lock pins; 3: the data could not be had (ARGUMENTS="-s osv")
	@$(BIN)/python scripts/vulnerabilities.py $(ARGUMENTS)

bench: $(STAMP) ## measure, each figure a ratio to a peer in the same run
	@$(BIN)/python -m bench

bench-all: $(STAMP) ## measure all of it in one run, beside what is here of VictoriaMetrics, InfluxDB, TSBS and Go (MINUTES=2 ARGUMENTS=--markdown)
	@$(BIN)/python -m bench --all --minutes $(or $(MINUTES),2) $(ARGUMENTS)

bench-history: $(STAMP) ## measure history beside VictoriaMetrics, InfluxDB and SQL (15 minutes)
	@$(BIN)/python -m bench --history

bench-analysis: $(STAMP) ## measure what a tick of the detector, a forecast and a trend cost
	@$(BIN)/python -m bench analysis

score: $(STAMP) ## hold detection and forecasts against simulated faults (5 minutes; SMALL=1: one seed, fails below its least figures)
	@$(BIN)/python -m bench.score $(if $(SMALL),--seeds 1 --days 5 --learning 2 --least-recall 0.85 --least-precision 0.75)

chaos: $(STAMP) ## break a mesh under load, part by part and at random, and prove that nothing acknowledged is lost (FAULTS=24 SEED=1)
	@$(BIN)/python -m chaos.matrix --smoke --seconds 4 --patience $(or $(PATIENCE),2)
	@$(BIN)/python -m chaos --faults $(or $(FAULTS),24) --seed $(or $(SEED),1)

chaos-full: $(STAMP) ## make every fault of the table, random ones, and every planted bug; goes on where it was (hours; FAULTS=1000 SEED=1)
	@$(BIN)/python -m chaos.full --faults $(or $(FAULTS),1000) --seed $(or $(SEED),1); found=$$?; \
		$(BIN)/python -m chaos.report chaos-results; exit $$found

chaos-planted: $(STAMP) ## plant one bug after the other, and see whether chaos finds each (FAULTS=50 SEED=1)
	@$(BIN)/python -m chaos.proving --faults $(or $(FAULTS),50) --seed $(or $(SEED),1)

fuzz-wire: $(STAMP) ## attack a mesh on the wire beside a good client, send it damaged messages, cancel calls (REQUESTS=20000 SEED=1)
	@$(BIN)/python -m fuzz.wire --requests $(or $(REQUESTS),20000) --cancellations $(or $(CANCELLATIONS),10000) --seed $(or $(SEED),1)

fuzz: $(STAMP) ## send hostile input to every method, in one process (REQUESTS=100000 SEED=1)
	@$(BIN)/python -m fuzz --requests $(or $(REQUESTS),100000) --seed $(or $(SEED),1)

soak: $(STAMP) ## break a mesh once a minute for an hour and look for what grows (MINUTES=60 SEED=1)
	@$(BIN)/python -m chaos.soak --minutes $(or $(MINUTES),60) --seed $(or $(SEED),1)

rolling: $(STAMP) ## restart every service under load, one at a time, and count the calls that fail
	@$(BIN)/python -m chaos.rolling

scale: $(STAMP) ## kill every process of two shards and two gateways under load, one at a time (STORES=cluster or sentinel: of stores with copies too)
	@$(BIN)/python -m chaos.scale $(if $(STORES),--stores $(STORES))

upgrade: $(STAMP) ## exchange the last release's services for these under load, and back (ORDER=services-first)
	@$(BIN)/python -m chaos.upgrade --order $(or $(ORDER),gateways-first)

lock: $(STAMP) ## renew the three locks from pyproject.toml (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--all-extras --group dev pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--constraint requirements.lock --extra agent pyproject.toml -o requirements-image.lock
	@printf 'hatchling>=1.27\n' | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --constraint requirements.lock - -o requirements-build.lock

release: $(STAMP) ## make wheel, sdist, bill of materials and checksums in dist/VERSION, and try the wheel (docs/releasing.md)
	@sh scripts/release.sh

image: ## build the image without an engine, as root (needs buildah; BASE_IMAGE=debian needs debootstrap and no registry)
	@sh scripts/image.sh build

image-test: $(STAMP) ## run every program of that image below its root on real stores, and write and read by TLS (as root)
	@sh scripts/image.sh test

env: ## write .env, and fresh secrets into secrets/, for docker compose
	@sh scripts/env.sh

clean: ## remove what was built here; what a mesh keeps, and what chaos found, stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
