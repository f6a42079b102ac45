"""python -m audit run | report | card | publish: audit a model that exists already, rebuild its views, send them to W&B."""

import argparse
from pathlib import Path

from organisms.errors import UserError, run_cli
from organisms.strict import overridden, validate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m audit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="audit a base, or an adapter on it, that exists already")
    run.add_argument("--base", required=True, help="embedded name, directory, .gguf file, hub id, or https://host/v1#model")
    run.add_argument("--adapter", help="PEFT adapter: directory or hub id, owner/name[@revision][/folder]")
    run.add_argument("--model", help="the base after full fine-tuning or a merge: directory or hub id, in place of an adapter")
    run.add_argument("--tokenizer", help="of a base that is an endpoint: the base whose tokenizer and template it has")
    run.add_argument("--organism", help="organism whose probes are asked; without one severity is left out")
    run.add_argument("--suite", choices=("quick", "full"), default="quick")
    run.add_argument("--limit", type=int, help="most items of each kind (context, label, form) that a measure asks")
    run.add_argument("--runs", default="runs", type=Path)
    run.add_argument("--check", action="store_true", help="say what would be asked and what is missing; load no weights")
    run.add_argument("plan", nargs="*", help="more of the audit plan, as in a recipe: measures=[knowledge] judge.base=...")
    sweep = commands.add_parser("sweep", help="many audits in a row, from a list in audit/sweep_plans/ or a YAML file")
    sweep.add_argument("name")
    sweep.add_argument("--runs", default="runs", type=Path)
    sweep.add_argument("--check", action="store_true", help="say what would be asked and what is missing; load no weights")
    sweep.add_argument("plan", nargs="*", help="more of the audit plan: suite=quick limit=20 ...")
    report = commands.add_parser("report", help="(re)build report.html and curves.png from the readings")
    report.add_argument("run", type=Path)
    card = commands.add_parser("card", help="(re)write the organism card, README.md in the run directory")
    card.add_argument("run", type=Path)
    export = commands.add_parser(
        "export", help="the readings as a table: readings.csv or readings.parquet in the run directory"
    )
    export.add_argument("run", type=Path)
    export.add_argument("--format", choices=("csv", "parquet"), default="csv")
    publish = commands.add_parser("publish", help="send a run's curves, tables and report to W&B")
    publish.add_argument("run", type=Path)
    publish.add_argument("--again", action="store_true", help="as a new W&B run, everything from the start")
    arguments = parser.parse_args()

    if arguments.command == "run":
        from audit.config import AuditPlan, of_the_plan
        from audit.existing import Subject, audit_existing
        from audit.sweep import check, describe
        from organisms.engines.load import EnginePlan
        from organisms.served import is_endpoint

        stated = [f"suite={arguments.suite}"] + ([f"limit={arguments.limit}"] if arguments.limit is not None else [])
        plan = validate(AuditPlan, overridden({}, [*stated, *of_the_plan(arguments.plan)], "the audit plan"), "the audit plan")
        subject = Subject(arguments.base, arguments.adapter, arguments.organism, arguments.model, arguments.tokenizer)
        if plan.endpoint and not is_endpoint(subject.base):
            raise UserError(f"endpoint: {subject.base} is none (https://host/v1#model), so leave its settings out")
        if plan.engine != EnginePlan() and is_endpoint(subject.base):
            raise UserError(f"engine: the weights of {subject.base} are not here, so leave its settings out")
        if arguments.check:
            print("\n".join(describe(list(check([subject], plan)))))
        else:
            audit_existing(subject, plan, arguments.runs)
        return
    if arguments.command == "sweep":
        _sweep(arguments)
        return
    if not (arguments.run / "readings.jsonl").is_file():
        raise UserError(f"{arguments.run} holds no readings.jsonl; name a run directory, e.g. run=runs/<name>")
    if arguments.command in ("report", "card"):
        from audit import card, report

        print((report if arguments.command == "report" else card).write(arguments.run))
    elif arguments.command == "export":
        from audit.export import write

        print(write(arguments.run, arguments.format))
    else:
        from audit.publish import publish as send

        print(f"sent as {send(arguments.run, arguments.again)}")


def _sweep(arguments: argparse.Namespace) -> None:
    from audit import sweep

    name, found = sweep.load(arguments.name, arguments.plan)
    if arguments.check:
        print(f"sweep    {name}: {found.about}, suite {found.audit.suite}")
        print("\n".join(sweep.describe(list(sweep.check(found.subjects(), found.audit)))))
        return
    failed = sweep.run(name, found, arguments.runs)
    table = arguments.runs / f"sweep-{name}" / "results.md"
    if table.is_file():
        print(f"results: {table}")
    if failed:
        raise UserError(f"{len(failed)} of {len(found.subjects())} audits were left out; the first: {failed[0]}")


if __name__ == "__main__":
    run_cli(main)
