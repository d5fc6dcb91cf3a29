"""Compare runs by their records: settings that differ, gate metrics with intervals, verdicts, cost.

python -m posttrain.compare RUN RUN ... --storage-root DIR
python -m posttrain.compare RUN RUN ... --objective check_sft.held_out_loss --html runs.html --csv runs.csv

run records -> a table in the terminal, as Markdown, HTML or CSV

Runs are named by run id. The trials of a sweep are runs too: `<run id>.trial_3`.
"""

import argparse
import sys

from posttrain import storage
from posttrain.config import masking
from posttrain.config.line import TRAININGS, is_rejection
from posttrain.pages import wording
from posttrain.report import published_model
from posttrain.step.records import StepRecord, read_records
from posttrain.storage import layout
from posttrain.sweep import table
from posttrain.sweep.ranking import QUALIFIED, Candidate, Cost, Ranked, measures_of, ranked
from posttrain.sweep.table import Comparison
from posttrain.verdict import Verdict

FORMS = {"markdown": table.markdown, "html": table.html, "csv": table.to_csv}


def candidate_of(storage_root: str, run_id: str, objective: str | None) -> Candidate:
    """Summarizes a run from its record.

    Raises:
        ValueError: there is no such run.
    """
    records = read_records(storage_root, run_id)
    if not records:
        raise ValueError(f"{run_id}: no such run in {layout.runs(storage_root)}: give the id of a folder there")
    verdicts = {entry.step: entry.judged for entry in records if entry.verdict}
    status, reason = end_of(records, verdicts)
    return Candidate(
        name=run_id,
        run_id=run_id,
        settings={
            f"{TRAININGS[entry.step]}.{name}": value
            for entry in records
            for name, value in (entry.config.items() if entry.step in TRAININGS else ())
        },
        status=status,
        reason=reason,
        measures={name: measure for verdict in verdicts.values() for name, measure in measures_of(verdict).items()},
        cost=cost_of(records),
        objective=objective,
    )


def end_of(records: list[StepRecord], verdicts: dict[str, Verdict]) -> tuple[str, str]:
    """Returns how a run ended, and why."""
    stopped = next((verdict for verdict in verdicts.values() if not verdict.passed), None)
    if stopped:
        return f"stopped by {stopped.gate}", wording.reason(stopped)
    latest = {entry.step: entry for entry in records if not is_rejection(entry.step)}
    broken = next((entry for entry in latest.values() if entry.status not in ("succeeded", "reused")), None)
    if broken:
        return f"{broken.status} at {broken.step}", broken.error or ""
    return QUALIFIED, "published" if published_model(records)[0] else "not published"


def cost_of(records: list[StepRecord]) -> Cost:
    """Adds up the cost of all attempts of all steps."""
    seconds = sum(entry.seconds for entry in records)
    return Cost(
        seconds=seconds,
        cpu_seconds=sum(entry.cpu_seconds for entry in records),
        peak_memory=max(entry.peak_memory for entry in records),
    )


def compare(storage_root: str, run_ids: list[str], *, objective: str | None, sign: int) -> Comparison:
    """Sorts the runs by the objective; without one they keep their order."""
    candidates = [candidate_of(storage_root, run_id, objective) for run_id in run_ids]
    if objective and not any(candidate.measure for candidate in candidates):
        known = sorted({name for candidate in candidates for name in candidate.measures})
        raise ValueError(f"--objective {objective}: no run has measured it; measured were {', '.join(known)}")
    rows = ranked(candidates, sign) if objective else [Ranked(candidate=each, place=None) for each in candidates]
    return Comparison(title="Runs", rows=rows, objective=objective)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run id")
    parser.add_argument("--storage-root", default="runs", metavar="URI", help="gs://, s3:// or folder (default: runs)")
    parser.add_argument("--objective", metavar="GATE.METRIC", help="sort by it: check_sft.held_out_loss")
    parser.add_argument("--maximize", action="store_true", help="a large objective is good")
    for form in FORMS:
        parser.add_argument(f"--{form}", metavar="FILE", help="write the table there too")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    masking.mask_output()
    try:
        comparison = compare(args.storage_root, args.runs, objective=args.objective, sign=-1 if args.maximize else 1)
    except (ValueError, OSError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    for form, write in FORMS.items():
        if file := getattr(args, form):
            storage.write_text(file, write(comparison))
    table.print_terminal(comparison)
    return 0


if __name__ == "__main__":
    sys.exit(main())
