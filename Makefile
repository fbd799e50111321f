# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# TORCH=cpu installs torch's small CPU build instead of the CUDA one that the package index serves by default. What is
# installed stays chosen: after `make install TORCH=cpu` a plain `make demo` keeps the CPU build.
CHOSEN := $(wildcard $(VENV)/.installed-*)
TORCH  ?= $(patsubst $(VENV)/.installed-%,%,$(firstword $(CHOSEN) $(VENV)/.installed-index))
STAMP  := $(VENV)/.installed-$(TORCH)
ifeq ($(filter index cpu,$(TORCH)),)
$(error TORCH=$(TORCH): it can be `index` or `cpu`)
endif
# Both builds have the same version, as far as pins can tell: without this the other one would pass for installed.
SWITCH := $(if $(filter-out $(STAMP),$(CHOSEN)),--reinstall-package torch)

RECENT := import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python %d.%d is too old: make PYTHON=python3.11" % v[:2])

# Some environments forbid bytecode: every import of torch then compiles it anew (3 s instead of 1.2).
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo test soak lint e2e bench-overhead bench-fairness bench-loadtest bench-alongside bench-policy bench-density bench-isolation lock reference clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## create .venv with everything that is locked, and .venv/bin/hearth

$(STAMP): pyproject.toml requirements/lock.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c '$(RECENT)' && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore uv
ifeq ($(TORCH),cpu)
	$(BIN)/uv pip install --python $(BIN)/python $(SWITCH) --torch-backend cpu \
	  --constraints requirements/lock.txt --editable '.[dev]'
else
	$(BIN)/uv pip install --python $(BIN)/python $(SWITCH) --requirements requirements/lock.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
endif
	rm -f $(VENV)/.installed-*
	touch $@

demo: install  ## two dozen models share a device budget for six
	$(BIN)/hearth demo

test: install  ## the whole test suite; policy/ must be covered branch by branch, by those of its own tests that draw nothing
	$(BIN)/python -m pytest tests/policy -m "not hypothesis" --cov=predictor.policy --cov-branch \
	  --cov-report=term-missing:skip-covered --cov-fail-under=100
	$(BIN)/python -m pytest -q tests/policy -m hypothesis
	@$(BIN)/python -m pytest -q tests/loadtest tests/sim tests/warmup >$(VENV)/beside.txt 2>&1 & beside=$$!; \
	  trap 'kill $$beside; exit 130' INT TERM; \
	  $(BIN)/python -m pytest --ignore=tests/policy --ignore=tests/loadtest --ignore=tests/sim --ignore=tests/warmup; ended=$$?; \
	  wait $$beside || ended=1; \
	  echo "tests/loadtest, tests/sim and tests/warmup, which ran beside these:"; cat $(VENV)/beside.txt; exit $$ended

soak: install  ## what takes long: the simulation with 100,000 events a seed, a pod under 20,000 requests, 1,000 dead workers
	SOAK_SIM_EVENTS=100000 SOAK_SIM_SEEDS=8 $(BIN)/python -m pytest tests/sim -q
	SOAK_REQUESTS=20000 SOAK_TURNS=200 $(BIN)/python -m pytest tests/predictor/test_many_models.py tests/predictor/test_pod_tiers.py -q -s
	SOAK_DEATHS=1000 $(BIN)/python -m pytest tests/predictor/test_pod_isolation.py -k leave_nothing -q -s
	SOAK_STALL_S=10 $(BIN)/python -m pytest tests/loadtest/test_run.py -q -s

lint: install  ## ruff, mypy, import-linter, house tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_house.py -q

e2e: install  ## a pool on a real cluster, from zero and back (KUBECONFIG and HEARTH_E2E_*: docs/cluster.md)
	$(BIN)/python -m pytest tests/e2e -x -s --timeout 900

PEERS := .venv-peers
BENCH ?=

