PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
PROMPT := profiles/demo/prompt.py.txt

.PHONY: demo test check lab pictures clean

# A third of the target's 19.8 MB of weights, for everything on the device: residents, slots, draft, caches.
DEMO := $(BIN)/runtime generate --file $(PROMPT) --max-tokens 96 --device-memory 6900KB --threads 1 --verify

demo: $(INSTALLED)
	@echo '--- streamed from disk, drafted by the demo draft ---'
	@$(DEMO) --link disk
	@echo '--- the same over an emulated link of 0.25 GB/s, where transfer binds ---'
	@$(DEMO) --link emulated:250MB/s
	@echo '--- and without a draft ---'
	@$(DEMO) --link emulated:250MB/s --no-spec

test: check
	$(BIN)/pytest $(PARALLEL) -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest $(PARALLEL) -m 'not slow'

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir notebooks

pictures: $(INSTALLED)
	$(BIN)/python -m planner.figures.pictures docs/pictures

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
