"""Compares the trials of a sweep: the table in every form, and the winner's configuration.

results of the newest rung's trials -> comparison.html, comparison.md, trials.csv, winner.yaml, its overrides

They are also written to the run's folder, `<storage_root>/runs/<run id>/<step>/`, the first three even if no trial
qualifies, winner.yaml only for a winner. The checkpoints of trials that lost are removed: they are several times as
large as an adapter.
"""

import argparse
import json
import logging
from typing import Any

import yaml

from posttrain import config, storage
from posttrain.config import PipelineConfig, merged
from posttrain.config.line import TRAININGS
from posttrain.config.sweep import CompareStep, nested
from posttrain.step import frame, kfp_io, run
from posttrain.step.records import read_records
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.sweep import table
from posttrain.sweep.children import IS_FINAL
from posttrain.sweep.ranking import Candidate, Ranked, ranked
from posttrain.sweep.study import Study
from posttrain.sweep.table import Comparison
from posttrain.train import checkpoints

PARAMETERS = ("base_model", "sft_dataset", "preference_dataset", "storage_root", "model_name")
NAMES = {"table": "comparison.html", "summary": "comparison.md", "csv": "trials.csv", "winner": "winner.yaml"}

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument(
        "--rows",
        required=True,
        help="URIs of the results of the rung's trials, a JSON list for each step that ran some",
    )
    for name in PARAMETERS:
        if name != "storage_root":
            parser.add_argument(f"--{name.replace('_', '-')}", required=True, help="of the run, for the winner's file")
    parser.add_argument("--table", required=True, help="output: the table with two plots, HTML")
    parser.add_argument("--summary", required=True, help="output: the table, Markdown")
    parser.add_argument("--csv", required=True, help="output: all numbers, CSV")
    parser.add_argument("--winner", required=True, help="output: the winner's configuration, YAML")
    parser.add_argument("--best", help="output: the run's overrides with the winner's settings, JSON")
    return parser


def compare(study: Study, rung: int, title: str) -> Comparison:
    """Returns the trials as they stand at a rung, the best first."""
    rows = ranked(study.all(study.sweep.rungs[rung]), study.sweep.objective.sign)
    return Comparison(title=title, rows=rows, objective=study.sweep.objective.name)


def winner_config(pipeline: dict[str, Any], parameters: dict[str, str], overrides: dict[str, Any]) -> str:
    """Returns the line's configuration with the winner's settings, for `run_pipeline.py --config`."""
    winner = PipelineConfig.model_validate(merged(merged(pipeline, parameters), overrides))
    return yaml.safe_dump(winner.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def check_winner(rows: list[Ranked]) -> None:
    """Raises ValueError if no trial qualifies."""
    if not rows[0].candidate.qualifies:
        ends: dict[str, list[Candidate]] = {}
        for row in rows:
            ends.setdefault(row.candidate.status, []).append(row.candidate)
        causes = [f"{len(group)} {end}, {group[0].name}: {group[0].reason}" for end, group in ends.items()]
        raise ValueError(f"none of {len(rows)} trials qualifies: {'; '.join(causes)}")


def remove_losers(study: Study, rung: int, *, best: Candidate | None) -> None:
    """Removes the checkpoints of trials that neither the next rung, nor a repeated sweep, nor the line will resume.

    Their results, adapters and verdicts stay for other runs to find.
    """
    rungs = study.sweep.rungs
    going_on = study.promoted(rungs[rung + 1]) if rung + 1 < len(rungs) else [best] if best else []
    kept = {training for candidate in going_on for training in _trainings(study, candidate)}
    names = {candidate.name for candidate in going_on}
    ended = [candidate for one in rungs[: rung + 1] for candidate in study.ended(one) if candidate.name not in names]
    for candidate in ended:
        if IS_FINAL.get(candidate.status, True):
            for step, fingerprint in _trainings(study, candidate) - kept:
                checkpoints.remove_trial(study.storage_root, candidate.name, step=step, fingerprint=fingerprint)


def _trainings(study: Study, candidate: Candidate) -> set[tuple[str, str]]:
    """Returns step and fingerprint of a trial's trainings, which may have left checkpoints."""
    records = read_records(study.storage_root, candidate.run_id)
    return {(entry.step, entry.fingerprint) for entry in records if entry.step in TRAININGS}


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(CompareStep, args.config, args.overrides)
    outputs = {name: getattr(args, name) for name in NAMES}

    def work(running: Running) -> dict[str, Any]:
        result = next(row for rows in json.loads(args.rows) for row in rows if row)
        study = Study.of_result(running.storage_root, result, step.sweep)
        comparison = compare(study, step.rung, f"Sweep {step.pipeline['pipeline_id']}: {args.step}")
        parameters = {name: getattr(args, name) for name in PARAMETERS}
        overrides = merged(json.loads(args.overrides), nested(comparison.rows[0].candidate.settings))
        texts = {
            "table": table.html(comparison),
            "summary": table.markdown(comparison),
            "csv": table.to_csv(comparison),
        }
        if comparison.rows[0].candidate.qualifies:
            texts["winner"] = winner_config(step.pipeline, parameters, overrides)
        for name, text in texts.items():
            storage.write_text(outputs[name], text)
            if name == "winner" and step.rung < len(step.sweep.rungs) - 1:
                continue  # it has only won a rung
            uri = layout.runs(running.storage_root, run.run_id(), args.step, NAMES[name])
            storage.write_bytes(uri, text.encode())
        for row in comparison.rows:
            logger.info("%s: %s, %s", row.candidate.name, row.candidate.value, table.status(row))
        check_winner(comparison.rows)
        best = comparison.rows[0].candidate
        remove_losers(study, step.rung, best=best if step.pipeline["save_intermediate"] else None)
        return {"best": overrides, "winner": best.name, step.sweep.objective.name: best.value}

    # The results of the trials are not artifacts but in their study, which may have more of them next time.
    frame.run_step(args, inputs={}, outputs=outputs, config=step, work=work, reusable=False)


if __name__ == "__main__":
    main()
