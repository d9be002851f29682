# `make quickstart` and `make test` work from a fresh clone with Python 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install quickstart study test lint types tests bench drills fuzz clean

install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnascl needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@# Compared with in tests; each pins old releases of others, which these tests do not need.
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1 robustbench==1.1.1 torchdistill==1.1.5
	touch $(READY)

# The main job: the whole chain on real digits, ending in runs/quickstart/report/report.html.
quickstart: $(READY)
	$(BIN)/rnascl quickstart --out runs/quickstart --force

# The comparisons of docs/results/study.md; hours. The same call goes on with a stopped one. make study DATA=... TEACHER=...
STUDY ?= cifar10-cpu
DATA ?= cifar10
TEACHER ?= r18
study: $(READY)
	$(BIN)/rnascl study $(STUDY) --data $(DATA) --teacher $(TEACHER) --out runs/study-$(STUDY)

test: lint types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

tests: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# Fifteen minutes on an idle machine; exits 1 where a ratio fell since benchmarks/baseline.json. See docs/performance.md.
bench: $(READY)
	$(BIN)/python -m benchmarks --compare

# Kills each stage twenty times at random moments and resumes it; see docs/reliability.md.
drills: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability.drills --kills 20

# Ten minutes on every reader of files, by atheris where it is installed and by hypothesis where not; then options,
# recipes and artifacts at twenty times their usual number. See docs/reliability.md.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.fuzz --seconds 600
	OMP_NUM_THREADS=1 PROPERTY_TIMES=20 $(BIN)/pytest tests/property

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
