# make demo   real images in, trained DIC-GAN and latent DDIM, samples, metrics and an HTML report out
# make test   lint, types and the whole test suite
# make fuzz   10,000 changed files of every kind that may come from a stranger: ten minutes
# make soak   half an hour of training under watch, then 1,000 kills of four commands: two hours or more
# make test-matrix   every preset on every kind of data set, all combinations: some hours
PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 10

.PHONY: demo test test-matrix fuzz soak lint bench clean

demo: .venv/.installed
	$(BIN)/python demo/run.py --minutes $(MINUTES)

test: .venv/.installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-matrix: .venv/.installed-dev
	TEST_MATRIX=whole $(BIN)/python -m pytest tests/test_matrix.py -n 2 --dist worksteal

fuzz: .venv/.installed-dev
	$(BIN)/python tests/fuzz --count 10000

soak: .venv/.installed-dev
	$(BIN)/python tests/faults/soak.py --minutes 30
	$(BIN)/python tests/faults --kills 1000

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python benchmarks/bench_train.py --cfg fastgan_demo,dicgan_demo --resolution 64 --batch 16

.venv/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf demo/out
