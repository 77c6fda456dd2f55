# make demo   the whole chain on a sample of real CT, in minutes, on two CPU cores
# make pretrained   the networks that ship, trained again; about an hour on two free CPU cores. A try:
#                   SET='--train.steps=60'
# make findings   docs/findings.md: four sweeps, evaluated, with SHARDS=, PAIRS=, BESIDE=, SWEEPS=, SET=; goes on where it stopped
# make test   every check and test; what .ci/run calls
# make mutants   faults planted in the deciding modules, and which of them no test notices; hours
PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell nproc)

.PHONY: env demo findings pretrained packages test test-others test-slurm test-runs lint mutants clean

env: .venv/ready

.venv/ready: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@

demo: env
	$(BIN)/python shards/sample.py data/sample
	$(BIN)/python shards/simulate.py data/sample data/demo --dose 0.25 --i0 auto --seed 0 --workers $(CORES)
	$(BIN)/python shards/build.py data/demo data/shards --split slabs --shard-slices 4 --workers $(CORES)
	$(BIN)/python launch/sweep.py configs/sweeps/demo.yaml --cluster configs/clusters/local.yaml \
		--set data.shards=data/shards
	$(BIN)/python launch/evaluate.py runs/demo --shards data/shards
	$(BIN)/python launch/compare.py runs/demo --output runs/demo/report.html \
		--require-gain 2 --require-best-gain 3

SHARDS ?= data/shards
# with the weights of VGG16 also redcnn_perceptual
SWEEPS ?= rates attention redcnn_variants longer
# of the sweep called longer: twice the default
LONGER ?= 40000
# settings of the sweeps redcnn_* alone, e.g. --set optim.lr=1e-3 where its own rate would need days
VARIANTS ?=
# shards whose test slices stand beside the pairs, in one column
BESIDE ?=
# the rates only choose
COMPARED = $(patsubst %,runs/%,$(filter-out rates,$(SWEEPS)))
findings: env
	for sweep in $(SWEEPS); do \
		case $$sweep in longer) more="--set train.steps=$(LONGER)";; redcnn_*) more="$(VARIANTS)";; *) more=;; esac; \
		$(BIN)/python launch/sweep.py configs/sweeps/$$sweep.yaml --cluster configs/clusters/local.yaml \
			--set data.shards=$(SHARDS) $(SET) $$more || exit; done
	for sweep in $(COMPARED); do \
		$(BIN)/python launch/evaluate.py $$sweep --ablate $(if $(PAIRS),--pairs $(PAIRS),--shards $(SHARDS)) || exit; \
		$(if $(BESIDE),$(BIN)/python launch/evaluate.py $$sweep --shards $(BESIDE) --name simulated || exit;) done
	$(BIN)/python launch/findings.py $(COMPARED) --shards $(SHARDS) --split $(if $(PAIRS),pairs,test) \
		$(if $(BESIDE),--beside simulated) -o docs/findings.md

pretrained: env
	$(BIN)/python shards/sample.py data/sample
	$(BIN)/python shards/sample.py data/chest --which chest
	test -d data/chest-soft || $(BIN)/python shards/soften.py data/chest data/chest-soft
	$(BIN)/python shards/simulate.py data/sample data/general/abdomen --recipe varied --variants 16 --seed 0 \
		--workers $(CORES)
	$(BIN)/python shards/simulate.py data/chest-soft data/general/chest --recipe varied --variants 4 --seed 0 \
		--workers $(CORES)
	$(BIN)/python shards/build.py data/general data/shards-general --split slabs --workers $(CORES) \
		--full '*/{patient}/full_*/*.IMA' --quarter '*/{patient}/quarter_*/*.IMA'
	for network in "general 48" "small 16"; do \
		set -- $$network; \
		OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node 2 launch/train.py \
			--config configs/train/general.yaml --data.shards data/shards-general --run_dir runs/redcnn-$$1 \
			--model.channels=$$2 $(SET) && \
		$(BIN)/python -m ldct.inference.pretrained runs/redcnn-$$1 redcnn-$$1 --shards data/shards-general \
			--about configs/pretrained/shared.yaml configs/pretrained/redcnn-$$1.yaml --folder runs/redcnn-$$1/pretrained || \
		exit; done

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# three processes: what waits for SLURM, for ranks and for W&B leaves the processor to the others
test: lint packages
	@$(MAKE) --no-print-directory --jobs 3 test-others test-slurm test-runs

SLURM := tests/slurm
RUNS := tests/ldct/training tests/ldct/runs tests/ldct/benchmarks
test-others: env
	$(BIN)/python -m pytest $(addprefix --ignore ,$(SLURM) $(RUNS))

test-slurm: CHOSEN = $(SLURM)
test-runs: CHOSEN = $(RUNS)
test-slurm test-runs: env
	@$(BIN)/python -m pytest $(CHOSEN) >.venv/$@.log 2>&1; status=$$?; cat .venv/$@.log; exit $$status

# SLURM, a browser, a DICOM checker and encoders for the tests, where this user may install them; where one is missing
# its tests say that they cannot run
packages: env
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		command -v slurmctld >/dev/null || $(BIN)/python slurm/devcluster install; \
		{ command -v chromium && command -v dciodvfy && command -v dcmcjpeg; } >/dev/null || { \
			apt-get update -q && apt-get install -q -y --no-install-recommends chromium dicom3tools dcmtk; }; \
	fi

# goes on where it was interrupted; `mutmut show NAME` prints a fault, `rm -r mutants` starts afresh
mutants: env
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .[dev,mutants]
	nice -n 19 $(BIN)/mutmut run --max-children 1
	$(BIN)/mutmut results

clean:
	rm -rf .venv data runs mutants
