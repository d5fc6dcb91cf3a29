"""Runs a trial of a sweep: the line's own steps with the trial's settings, as far as the gate of the objective.

base, training rows, rows to judge on -> a candidate in the sweep's study, its URI as output, a page as Markdown

On a cluster a step is a worker, which takes the next trial of its rung until none is left, then those of workers that
are lost. Who has taken which is noted in the folder of the run: a worker which starts again goes on with its own.

Each step is a child process, recorded as a step of a run of its own, `<run id>.<trial>`. A failure of
one becomes the candidate's status and never fails this step: in Kubeflow a failed iteration of a loop cancels its
siblings. Steps find finished results and checkpoints by content, as in any run: results that two trials share are made
once, and the line that goes on with the winner finds all results of its trial.

With successive halving a trial's last training leaves after its rung's share of steps. The gates judge the adapter of
the checkpoint that it left; if the trial is promoted, it resumes from there.
"""

import argparse
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from posttrain import config, dpo, storage
from posttrain.config import merged
from posttrain.config.sweep import Command, Constraint, Rung, SweepConfig, TrialStep, nested
from posttrain.pages import wording
from posttrain.step import code, frame, kfp_io, records, run
from posttrain.step.results import Result
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.sweep import children, table
from posttrain.sweep.children import IS_FINAL, NO_TIME, Ended, Trial
from posttrain.sweep.claims import Claims
from posttrain.sweep.ranking import GATE_FAILED, QUALIFIED, Candidate, measures_of
from posttrain.sweep.study import Study
from posttrain.train.checkpoints import Checkpoints
from posttrain.train.stage import ADAPTER_FILES, progress
from posttrain.verdict import Verdict

GIVEN = {  # input of this step -> the output of the graph behind it
    "base": "fetch_model.model",
    "sft_train": "prepare_sft_data.train",
    "sft_eval": "prepare_sft_data.eval",
    "preference_train": "prepare_preferences.train",
    "preference_eval": "prepare_preferences.eval",
}
JUDGED = {"sft_judged": "prepare_sft_data.eval", "preference_judged": "prepare_preferences.eval"}  # for gates
DISQUALIFIED, NOT_MEASURED = "constraint not kept", "not measured"
WINNER = "winner"

