"""The trials of an acceptance: each runs the line in some way, and asserts what must be true on any cluster.

a `Site` -> what was seen there, as words for the table; AssertionError if it is not what it must be
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import yaml

from compile import main as compile_main
from posttrain import storage
from posttrain.step.records import StepRecord, read_records
from posttrain.storage import layout
from runner import exit_codes, kubeflow
from tests.cluster.site import Run, Site

SFT_ONLY = ("--set", "stages.dpo.enabled=false")
SAVE_STEPS = 10
LONG_SECONDS = 20.0  # of a training that something happens to
DEADLINE_SECONDS = 60.0  # timeout_minutes counts whole ones


@dataclass
class Seen:
    """Behaviour of this cluster, by the words of the table."""

    facts: dict[str, str] = field(default_factory=dict)
    seconds_per_step: float = 0.1  # of the training, one optimizer step


def promoted(site: Site, seen: Seen) -> str:
    """The line from the base model to a published one, and its report."""
    run = site.run()
    _check(run, exit_codes.PROMOTED)
    run_id = site.run_ids["promoted"] = run.value("Run")
    assert storage.exists(layout.runs(site.storage_root, run_id, "report.html")), run.out
    training = run.attempts("train_sft")[-1]
    seen.seconds_per_step = max(training.work_seconds / training.measured["total_steps"], 0.005)
    _note_tasks(site, seen, run_id, run)
    return f"published {run.value('Final model').rpartition('/')[2]}, {run.value('Total time')}"


def reused(site: Site, seen: Seen) -> str:
    """Runs the line once more: what is finished is found by its content."""
    run = site.run()
    _check(run, exit_codes.PROMOTED)
    names = run.value("Reused").split(", ")
    assert {"train_sft", "merge_sft", "train_dpo", "merge_dpo"} <= set(names), run.out
    return f"{len(names)} steps reused, {run.value('Total time')}"


def refused(site: Site, seen: Seen) -> str:
    """A gate says no."""
    run = site.run("--set", "validation.max_loss=0.0001")
    _check(run, exit_codes.STOPPED)
    assert "STOPPED BY check_sft" in run.out, run.out
    return "stopped by check_sft"


def deadline(site: Site, seen: Seen) -> str:
    """A training that takes longer than its time saves and leaves, and the next attempt goes on in the same pod."""
    overrides = _long(seen, DEADLINE_SECONDS * 1.4)
    run = site.run(*SFT_ONLY, "--set", "stages.sft.timeout_minutes=1", "--overrides", overrides)
    attempts = run.attempts("train_sft")
    assert [attempt.status for attempt in attempts[:1]] == ["unfinished"], run.out
    _check_resumed(run, attempts)
    return f"{len(attempts)} attempts, from step {attempts[-1].progress.resumed_at}"


def deleted(site: Site, seen: Seen) -> str:
    """The pod of a training is deleted: the run goes on, or the next one does."""

    def delete(run_id: str) -> None:
        if not hits:
            hits.append(run_id)
            site.wait_for_checkpoint(run_id, "train_sft")
            site.delete_pods(run_id)

    hits: list[str] = []
    run = site.run(*SFT_ONLY, "--attempts", "2", "--overrides", _long(seen, LONG_SECONDS, seed=1), meanwhile=delete)
    assert run.exit_code in (exit_codes.PROMOTED, exit_codes.STOPPED), run.out
    again = "Submitted again" in run.out
    first = storage_records(site, hits[0])
    seen.facts["a pod is deleted"] = "the run ends FAILED" if again else "its step is tried again by Argo"
    seen.facts["time after SIGTERM"] = "enough to save" if first[0].status == "unfinished" else "too little to save"
    attempts = run.attempts("train_sft")
    assert attempts[-1].progress and attempts[-1].progress.resumed_at, run.out
    return f"{'the next run' if again else 'the same run'} goes on from step {attempts[-1].progress.resumed_at}"


def terminated(site: Site, seen: Seen) -> str:
    """Somebody ends the run: who follows it reports it, whether its exit task still runs or not."""

    def terminate(run_id: str) -> None:
        site.wait_for_checkpoint(run_id, "train_sft")
        kubeflow.terminate(site.client, run_id)

    run = site.run(*SFT_ONLY, "--overrides", _long(seen, LONG_SECONDS, seed=2), meanwhile=terminate)
    _check(run, exit_codes.ERROR)
    run_id = run.value("Run")
    assert storage.exists(layout.runs(site.storage_root, run_id, "report.html")), run.out
    last = run.attempts("train_sft")[-1]
    assert last.status in ("running", "unfinished", "failed"), last
    seen.facts["a terminated run"] = run.value("Kubeflow says")
    seen.facts["its exit task"] = "runs" if run.attempts("report_run") else "is left out, who follows reports"
    return f"reported; the training: {'saved' if last.status == 'unfinished' else 'killed'}"


def retried(site: Site, seen: Seen) -> str:
    """Kubeflow's own Retry of a failed run, after what had failed is mended."""
    broken = storage.join(site.root, "data", "broken.jsonl")
    storage.write_bytes(broken, b"not JSON\n")
    command = [*SFT_ONLY, "--sft-dataset", broken, "--model-name", "retried"]
    run = site.run(*command)
    _check(run, exit_codes.ERROR)
    run_id, num_attempts = run.value("Run"), len(run.attempts("prepare_sft_data"))
    again = "tried again by Argo" if num_attempts > 1 else "not tried again by Argo"
    seen.facts["a step exits with an error"] = f"{again} ({num_attempts} attempts)"
    storage.write_bytes(broken, storage.read_bytes(storage.join(site.root, "data", "sft.jsonl")))
    site.client._run_api.run_service_retry_run(run_id)
    site.wait(lambda: site.client.get_run(run_id).state not in ("FAILED", "PENDING"), "the run to start again")
    run = site.run(*command, "--run-id", run_id)
    _check(run, exit_codes.PROMOTED)
    return "the failed step ran again, and the run was promoted"


