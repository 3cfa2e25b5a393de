# `make run` and `make test` do all the set-up on a fresh machine (Debian, Python 3.11, make).
PYTHON ?= python3
FOLDER ?= runs/udrl-lunarlander-$(shell date +%Y%m%d-%H%M%S)
MINUTES ?= 8
BIN := .venv/bin
READY := .venv/.installed

.PHONY: install run test long fast cluster tools lint proto bench gpu zoo screenshots clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --prefer-binary -c constraints.txt -e '.[dev]'
	$(BIN)/pip check
	touch $(READY)

# Trains UDRL on LunarLander through Ray for $(MINUTES) minutes, then scores the best weights, draws the curve and films them.
run: install
	$(BIN)/python -m bigdm_ray.run udrl lunarlander --budget.minutes $(MINUTES) --folder $(FOLDER)
	$(BIN)/python -m bigdm_ray.evaluate $(FOLDER) --weights best --episodes 100 --video
	$(BIN)/python -m bigdm_ray.plots $(FOLDER)

# What is on Ray comes last: each of the two processes has a Ray of its own, which its tests join.
test: install lint
	$(BIN)/python -m pytest -n 2 -m "not ray and not long and not cluster"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "ray and not long"

# What takes too long for every change.
long: install
	$(BIN)/python -m pytest -m long

# The part without Ray and without slow tests.
fast: install
	$(BIN)/python -m pytest -n 2 -m "not slow and not ray and not long and not cluster"

# A cluster of two machines, which are namespaces of this one, from `ray up` to `ray down`. Takes root.
cluster: install tools
	$(BIN)/python -m pytest -m cluster

tools:
	clusters/rehearsal.sh --install

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is generated of bigdm_ray/serving/policy.proto.
proto: install
	$(BIN)/python -m tests.protobuf

bench: install
	$(BIN)/python -m tests.benchmarks.rollout
	$(BIN)/python -m tests.benchmarks.replay
	$(BIN)/python -m tests.benchmarks.ring
	$(BIN)/python -m tests.benchmarks.memory

# Every figure that needs a GPU, in less than 10 minutes; neither Ray nor a simulator is needed.
gpu:
	python3 -m tests.benchmarks.gpu --out gpu.json

# Puts the last weights of finished runs, each in a folder ALGORITHM-TASK, into the package:
# make zoo RUNS="runs/a/udrl-cartpole ..." [ABOUT="what its card says it is"]
# ABOUT is said of every one of RUNS: with it, give one at a time. The old policy goes when the new one is packed.
zoo: install
	for run in $(RUNS); do \
	  old=bigdm_ray/zoo/$$(basename $$run); new=bigdm_ray/zoo/.$$(basename $$run).new; rm -rf $$new; \
	  $(BIN)/python -m bigdm_ray.evaluate $$run --episodes 100 && \
	  $(BIN)/python -m bigdm_ray.weights pack $$run --folder $$new $(if $(ABOUT),--description "$(ABOUT)") && \
	  rm -rf $$old && mv $$new $$old || exit 1; \
	done

# The pictures of the dashboards in docs/clusters.md; needs Debian's chromium-headless-shell.
screenshots: install
	$(BIN)/python -m tests.screenshots

clean:
	rm -rf .venv build dist *.egg-info