bench-overhead: install $(PEERS)/.installed  ## overhead per request beside Triton and FastAPI (BENCH="--rounds 5 -o runs.json")
	$(BIN)/python -m loadtest.peers --peers-venv $(PEERS) $(BENCH)

bench-fairness: install $(PEERS)/.installed  ## who gets what of a shared device: floods, weights, priorities (BENCH="--rounds 1 --scenes priorities")
	$(BIN)/python -m loadtest.fairness --peers-venv $(PEERS) $(BENCH)

bench-loadtest: install  ## how many requests a second one core sends on time, and how late (BENCH="--rate 2000 --seconds 20")
	$(BIN)/python -m loadtest.bench $(BENCH)

bench-alongside: install $(PEERS)/.installed  ## the load test against Hearth and Triton, on one page (BENCH="--rate 50 200 -o alongside")
	$(BIN)/python -m loadtest.peers.alongside --peers-venv $(PEERS) $(BENCH)

bench-policy: install  ## eviction, wake-up and retention on public traces (TRACES=folder; docs/simulate.md says whose; BENCH="--jobs 2")
	@test -n "$(TRACES)" || { echo "TRACES=folder: where the downloads are (docs/simulate.md)" >&2; exit 2; }
	$(BIN)/python -m loadtest.simulation.bench --traces $(TRACES) $(BENCH)

bench-density: install  ## what one more worker takes, in memory and time (BENCH="--forked 100")
	$(BIN)/python -m loadtest.isolation.density $(BENCH)

bench-isolation: install $(PEERS)/.installed  ## evil models beside healthy ones, here and on Triton (BENCH="--seconds 5 --domains model")
	$(BIN)/python -m loadtest.isolation --peers-venv $(PEERS) $(BENCH)

# Without their dependencies: Triton and uvicorn run with the packages of $(VENV), so that torch and numpy are the same for all.
# wrk is Debian's; where there is neither apt-get nor a wrk on the PATH, the bench says so and ends.
$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps nvidia-pytriton==0.7.0 uvicorn==0.54.0 click==8.5.1 h11==0.16.0
	command -v wrk >/dev/null || { mkdir -p $(PEERS)/wrk && cd $(PEERS)/wrk && \
	  apt-get download -qq wrk libluajit-5.1-2 && for package in *.deb; do dpkg -x $$package . || exit 1; done; }
	touch $@

reference: install  ## write docs/reference/{settings,metrics,errors}.md anew
	$(BIN)/python -m predictor.reference

COMPILE := uv pip compile --quiet --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header

lock:  ## resolve the dependencies anew (needs uv on the PATH), and the images' four slices of them
	$(COMPILE) --universal --upgrade --extra dev pyproject.toml --output-file requirements/lock.txt
	echo torch | $(COMPILE) --no-annotate --constraints requirements/lock.txt - >$(VENV)/torch.txt
	echo torch >$(VENV)/excluded.txt
	$(COMPILE) --no-annotate --constraints requirements/lock.txt --excludes $(VENV)/excluded.txt pyproject.toml >$(VENV)/predictor.txt
	printf '%s\n' torch numpy onnxruntime uvloop httptools >$(VENV)/excluded.txt
	$(COMPILE) --no-annotate --constraints requirements/lock.txt --excludes $(VENV)/excluded.txt --extra controller pyproject.toml >$(VENV)/controller.txt
	printf '%s\n' torch onnxruntime uvloop httptools >$(VENV)/excluded.txt
	$(COMPILE) --no-annotate --constraints requirements/lock.txt --excludes $(VENV)/excluded.txt --extra loadtest --extra controller pyproject.toml >$(VENV)/loadtest.txt
	for slice in torch predictor controller loadtest; do \
	  { grep '^#' requirements/$$slice.txt; cat $(VENV)/$$slice.txt; } >$(VENV)/slice.txt && mv $(VENV)/slice.txt requirements/$$slice.txt; \
	done

clean:  ## remove .venv and every cache
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
