"""Predicts before a run starts which steps it will reuse: from the compiled graph and the records of earlier runs.

compiled graph, parameters of the run -> for each step `reused`, `resuming at step 300` or `to do`

Each step decides for itself when it starts, by the content of its inputs. The prediction assumes that these are what
the earlier run recorded: a step predicted as `reused` runs after all if the data or the base model have changed since.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from pipelines.package import Package
from posttrain.config import StepSection, parse_step
from posttrain.config.line import PROMOTE, TRAININGS, is_rejection, step_of
from posttrain.publish import STEP as PUBLISH
from posttrain.step import code, cost, results
from posttrain.step.cost import Cost, Load
from posttrain.step.records import StepRecord
from posttrain.train.checkpoints import Checkpoints

TO_DO, REUSED = "to do", "reused"


def plan(package: Package, parameters: dict[str, Any], records: list[StepRecord]) -> dict[str, str]:
    """Returns what each step will do, in the order of the graph."""
    made = {sha256 for record in records for sha256 in record.outputs.values()}
    newest = {record.step: record for record in records if record.fingerprint}
    states, expected = {}, set()  # expected: digests of the outputs of the steps so far
    for step, section in sections(package, parameters["overrides"]):
        record = newest.get(step)
        same = record and set(record.inputs.values()) & made <= expected and is_same(record, section, parameters)
        states[step] = state_of(parameters["storage_root"], record) if same else TO_DO
        if same and (states[step] == REUSED or step_of(step).reads):  # the latter run again, in seconds
            expected |= set(record.outputs.values())
    return states


def is_same(record: StepRecord, section: StepSection, parameters: dict[str, Any]) -> bool:
    """Tells whether a step with the inputs of this record would have the same fingerprint now."""
    address = step_of(record.step).reads
    if address and record.measured.get("source") != parameters[address]:
        return False
    if record.code is None:
        return False
    config = section.decisive.model_dump(mode="json")
    here = code.code_of(record.code.module, config=config)
    return code.fingerprint(record.step, config=config, inputs=record.inputs, code=here) == record.fingerprint


def state_of(storage_root: str, record: StepRecord) -> str:
    """Returns what a step will do that an earlier run began with the same inputs, settings and code."""
    if results.finished(storage_root, record.step, record.fingerprint):
        return REUSED
    checkpoints = Checkpoints(storage_root, record.step, record.fingerprint, run_id=record.run_id, limit=1)
    newest = checkpoints.newest_step()
    return f"resuming at step {newest}" if newest else TO_DO


def costs(package: Package, parameters: dict[str, Any], records: list[StepRecord]) -> dict[str, Cost]:
    """Returns what each step cost in an earlier run of this base model; a training, for as many passes as now."""
    rows = {one.step: one.measured.get("num_train_rows") for one in records if one.status == "succeeded"}
    loads = {
        step: Load(rows[step], getattr(section, TRAININGS[step]).epochs)
        for step, section in sections(package, parameters["overrides"])
        if step in TRAININGS and rows.get(step)
    }
    return cost.costs(records, base_model=parameters["base_model"], loads=loads)


def broken_off(records: list[StepRecord], steps: Collection[str]) -> tuple[StepRecord | None, bool]:
    """Returns the last step of the newest run, or None if it came to its end, and whether it published a model.

    Args:
        steps: those of a promoted run, which ends by making its model current if `promote_model` is among them.
    """
    newest = [record for record in records if record.run_id == records[-1].run_id]
    ran = [record for record in newest if record.step != "report_run" and not is_rejection(record.step)]
    done = {record.step for record in ran if record.status == "succeeded"}
    ends = PROMOTE if PROMOTE in steps else PUBLISH
    return (None if ends in done or not ran else ran[-1]), PUBLISH in done


def sections(package: Package, overrides: dict[str, Any]) -> Iterator[tuple[str, StepSection]]:
    """Yields the configuration of each step of a promoted run, in the order of the graph."""
    configs = {task.constants.get("step"): package.settings_of(task) for task in package.steps}
    for step in configs["report_run"]["steps"]:
        yield step, parse_step(step_of(step).section, json.dumps(configs[step]), json.dumps(overrides))
