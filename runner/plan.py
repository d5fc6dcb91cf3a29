"""What a run will find done, said before it starts: read from the compiled graph and the records of earlier runs.

compiled graph, parameters of the run -> for each step `reused`, `resuming at step 300` or `to do`

Each stage decides for itself when it starts, by the content of its inputs. Here these are taken to be what the earlier
run recorded: a foretold `reused` is done after all if the data or the base model have changed since.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from posttrain import storage
from posttrain.config import StepSection, parse_step
from posttrain.config.line import is_rejection, step_of
from posttrain.step import code, results
from posttrain.step.records import RECORD, StepRecord, read_records
from posttrain.storage import layout
from posttrain.train.checkpoints import Checkpoints

NUM_RUNS = 20  # the newest, by name, whose records are read
TO_DO, REUSED = "to do", "reused"


def plan(graph: Path, parameters: dict[str, Any], records: list[StepRecord]) -> dict[str, str]:
    """What each step will do, in the order of the graph."""
    made = {sha256 for entry in records for sha256 in entry.outputs.values()}
    newest = {entry.step: entry for entry in records if entry.fingerprint}
    states, expected = {}, set()  # expected: digests of what the steps so far will give
    for step, section in sections(graph, parameters["overrides"]):
        entry = newest.get(step)
        same = entry and set(entry.inputs.values()) & made <= expected and is_same(entry, section, parameters)
        states[step] = state_of(parameters["storage_root"], entry) if same else TO_DO
        if same and (states[step] == REUSED or step_of(step).reads):  # those are done anew, in seconds
            expected |= set(entry.outputs.values())
    return states


def is_same(entry: StepRecord, section: StepSection, parameters: dict[str, Any]) -> bool:
    """Whether a step with the inputs of this record would have its fingerprint now."""
    address = step_of(entry.step).reads
    if address and entry.measured.get("source") != parameters[address]:
        return False
    if entry.code is None:
        return False
    config = section.decisive.model_dump(mode="json")
    here = code.code_of(entry.code.module, config=config)
    return code.fingerprint(entry.step, config=config, inputs=entry.inputs, code=here) == entry.fingerprint


def state_of(storage_root: str, entry: StepRecord) -> str:
    """What becomes of a step that an earlier run has begun with the same inputs, settings and code."""
    if results.finished(storage_root, entry.step, entry.fingerprint):
        return REUSED
    checkpoints = Checkpoints(storage_root, entry.step, entry.fingerprint, run_id=entry.run_id, limit=1)
    newest = checkpoints.newest_step()
    return f"resuming at step {newest}" if newest else TO_DO


def recent_records(storage_root: str) -> list[StepRecord]:
    """Records of the newest runs, in the order in which their steps started."""
    names = storage.list_files(layout.runs(storage_root))
    runs = sorted({run for run, _, name in (name.partition("/") for name in names) if RECORD.fullmatch(name)})
    records = [entry for run in runs[-NUM_RUNS:] for entry in read_records(storage_root, run)]
    return sorted(records, key=lambda entry: entry.started_at)


def broken_off(records: list[StepRecord]) -> StepRecord | None:
    """Where the newest run stopped: its last step, if it has published nothing."""
    newest = [entry for entry in records if entry.run_id == records[-1].run_id]
    steps = [entry for entry in newest if entry.step != "report_run" and not is_rejection(entry.step)]
    is_published = any(entry.step == "publish_model" and entry.status == "succeeded" for entry in steps)
    return None if is_published or not steps else steps[-1]


def sections(graph: Path, overrides: dict[str, Any]) -> Iterator[tuple[str, StepSection]]:
    """The configuration that each step of a compiled graph is given, by the step's name."""
    spec = next(yaml.safe_load_all(graph.read_text(encoding="utf-8")))
    dags = [component["dag"] for component in [spec["root"], *spec["components"].values()] if "dag" in component]
    tasks = {}
    for task in (task for dag in dags for task in dag["tasks"].values()):
        given = task.get("inputs", {}).get("parameters", {})
        if {"step", "config"} <= given.keys():
            component = re.sub(r"^comp-|-\d+$", "", task["componentRef"]["name"]).replace("-", "_")
            constants = [given[name]["runtimeValue"]["constant"] for name in ("step", "config")]
            tasks[constants[0]] = (component, json.dumps(constants[1]))
    order = next(json.loads(config)["steps"] for component, config in tasks.values() if component == "report_run")
    for step in order:
        _, config = tasks[step]
        yield step, parse_step(step_of(step).section, config, json.dumps(overrides))