def sweep(site: Site, seen: Seen) -> str:
    """Two trials, their table, and the winner on unseen rows."""
    settings = {"space": {"sft.learning_rate": [5e-3, 1e-3]}, "parallelism": 2, "continue_with_best": False}
    settings["objective"] = {"gate": "check_sft", "metric": "held_out_loss", "direction": "minimize"}
    file = site.folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = site.run("--sweep", str(file), "--set", "data.eval_fraction=0.3")
    _check(run, exit_codes.PROMOTED)
    assert "Best of 2" in run.out, run.out
    return run.value("On unseen rows")


def own_command(site: Site, seen: Seen) -> str:
    """`kfp run create` with the compiled graph."""
    package, name = site.folder / "own.yaml", f"own command {time.time_ns()}"
    configs = list(map(str, site.configs))
    assert compile_main(["--config", *configs, "--output", str(package), "--allow-tags"]) in (0, None)
    done = site.kfp("run", "create", "-e", "acceptance", "-r", name, "-f", str(package), "model_name=own-command")
    assert done.returncode == 0, done.stderr
    experiment = site.client.get_experiment(experiment_name="acceptance").experiment_id
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    (created,) = site.client.list_runs(experiment_id=experiment, filter=json.dumps({"predicates": [predicate]})).runs
    run = site.run("--run-id", created.run_id, "--model-name", "own-command")
    _check(run, exit_codes.PROMOTED)
    assert "/own-command/" in run.value("Final model"), run.out
    return "accepted and promoted"


TRIALS: dict[str, Callable[[Site, Seen], str]] = {
    "promoted": promoted,
    "reused": reused,
    "refused": refused,
    "deadline": deadline,
    "deleted": deleted,
    "terminated": terminated,
    "retried": retried,
    "sweep": sweep,
    "own_command": own_command,
}
NEEDS_KUBECTL = ("deleted",)


def storage_records(site: Site, run_id: str) -> list[StepRecord]:
    """The attempts of the training of a run, in order."""
    records = read_records(site.storage_root, run_id, of={"train_sft"})
    return sorted(records, key=lambda record: record.attempt)


def _check(run: Run, exit_code: int) -> None:
    assert run.exit_code == exit_code, f"exit code {run.exit_code}, not {exit_code}\n{run.out}"


def _check_resumed(run: Run, attempts: list[StepRecord]) -> None:
    last = attempts[-1]
    assert len(attempts) > 1 and last.status == "succeeded", run.out
    assert last.progress and last.progress.resumed_at, run.out


def _long(seen: Seen, seconds: float, **more: Any) -> str:
    """Returns overrides with which SFT trains for so many seconds."""
    steps_per_epoch = 17  # of the tiny line's rows
    epochs = max(3, round(seconds / seen.seconds_per_step / steps_per_epoch))
    return json.dumps({"sft": {"epochs": epochs, "learning_rate": 1e-3, "save_steps": SAVE_STEPS} | more})


def _note_tasks(site: Site, seen: Seen, run_id: str, run: Run) -> None:
    """Notes which steps the API tells of, and what its drivers cost."""
    tasks = site.tasks(run_id)
    told = {task.display_name for task in tasks}
    steps = list(dict.fromkeys(record.step for record in run.records))
    missing = [step for step in steps if step.replace("_", "-") not in told]
    drivers = [task for task in tasks if task.display_name.endswith("-driver")]
    spans = [(task.end_time - task.start_time).total_seconds() for task in drivers]
    seen.facts["task_details"] = f"stop before {', '.join(missing)}" if missing else "whole"
    seen.facts["seconds per driver"] = f"{mean(spans):.1f}, of {len(spans)} drivers" if spans else "unknown"