logger = logging.getLogger("posttrain.sweep.trial")  # this module runs as `__main__`


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--sft-train", help="training rows, JSONL")
    parser.add_argument("--sft-eval", help="held-out rows for the training's own curve, JSONL")
    parser.add_argument("--sft-judged", help="held-out rows for the gates, JSONL; those of --sft-eval if absent")
    parser.add_argument("--preference-train", help="training pairs, JSONL")
    parser.add_argument("--preference-eval", help="held-out pairs for the training's own curve, JSONL")
    parser.add_argument(
        "--preference-judged", help="held-out pairs for the gates, JSONL; those of --preference-eval if absent"
    )
    parser.add_argument("--summary", required=True, help="output: the trial's result, Markdown")
    parser.add_argument("--metrics", required=True, help="output: its numbers, JSON")
    parser.add_argument("--row", help="output: URI of the trial's result; empty if there was no trial")
    parser.add_argument("--rows", help="output: URIs of the results of all trials that this step has taken, as JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(TrialStep, args.config, args.overrides)
    step = step.model_copy(update={"overrides": json.loads(args.overrides)})
    if args.rows:
        run_trials(args, step)
    else:
        run_trial(args, step)


def run_trials(args: argparse.Namespace, step: TrialStep) -> None:
    """Runs the trial that this step is named after or, as a worker of its rung, one after another that is left."""
    run.configure_logging()
    frame.check_storage_root(args)
    slots = step.sweep.shared_slots(args.step)
    results, pages = [], []
    with tempfile.TemporaryDirectory(dir=kfp_io.output_folder(args.executor_input)) as folder:
        for slot in claimed(args, slots) if slots else [args.step]:
            logger.info("%s begins", slot)
            one = in_slot(args, slot, Path(folder, slot))
            results.append(run_trial(one, step))
            pages.append(Path(one.summary).read_text(encoding="utf-8"))
            logger.info("%s has ended: %s", slot, results[-1].measured["status"])
    numbers = {"num_trials": len(results)} if slots else results[0].measured
    storage.write_text(args.metrics, json.dumps(numbers, indent=2))
    storage.write_text(args.summary, "\n\n".join(pages) or "Other workers have taken all trials.\n")
    rows = [result.measured["row"] for result in results]
    kfp_io.write_outputs(args.executor_input, parameters={"rows": rows}, metadata={"metrics": numbers})


def claimed(args: argparse.Namespace, slots: list[str]) -> Iterator[str]:
    """Yields the slots that this worker has claimed; the claim on each is renewed until the next is asked for."""
    claims = Claims(layout.runs(args.storage_root, run.run_id(), "claims"), worker=args.step)
    for claim in claims.taken(slots):
        with claims.renewed(claim):
            yield claim.slot


def in_slot(args: argparse.Namespace, slot: str, folder: Path) -> argparse.Namespace:
    """Returns the arguments of one trial, whose outputs go to a folder of its own."""
    folder.mkdir()
    outputs = {"outputFile": str(folder / "output.json")}
    own = {"step": slot, "executor_input": json.dumps({"outputs": outputs}), "row": None, "rows": None}
    own |= {name: str(folder / Path(getattr(args, name)).name) for name in ("summary", "metrics")}
    return argparse.Namespace(**vars(args) | own)


def run_trial(args: argparse.Namespace, step: TrialStep) -> Result:
    """Runs the trial in the slot that the step is named after, or finds its result."""
    inputs = {name: getattr(args, name) for name in (*GIVEN, *JUDGED) if getattr(args, name)}
    outputs = {name: getattr(args, name) for name in ("summary", "metrics")}

    def work(running: Running) -> dict[str, Any]:
        study = Study(running.storage_root, fingerprint_of_sweep(args.module, step, running.inputs), step.sweep)
        with tempfile.TemporaryDirectory(dir=kfp_io.output_folder(args.executor_input)) as folder:
            candidate = run_slot(args, step, study, Path(folder))
        if candidate:
            study.keep(args.step, candidate)
        numbers = numbers_of(candidate)
        storage.write_text(args.metrics, json.dumps(numbers, indent=2))
        storage.write_text(args.summary, table.one_markdown(args.step, candidate))
        is_final = IS_FINAL.get(candidate.status, True) if candidate else True
        return {"row": study.uri_of(args.step) if candidate else "", "is_final": is_final, **numbers}

    return frame.run_step(args, inputs=inputs, outputs=outputs, config=step.decisive, work=work)


def fingerprint_of_sweep(module: str, step: TrialStep, inputs: dict[str, str]) -> str:
    """Returns the fingerprint of all trials of the sweep, which names their study."""
    config = step.decisive.model_dump(mode="json")
    return code.fingerprint("sweep", config=config, inputs=inputs, code=code.code_of(module, config=config))


def run_slot(args: argparse.Namespace, step: TrialStep, study: Study, folder: Path) -> Candidate | None:
    """Runs the trial in this slot; returns None if too few trials qualify for its rung."""
    sweep, rung = step.sweep, step.sweep.rung_of(args.step)
    if rung is None:
        rung, name, settings = sweep.rungs[-1], WINNER, {}  # its settings are in the run's overrides
    elif rung.number == 0:
        name, settings = args.step, study.settings_of(args.step)
    else:
        promoted, rank = study.promoted(rung), sweep.slots(rung).index(args.step)
        if rank >= len(promoted):
            return None
        name, settings = promoted[rank].name, promoted[rank].settings
    trial = Trial(
        storage_root=args.storage_root,
        run_id=f"{run.run_id()}.{name}",
        overrides=merged(step.overrides, nested(settings)),
        folder=folder,
        given={source: getattr(args, name) for name, source in GIVEN.items() if getattr(args, name)},
        judged={source: getattr(args, name) for name, source in JUDGED.items() if getattr(args, name)},
    )
    candidate = Candidate(
        name=name,
        run_id=trial.run_id,
        settings=settings,
        status=QUALIFIED,
        rung=rung.number,
        objective=sweep.objective.name,
    )
    return run_commands(step, trial, rung, candidate)


def run_commands(step: TrialStep, trial: Trial, rung: Rung, candidate: Candidate) -> Candidate:
    """Runs the steps one after the other until one has no result or, on the last rung, a gate does not pass."""
    last_training = [command for command in step.commands if command.is_training][-1]
    candidate = candidate.model_copy(update={"cost": children.import_libraries()})
    for command in step.commands:
        share = rung.share if command is last_training else 1.0
        ended = run_command(command, trial, share=share, num_gpus=step.num_gpus)
        candidate = candidate.model_copy(update={"cost": candidate.cost + ended.cost})
        if ended.status:
            return candidate.model_copy(update={"status": ended.status, "reason": ended.reason})
        if command.is_gate:
            verdict = Verdict.read(trial.output(command.step, "verdict").read_bytes())
            candidate = judged(candidate, verdict, decides=rung.share == 1)
        if not candidate.qualifies:
            return candidate
    return finished(candidate, step.sweep)


def run_command(command: Command, trial: Trial, *, share: float, num_gpus: int) -> Ended:
    """Runs one step; if it is a training that stops early, its checkpoint becomes its output."""
    if share == 1:
        return children.run(command, trial, config=command.config, num_gpus=num_gpus)
    cut = merged(command.config, {"training": {"leave_at": share}})
    ended = children.run(command, trial, config=cut, num_gpus=num_gpus)
    if ended.status != NO_TIME:
        return ended
    return replace(ended, status="", reason="") if take_checkpoint(command, trial, share) else ended


def take_checkpoint(command: Command, trial: Trial, share: float) -> bool:
    """Makes a training's outputs out of its newest checkpoint; returns False if it has not made its share of steps."""
    entries = records.read_records(trial.storage_root, trial.run_id)
    entry = [entry for entry in entries if entry.step == command.step][-1]
    checkpoints = Checkpoints(trial.storage_root, entry.step, entry.fingerprint, run_id=trial.run_id, limit=1)
    newest = checkpoints.fetch_newest(trial.folder / "checkpoints")
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8")) if newest else {}
    if not newest or state["global_step"] < math.ceil(share * state["max_steps"]):
        return False
    adapter = trial.output(command.step, "adapter")
    adapter.mkdir(parents=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(newest / name, adapter / name)
    metrics = progress(SimpleNamespace(**state))
    if command.step == "train_dpo":
        settings = config.parse_step(config.DpoStep, json.dumps(command.config), json.dumps(trial.overrides)).dpo
        metrics["start_loss"] = dpo.start_loss(state["log_history"], settings)
    storage.write_text(trial.output(command.step, "metrics"), json.dumps(metrics, indent=2, allow_nan=False))
    return True


def judged(candidate: Candidate, verdict: Verdict, *, decides: bool) -> Candidate:
    """Adds a gate's measures to a candidate; whether it passed counts only after a complete training."""
    candidate = candidate.model_copy(update={"measures": candidate.measures | measures_of(verdict)})
    if verdict.passed or not decides:
        return candidate
    reason = f"{verdict.gate}: {wording.reason(verdict)}"
    return candidate.model_copy(update={"status": GATE_FAILED, "reason": reason})


def finished(candidate: Candidate, sweep: SweepConfig) -> Candidate:
    """Judges a candidate after its last step: the objective must have a value, and constraints must hold."""
    if candidate.measure is None:
        known = ", ".join(sorted(candidate.measures))
        reason = f"{candidate.objective} has no value; give one of the measures: {known}"
        return candidate.model_copy(update={"status": NOT_MEASURED, "reason": reason})
    broken = [constraint.sentence for constraint in sweep.constraints if not keeps(candidate, constraint)]
    if broken:
        return candidate.model_copy(update={"status": DISQUALIFIED, "reason": "; ".join(broken)})
    return candidate


def keeps(candidate: Candidate, constraint: Constraint) -> bool:
    measure = candidate.measures.get(constraint.name)
    low = -math.inf if constraint.min is None else constraint.min
    high = math.inf if constraint.max is None else constraint.max
    return measure is not None and low <= measure.value <= high


def numbers_of(candidate: Candidate | None) -> dict[str, float | str]:
    """Returns the numbers of a trial that Kubeflow shows."""
    if candidate is None:
        return {"status": "no trial left for this slot"}
    numbers = {name: measure.value for name, measure in candidate.measures.items()}
    settings = {name: value for name, value in candidate.settings.items() if isinstance(value, int | float)}
    spent = {"compute_seconds": candidate.cost.compute_seconds, "peak_memory": candidate.cost.peak_memory}
    return {"status": candidate.status, **settings, **numbers, **spent}


if __name__ == "__main__":
    main()
