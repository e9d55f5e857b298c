# Two commands do everything on a fresh machine: `make demo` and `make test`.
# .venv      the daemon, the verifier and the test tools
# .venv-box  the sandbox's box image: the payload's requirements, torch for the CPU, llama.cpp's converter
# .venv-vast the market's own client, which `make test` holds against the sandbox

PYTHON ?= python3
BIN := .venv/bin
BOX := .venv-box
PYTEST := $(BIN)/python -m pytest
CHAOS := $(BIN)/python -m tests.chaos
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# llama.cpp for any x86-64 with AVX2, not for this very processor: a virtual machine may list AMX, and end who uses it.
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF

part = @start=$$(date +%s); $(2); code=$$?; echo "== $(1): $$(( $$(date +%s) - start )) s"; exit $$code

.PHONY: demo test test-full setup lint coverage chaos soak bench clean fuzz

demo: setup
	@$(BIN)/jobctl demo --image $(BOX)

setup: .venv/.made
	$(call part,box image,$(BIN)/python -m daemon.sandbox.image $(BOX))

.venv/.made: pyproject.toml
	@echo "making .venv; llama-cpp-python is compiled from source, about 5 minutes on 2 cores"
	$(call part,.venv,$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet -e '.[verify$(comma)test]' && touch $@)

.venv-vast/.made:
	$(call part,.venv-vast,$(PYTHON) -m venv .venv-vast && .venv-vast/bin/python -m pip install --quiet vastai==1.9.1 && touch $@)

comma := ,
# Two workers, each file on one of them: most of these tests wait for other processes.
TWO := -n 2 --dist loadfile

test: setup .venv-vast/.made lint
	$(call part,unit,$(PYTEST) tests/test_imports.py tests/test_excepts.py tests/unit $(TWO))
	$(call part,simulation,$(PYTEST) tests/simulation tests/chaos -m "not full" $(TWO))
	$(call part,payload,$(PYTEST) tests/payload -m "not full" $(TWO))
	$(call part,integration,$(PYTEST) tests/integration -m "not full" $(TWO))
	$(call part,acceptance,$(PYTEST) tests/acceptance -m "not full" $(TWO))
	$(call part,chaos,$(CHAOS) --runs 0:25 --jobs 2)

# What does not fit into `make test`; results with their date are in docs/operations.md.
test-full: test
	$(call part,full,$(PYTEST) tests -m full)

lint: setup
	$(call part,ruff,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call part,mypy,$(BIN)/mypy && $(BIN)/mypy --platform win32 && $(BIN)/mypy --platform darwin)

# By hand: branch coverage of the folders that decide, each at least 95 %, by unit and integration tests, by the payload's
# test of rebuilding, whose one half is the daemon's, and by lives of the full tier, which run the whole of control in one
# process.
COVERED := domain control market artifacts
LIVES ?= 21000:21060

coverage: setup
	@mkdir -p .cache
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest tests/unit tests/integration tests/payload/test_rebuild.py -m "not full"
	@$(BIN)/coverage run -m tests.simulation.full --seeds $(LIVES)
	@$(BIN)/coverage combine --quiet
	@failed=0; for folder in $(COVERED); do echo "== $$folder"; \
		$(BIN)/coverage report --include="daemon/$$folder/*" --fail-under=95 || failed=1; done; exit $$failed

# Real kills of the installed wheel; a failure prints its run's number, which is the seed. `make test` has the first 25.
N ?= 25
chaos: setup
	$(call part,chaos,$(CHAOS) --runs 0:$(N) --jobs 2)

# N more runs from where tests/chaos/ledger.jsonl ends, recorded there.
soak: setup
	$(call part,soak,nice $(CHAOS) --next $(N) --jobs 2 --record)

# By hand: every reader of what a machine or the market sends, under atheris, S seconds each.
S ?= 60
fuzz: setup
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet -e '.[fuzz]'
	$(call part,fuzz,nice $(BIN)/python -m tests.fuzz --seconds $(S))

# By hand; results go to docs/performance.md.
bench: setup
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv .venv-box .venv-vast .cache build dist
