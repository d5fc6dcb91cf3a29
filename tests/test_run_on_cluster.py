"""`run_pipeline.py --endpoint`, from the command line to the exit code: a Kubeflow API on loopback, storage in gs://.

What the pods of a run would write, a scene of the server writes: run records, verdicts, the published manifest.
"""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import compile as compile_command
import components
import run_pipeline
from pipelines.compiler import compile_graph
from posttrain import promote, report, storage
from posttrain.config import PipelineConfig, ReportStep
from posttrain.config.sweep import SweepConfig
from posttrain.step import records
from posttrain.storage import layout
from posttrain.sweep.ranking import Candidate, Measure
from posttrain.sweep.study import Study
from posttrain.verdict import Verdict, at_most
from runner import exit_codes
from runner import follow as following
from runner import kubeflow as client
from runner.local import ROOT
from tests.digests import give_digests
from tests.kubeflow_server import Behaviour, Scene, serve
from tests.storage_servers import BUCKET

STEPS = {
    "preflight": "preflight", "fetch-model": "fetch_model", "prepare-sft-data": "prepare_sft_data",
    "check-sft-data": "check_sft_data", "train-sft": "train_sft", "check-sft": "check_sft",
    "merge-sft": "merge_sft", "check-sft-merge": "check_sft_merge", "check-safety": "check_safety",
    "publish-model": "publish_model", "check-champion": "check_champion", "promote-model": "promote_model",
}  # fmt: skip


CONFIG = {
    "pipeline_id": "demo", "base_model": "org/model", "sft_dataset": "gs://posttrain-test/sft.jsonl",
    "storage_root": "gs://posttrain-test/weekly", "stages": {"dpo": {"enabled": False}},
    "validation": {"answer_match": "none", "custom_checks": ["output_format_valid"]},
}  # fmt: skip


ANY_ROOT = f"gs://{BUCKET}/{'0' * 32}"  # in place of the root of each test, which is as long


@functools.cache
def compiled(config: str) -> bytes:
    """Compiling takes half a second: each configuration once."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        compile_graph(PipelineConfig.model_validate_json(config), file.name)
        return Path(file.name).read_bytes()


@pytest.fixture
def kubeflow(tmp_path, monkeypatch, gs_root):
    """A server, a configuration, a storage root of its own in gs://, and images with digests."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    give_digests(tmp_path / "images", monkeypatch)

    def write(config: PipelineConfig, path: Path) -> None:
        graph = compiled(config.model_dump_json().replace(gs_root, ANY_ROOT))
        path.write_bytes(graph.replace(ANY_ROOT.encode(), gs_root.encode()))

    monkeypatch.setattr("runner.request.compile_graph", write)
    monkeypatch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)  # kfp reads the graph with it, ten times as slowly
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(client, "MAX_WAIT_SECONDS", 0.01)
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with serve() as server:
        yield server


@pytest.fixture
def start(kubeflow, gs_root):
    """Starts a run and gives the exit code."""

    def start(*more: str) -> int:
        command = ["--config", "config.yaml", "--storage-root", gs_root, "--endpoint", kubeflow.url]
        return run_pipeline.main([*command, *more])

    return start


def leave(root: str, run_id: str, *steps: str, write=records.write_record, **values) -> None:
    """The records that pods would leave."""
    for step in steps:
        entry = {"status": "succeeded", "seconds": 1.0, "config": {}, "inputs": {}, "outputs": {}, "measured": {}}
        entry |= {
            "step": step,
            "attempt": 1,
            "run_id": run_id,
            "fingerprint": "f",
            "started_at": "2026-01-01T00:00:00Z",
        }
        write(root, records.StepRecord.model_validate(entry | values))


def judge(root: str, run_id: str, gate: str, loss: float) -> None:
    verdict = Verdict(
        gate=gate, subject={"adapter": "0" * 64}, checks=[at_most("held_out_loss", loss, 2.0, remedy="Train longer.")]
    )
    leave(root, run_id, gate, verdict=verdict.model_dump(mode="json"), measured={"passed": verdict.passed})


def publish(root: str, run_id: str) -> None:
    folder = storage.join(root, "published", "demo", "v1")
    manifest = storage.join(folder, "manifest.json")
    storage.write_bytes(manifest, json.dumps({"sha256": "abc"}).encode())
    leave(root, run_id, "publish_model", measured={"uri": folder, "manifest_uri": manifest, "sha256": "abc"})


def crown(root: str, run_id: str) -> None:
    promotion = promote.Promotion(
        number=1, model_name="demo", version="v1", sha256="abc", by=run_id, reason="check_champion passed",
        promoted_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    entry = layout.promotions(storage.join(root, "published", "demo"), "000001.json")
    storage.write_bytes(entry, promotion.json_bytes)
    leave(root, run_id, "promote_model", measured=promotion.model_dump(mode="json"))


def up_to(last: str, state: str = "SUCCEEDED") -> dict[str, str]:
    """Tasks of the run until `last`, which is in `state`."""
    names = list(STEPS)[: list(STEPS).index(last) + 1]
    return dict.fromkeys(names[:-1], "SUCCEEDED") | {last: state}


def promoted(root: str) -> list[Scene]:
    def first_half(run_id: str) -> None:
        leave(root, run_id, "preflight", "fetch_model", "prepare_sft_data")
        judge(root, run_id, "check_sft_data", 0.5)

    def second_half(run_id: str) -> None:
        leave(root, run_id, "train_sft", measured={"final_loss": 0.25})
        leave(root, run_id, "merge_sft")
        for gate in ("check_sft", "check_sft_merge", "check_safety"):
            judge(root, run_id, gate, 0.5)
        publish(root, run_id)
        judge(root, run_id, "check_champion", 0.5)
        crown(root, run_id)

    done = up_to("promote-model") | {"reject": "SKIPPED", "report-run": "SUCCEEDED"}
    return [
        Scene("PENDING"),
        Scene("RUNNING", up_to("train-sft", "RUNNING"), first_half),
        Scene("SUCCEEDED", done, second_half),
    ]


def value(out: str, key: str) -> str:
    """The value of the last `key: value` line."""
    return re.findall(rf"^{key}: +(.*)$", out, re.MULTILINE)[-1]


def test_a_promoted_run(kubeflow, start, gs_root, capsys):
    kubeflow.scenes = promoted(gs_root)
    more = ["--experiment", "weekly", "--overrides", '{"sft": {"epochs": 2}}', "--junit", "gates.xml"]
    assert start(*more) == exit_codes.PROMOTED
    (run_id,) = kubeflow.runs
    out = capsys.readouterr().out
    assert value(out, "Run") == run_id
    assert value(out, "Logs") == f"{kubeflow.url}/#/runs/details/{run_id}"
    assert value(out, "Kubeflow says") == "SUCCEEDED"
    assert value(out, "Success") == "yes"
    assert value(out, "Final model") == f"{gs_root}/published/demo/v1"
    assert value(out, "Made current") == "yes"
    assert value(out, "Errors") == "none"
    assert re.search(r"check_sft_data +done +1.0 s +1 of 1 checks passed", out)
    assert re.search(r"train_sft +started\n(.*\n)*.*train_sft +done +1.0 s +training loss 0.25", out)
    assert "reject" not in out
    assert not list(ElementTree.parse("gates.xml").iter("failure"))
    run = kubeflow.runs[run_id]
    assert re.fullmatch(r"demo \d{8}-\d{6}-[0-9a-f]{6}", run.display_name)
    assert [found.display_name for found in kubeflow.experiments.values()] == ["weekly"]
    assert run.runtime_config.parameters == {
        "base_model": "org/model", "sft_dataset": CONFIG["sft_dataset"], "preference_dataset": "",
        "storage_root": gs_root, "model_name": "demo", "overrides": {"sft": {"epochs": 2}},
    }  # fmt: skip
    assert ":local" not in json.dumps(run.pipeline_spec)


@pytest.mark.parametrize(
    ("more", "root", "told"),
    [
        ([], "{storage}/kfp", "{storage}/kfp"),
        (["--pipeline-root", "s3://other/place/"], "s3://other/place", "s3://other/place"),
        (["--pipeline-root", ""], None, "where the installation keeps those of all runs, often on a 20 GiB disk"),
    ],
)
def test_artifacts_go_where_there_is_room(kubeflow, start, gs_root, capsys, more, root, told):
    assert start("--detach", *more) == 0
    (run,) = kubeflow.runs.values()
    assert run.runtime_config.pipeline_root == (root and root.format(storage=gs_root))
    assert value(capsys.readouterr().out, "Artifacts").startswith(told.format(storage=gs_root))


SWEEP = {"space": {"sft.lora_r": [8, 16]}, "parallelism": 2, "continue_with_best": False}


@pytest.fixture
def unseen():
    """Returns what the winner of a sweep comes to on unseen rows."""
    return ["qualified"]


@pytest.fixture
def sweep_scenes(gs_root, tmp_path, unseen):
    """A sweep of two trials, of which the first fails its gate; its trials write its study, as the pods would."""
    settings = SweepConfig.model_validate(SWEEP)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    study = Study(gs_root, "fingerprint", settings)

    def trial(run_id: str, name: str, loss: float, **values) -> None:
        found = Candidate(
            name=name, run_id=f"{run_id}.{name}", settings=study.settings_of(name),
            measures={"check_sft.held_out_loss": Measure(value=loss, interval=(loss - 0.1, loss + 0.1))},
            objective="check_sft.held_out_loss", **{"status": "qualified"} | values,
        )  # fmt: skip
        study.keep(name, found)
        measured = {"row": study.uri_of(name), "status": found.status}
        leave(gs_root, run_id, name, measured=measured, write=records.replace_record)

    def first_half(run_id: str) -> None:
        leave(gs_root, run_id, "preflight", "fetch_model", "prepare_sft_data", "hold_out_sft")
        judge(gs_root, run_id, "check_sft_data", 0.5)
        leave(gs_root, run_id, "trial_2", status="running")
        trial(run_id, "trial_1", 9.0, status="gate failed", reason="check_sft: held_out_loss: 9, not < 2")

    def second_half(run_id: str) -> None:
        trial(run_id, "trial_2", 0.5)
        storage.write_bytes(f"{gs_root}/runs/{run_id}/compare_trials/trials.csv", b"by compare_trials")
        leave(gs_root, run_id, "compare_trials", measured={"winner": "trial_2"})
        leave(gs_root, run_id, "judge_winner", measured={"status": unseen[0], "check_sft.held_out_loss": 0.6})

    loop = {"preflight": "SUCCEEDED", "for-loop-2": "RUNNING", "run-sft-trial": "RUNNING"}
    done = dict.fromkeys([*loop, "compare-trials", "run-sft-trial-2"], "SUCCEEDED")
    return [Scene("RUNNING", loop, first_half), Scene("SUCCEEDED", done, second_half)]


def test_a_sweep_is_followed_trial_by_trial_and_its_table_is_printed(kubeflow, start, sweep_scenes, gs_root, capsys):
    kubeflow.scenes = sweep_scenes
    assert start("--sweep", "sweep.yaml") == exit_codes.PROMOTED
    out = capsys.readouterr().out
    for trial, status in (("trial_1", "gate failed"), ("trial_2", "qualified")):
        assert len(re.findall(rf"{trial} +started", out)) == 1
        assert len(re.findall(rf"{trial} +done +1.0 s +{status}", out)) == 1
    assert re.search(r"judge_winner +done +1.0 s", out)
    assert "Best of 2: trial_2" in out
    assert "trial_1: check_sft: held_out_loss: 9, not < 2" in out
    assert value(out, "On unseen rows") == "qualified, check_sft.held_out_loss 0.6"
    (run,) = kubeflow.runs.values()
    assert value(out, "Table") == f"{gs_root}/runs/{run.run_id}/compare_trials/comparison.html"
    assert run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "sweep"


@pytest.mark.parametrize(("status", "exit_code"), [("gate failed", exit_codes.STOPPED), ("diverged", exit_codes.ERROR)])
def test_a_winner_that_fails_on_unseen_rows_is_none(
    kubeflow, start, sweep_scenes, unseen, gs_root, capsys, status, exit_code
):
    unseen[0], kubeflow.scenes = status, sweep_scenes
    assert start("--sweep", "sweep.yaml", "--junit", "gates.xml") == exit_code
    out = capsys.readouterr().out
    assert value(out, "On unseen rows") == f"{status}, check_sft.held_out_loss 0.6"
    assert f"judge_winner: the best trial does not qualify on unseen rows: {status}" in out
    assert ElementTree.parse("gates.xml").find(".//testsuite[@name='run']//error") is not None


def test_a_sweep_that_broke_off_has_its_table_and_the_best_so_far(kubeflow, start, sweep_scenes, gs_root, capsys):
    """The Workflow was too large for Kubernetes: the run ends, and neither its comparison nor its report."""
    first, second = sweep_scenes

    def ends(run_id: str) -> None:
        second.happens(run_id)
        storage.remove(f"{gs_root}/runs/{run_id}/compare_trials/trials.csv")
        for step in ("compare_trials", "judge_winner"):
            storage.remove(f"{gs_root}/runs/{run_id}/{step}.1.json")

    kubeflow.scenes = [first, Scene("FAILED", first.tasks, ends)]
    assert start("--sweep", "sweep.yaml") == exit_codes.ERROR
    out = capsys.readouterr().out
    assert "Best of 2: trial_2" in out
    assert value(out, "Errors").startswith("the run ended FAILED: http://127.0.0.1")
    (run_id,) = kubeflow.runs
    assert value(out, "Best so far") == f"{gs_root}/runs/{run_id}/compare_trials/best_so_far.yaml"
    best = yaml.safe_load(storage.read_bytes(value(out, "Best so far")))
    assert best["sft"]["lora_r"] == 16
    assert b"trial_1" in storage.read_bytes(value(out, "As CSV"))
    assert b"trial_1" in storage.read_bytes(value(out, "Table"))


def test_a_sweep_that_broke_off_without_a_good_trial_says_so(kubeflow, start, sweep_scenes, capsys):
    kubeflow.scenes = [Scene("FAILED", sweep_scenes[0].tasks, sweep_scenes[0].happens)]
    assert start("--sweep", "sweep.yaml") == exit_codes.ERROR
    out = capsys.readouterr().out
    assert re.search(r"trial_1 +done +1.0 s +gate failed", out)
    assert "None of 1 qualifies" in out
    assert "Best so far" not in out


def test_a_run_that_a_gate_stopped(kubeflow, start, gs_root, capsys):
    def happens(run_id: str) -> None:
        leave(gs_root, run_id, "preflight", "fetch_model", "prepare_sft_data", "train_sft")
        judge(gs_root, run_id, "check_sft_data", 0.5)
        judge(gs_root, run_id, "check_sft", 9.0)
        leave(gs_root, run_id, "reject_sft", status="failed", error="Rejected: rejected by check_sft: 9, not <= 2")

    kubeflow.scenes = [Scene("FAILED", up_to("check-sft") | {"reject-sft": "FAILED"}, happens)]
    assert start("--junit", "gates.xml") == exit_codes.STOPPED
    out = capsys.readouterr().out
    assert len(re.findall(r"check_sft +stopped ", out)) == 1
    assert "reject_sft" not in out  # the line of its gate tells all of it
    assert "STOPPED BY check_sft" in out
    assert (value(out, "Value"), value(out, "Limit"), value(out, "Remedy")) == ("9", "≤ 2", "Train longer.")
    assert ElementTree.parse("gates.xml").find(".//failure") is not None


def test_a_challenger_that_is_worse_is_published_and_not_made_current(kubeflow, start, gs_root, capsys):
    def happens(run_id: str) -> None:
        leave(gs_root, run_id, "preflight", "fetch_model", "prepare_sft_data", "train_sft", "merge_sft")
        for gate in ("check_sft_data", "check_sft", "check_sft_merge", "check_safety"):
            judge(gs_root, run_id, gate, 0.5)
        publish(gs_root, run_id)
        judge(gs_root, run_id, "check_champion", 9.0)
        leave(gs_root, run_id, "reject_champion", status="failed", error="loss_above_published 9, limit 2")

    kubeflow.scenes = [Scene("FAILED", up_to("check-champion") | {"reject-5": "FAILED"}, happens)]
    assert start() == exit_codes.STOPPED
    out = capsys.readouterr().out
    assert "STOPPED BY check_champion" in out
    assert value(out, "Final model") == f"{gs_root}/published/demo/v1"
    assert value(out, "Made current") == "no"


def test_a_step_that_fails(kubeflow, start, gs_root, capsys):
    def happens(run_id: str) -> None:
        leave(gs_root, run_id, "preflight", "fetch_model", "prepare_sft_data")
        judge(gs_root, run_id, "check_sft_data", 0.5)
        leave(gs_root, run_id, "train_sft", status="failed", error="ValueError: no rows")

    kubeflow.scenes = [Scene("FAILED", up_to("train-sft", "FAILED"), happens)]
    assert start() == exit_codes.ERROR
    out = capsys.readouterr().out
    assert re.search(r"train_sft +failed +1.0 s +ValueError: no rows", out)
    assert value(out, "Errors").startswith("the run ended FAILED: http://127.0.0.1")
    assert "train_sft: ValueError: no rows" in out


def test_a_step_that_dies_without_a_word(kubeflow, start, gs_root, capsys):
    def happens(run_id: str) -> None:
        leave(gs_root, run_id, "preflight")
        leave(gs_root, run_id, "fetch_model", status="running")

    kubeflow.scenes = [Scene("FAILED", up_to("prepare-sft-data", "FAILED"), happens)]
    assert start() == exit_codes.ERROR
    out = capsys.readouterr().out
    assert re.search(r"prepare_sft_data +failed +7.0 s +left no record: killed, evicted or timed out", out)
    assert "fetch_model: did not finish" in out


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(retries_errors=False)])
def test_a_run_that_is_terminated_is_reported_by_who_follows_it(kubeflow, start, gs_root, capsys, behaviour):
    """Its exit task is omitted with the defaults of 2.17, and the record of what was killed says `running`."""

    def terminate(run_id: str) -> None:
        leave(gs_root, run_id, "preflight", "fetch_model", "prepare_sft_data")
        judge(gs_root, run_id, "check_sft_data", 0.5)
        leave(gs_root, run_id, "train_sft", status="running", seconds=300.0, progress={"done": 120, "total": 400})
        client.terminate(client.Client(kubeflow.url), run_id)

    kubeflow.behaviour = behaviour
    kubeflow.scenes = [Scene("RUNNING", up_to("train-sft", "RUNNING"), terminate)]
    assert start() == exit_codes.ERROR
    out = capsys.readouterr().out
    (run_id,) = kubeflow.runs
    assert "Kubeflow says CANCELING" in out
    assert value(out, "Kubeflow says") == "FAILED (canceled)"
    assert value(out, "Errors") == f"the run was canceled: {kubeflow.url}/#/runs/details/{run_id}"
    lost = "did not finish: killed, evicted or timed out; last heard from at 2026-01-01 00:05:00 UTC, step 120/400"
    assert f"train_sft: {lost}" in out
    assert re.search(rf"train_sft +failed +300.0 s +{lost}", out)
    assert value(out, "Report") == f"{gs_root}/runs/{run_id}/report.html"
    result = json.loads(storage.read_bytes(f"{gs_root}/runs/{run_id}/pipeline_result.json"))
    assert result["errors"][0].startswith("the run was canceled")


def test_a_report_that_the_run_has_written_stays(kubeflow, start, gs_root, capsys):
    def reported(run_id: str) -> None:
        promoted(gs_root)[1].happens(run_id)
        promoted(gs_root)[2].happens(run_id)
        settings = ReportStep(pipeline_id="demo", steps=list(STEPS.values()))
        report.publish_report(gs_root, report.collect(gs_root, run_id, settings))
        storage.write_bytes(f"{gs_root}/runs/{run_id}/report.html", b"by report_run")

    kubeflow.scenes = [Scene("SUCCEEDED", happens=reported)]
    assert start() == exit_codes.PROMOTED
    (run_id,) = kubeflow.runs
    assert storage.read_bytes(f"{gs_root}/runs/{run_id}/report.html") == b"by report_run"


def test_every_step_is_shown_although_kubeflow_reads_no_more_of_them(kubeflow, start, gs_root, capsys):
    kubeflow.behaviour = Behaviour(num_nodes_read=16)
    kubeflow.scenes = promoted(gs_root)
    assert start() == exit_codes.PROMOTED
    last_look = kubeflow.runs[next(iter(kubeflow.runs))].run_details.task_details
    assert not [task for task in last_look if task.display_name in ("train-sft", "publish-model")]
    out = capsys.readouterr().out
    for step in STEPS.values():
        assert len(re.findall(rf"{step} +done +1.0 s", out)) == 1


def test_a_run_that_kubeflow_says_is_pending_is_followed_to_its_end(kubeflow, start, gs_root, capsys, monkeypatch):
    monkeypatch.setattr(following, "OVER_SECONDS", 0.1)
    kubeflow.behaviour = Behaviour(has_persistence_agent=False)
    first, second, last = promoted(gs_root)

    def ends(run_id: str) -> None:
        last.happens(run_id)
        leave(gs_root, run_id, "report_run")

    kubeflow.scenes = [first, second, Scene("SUCCEEDED", happens=ends)]
    assert start() == exit_codes.PROMOTED
    out = capsys.readouterr().out
    assert out.count("Kubeflow says PENDING although steps run") == 1
    assert re.search(r"publish_model +done", out)
    assert value(out, "Kubeflow says") == "PENDING"


def test_a_run_that_stays_pending_and_of_which_no_record_moves_is_given_up(
    kubeflow, start, gs_root, capsys, monkeypatch
):
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.1)
    kubeflow.behaviour = Behaviour(has_persistence_agent=False)
    kubeflow.scenes = [Scene("RUNNING", happens=lambda run_id: leave(gs_root, run_id, "preflight"))]
    assert start() == exit_codes.ERROR
    assert value(capsys.readouterr().out, "Errors").startswith("the run is still PENDING: http")


def test_attempts_and_progress_come_from_the_records(kubeflow, start, gs_root, capsys, monkeypatch):
    monkeypatch.setattr("runner.view.SECONDS_BETWEEN_LINES", 0.0)
    now = {"started_at": datetime.now(UTC).isoformat(), "status": "running"}
    error = "stopped at step 1734/4000: the time limit is near"

    def first(run_id: str) -> None:
        progress = {"done": 1500, "total": 4000, "text": "loss 0.5000"}
        leave(gs_root, run_id, "train_sft", **now, progress=progress)

    def second(run_id: str) -> None:
        leave(gs_root, run_id, "train_sft", status="unfinished", error=error, write=records.replace_record)
        progress = {"done": 1800, "total": 4000, "text": "loss 0.4000", "resumed_at": 1734}
        leave(gs_root, run_id, "train_sft", **now, progress=progress)

    def third(run_id: str) -> None:
        leave(gs_root, run_id, "train_sft", attempt=2, measured={"final_loss": 0.25}, write=records.replace_record)

    kubeflow.scenes = [Scene("RUNNING", happens=happens) for happens in (first, second, third)] + [Scene("FAILED")]
    start()
    lines = [line[10:] for line in capsys.readouterr().out.splitlines() if re.match(r"\d\d:\d\d:\d\d +train_sft", line)]
    assert [" ".join(line.split()) for line in lines] == [
        "train_sft started",
        "train_sft step 1500/4000 loss 0.5000",
        f"train_sft unfinished 1.0 s {error}",
        "train_sft attempt 2 of 3, from step 1734",
        "train_sft step 1800/4000 loss 0.4000, attempt 2 of 3, from step 1734",
        "train_sft done 1.0 s training loss 0.25",
    ]


def test_a_step_that_was_killed_and_tried_again_is_shown_as_both(kubeflow, start, gs_root, capsys):
    def first(run_id: str) -> None:
        leave(gs_root, run_id, "train_sft", status="running", progress={"done": 9, "total": 40})

    def second(run_id: str) -> None:
        leave(gs_root, run_id, "train_sft", started_at=datetime.now(UTC).isoformat())

    kubeflow.scenes = [Scene("RUNNING", happens=first), Scene("RUNNING", happens=second), Scene("FAILED")]
    start()
    out = capsys.readouterr().out
    assert re.search(r"train_sft +failed +1.0 s +did not finish: .*, step 9/40", out)
    assert re.search(r"train_sft +attempt 2 of 3\n.*train_sft +done", out)


def test_outputs_that_could_not_be_uploaded_are_told(kubeflow, start, gs_root, capsys):
    def happens(run_id: str) -> None:
        leave(gs_root, run_id, "preflight", "fetch_model")

    kubeflow.scenes = [Scene("FAILED", up_to("fetch-model", "FAILED"), happens)]
    assert start() == exit_codes.ERROR
    assert re.search(r"fetch_model +failed +7.0 s +its container failed after the step had", capsys.readouterr().out)


def test_the_word_of_kubeflow_promotes_nothing(kubeflow, start, gs_root, capsys):
    """All is green, but the receipt names another model than the one that lies there."""

    def replaced(run_id: str) -> None:
        promoted(gs_root)[-1].happens(run_id)
        storage.write_bytes(f"{gs_root}/published/demo/v1/manifest.json", b'{"sha256": "other"}')

    kubeflow.scenes = promoted(gs_root)[:-1] + [Scene("SUCCEEDED", up_to("promote-model"), replaced)]
    assert start() == exit_codes.ERROR
    out = capsys.readouterr().out
    assert value(out, "Kubeflow says") == "SUCCEEDED"
    assert "names another model than this run's receipt" in out


NO_BUCKET = ["--set", 'allowed_prefixes=["gs://", "hf://"]', "--storage-root", "gs://no-such-bucket/weekly"]


@pytest.mark.parametrize("more", [[], ["--run-id", "r1"], ["--stop", "r1"]])
def test_a_machine_that_cannot_read_the_records_is_refused_before_anything_is_sent(kubeflow, start, capsys, more):
    assert start(*NO_BUCKET, *more) == exit_codes.ERROR
    assert re.match(r"error: gs://no-such-bucket/weekly.*submit the run with --detach", capsys.readouterr().err)
    assert kubeflow.calls == []


def test_detached_it_submits_the_run_and_leaves(kubeflow, start, capsys):
    assert start(*NO_BUCKET, "--detach") == exit_codes.PROMOTED
    (run_id,) = kubeflow.runs
    assert "get_run" not in kubeflow.calls
    out = capsys.readouterr().out
    assert value(out, "Run") == run_id
    assert value(out, "Run page") == f"{kubeflow.url}/#/runs/details/{run_id}"
    follow, stop = (shlex.split(value(out, key))[2:] for key in ("To follow it", "To stop it"))
    assert follow[-2:] == ["--run-id", run_id] and stop[-2:] == ["--stop", run_id]
    assert "--detach" not in follow + stop
    for command in (follow, stop):
        assert run_pipeline.parse_args(command)


def test_records_that_cannot_be_read_for_a_while_are_told_once(kubeflow, start, gs_root, capsys, caplog, monkeypatch):
    def away(*_, **__):
        raise ConnectionError("gs://posttrain-test: no answer")

    whole = following.read_records
    scenes = promoted(gs_root)
    scenes[1:1] = [Scene("RUNNING", happens=lambda _: monkeypatch.setattr(following, "read_records", away))] * 2
    back = lambda run_id: (monkeypatch.setattr(following, "read_records", whole), scenes[-1].happens(run_id))  # noqa: E731
    kubeflow.scenes = [*scenes[:-1], Scene("SUCCEEDED", happens=back)]
    assert start() == exit_codes.PROMOTED
    (message,) = caplog.messages
    assert message.startswith("the records cannot be read, and nothing new is shown: gs://posttrain-test")


def lost(root: str, **values) -> Scene:
    """The end of a run whose training pod was lost, unless `values` of its record say otherwise."""

    def happens(run_id: str) -> None:
        leave(root, run_id, "preflight", "fetch_model", "prepare_sft_data")
        judge(root, run_id, "check_sft_data", 0.5)
        leave(root, run_id, "train_sft", **{"status": "running"} | values)

    return Scene("FAILED", up_to("train-sft", "FAILED"), happens)


def test_a_run_that_failed_by_a_fault_is_submitted_again(kubeflow, start, gs_root, capsys):
    again = promoted(gs_root)[1:]
    kubeflow.scenes_of_runs = [[lost(gs_root)], again]
    assert start("--attempts", "3", "--junit", "gates.xml") == exit_codes.PROMOTED
    assert len(kubeflow.runs) == len({run.display_name for run in kubeflow.runs.values()}) == 2
    out = capsys.readouterr().out
    assert re.search(r"Submitted again, run 2 of 3, which continues from there: the run ended FAILED: http", out)
    assert not list(ElementTree.parse("gates.xml").iter("error"))


def test_it_is_submitted_no_more_often_than_asked(kubeflow, start, gs_root):
    kubeflow.scenes = [lost(gs_root)]
    assert start("--attempts", "2") == exit_codes.ERROR
    assert len(kubeflow.runs) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"status": "failed", "error": "ValueError: no rows"},
        {"status": "failed", "error": "Diverged: diverged at step 3/9: loss nan"},
    ],
)
def test_what_another_run_would_not_mend_is_not_submitted_again(kubeflow, start, gs_root, values):
    kubeflow.scenes = [lost(gs_root, **values)]
    assert start("--attempts", "3") == exit_codes.ERROR
    assert len(kubeflow.runs) == 1


def test_neither_is_a_run_that_a_gate_stopped_or_that_somebody_ended(kubeflow, start, gs_root):
    def stopped(run_id: str) -> None:
        judge(gs_root, run_id, "check_sft", 9.0)
        leave(gs_root, run_id, "fetch_model", status="running")

    kubeflow.scenes = [Scene("FAILED", up_to("check-sft"), stopped)]
    assert start("--attempts", "3") == exit_codes.STOPPED
    scene = lost(gs_root)
    kubeflow.scenes = [
        Scene("RUNNING", scene.tasks, lambda run_id: client.terminate(client.Client(kubeflow.url), run_id))
    ]
    assert start("--attempts", "3") == exit_codes.ERROR
    assert len(kubeflow.runs) == 2


def test_a_run_is_stopped_by_its_id(kubeflow, start, gs_root, capsys):
    def interrupt(run_id: str) -> None:
        leave(gs_root, run_id, "fetch_model", status="running")
        os.kill(os.getpid(), signal.SIGINT)

    kubeflow.scenes = [Scene("RUNNING", happens=interrupt), Scene("RUNNING")]
    assert start() == exit_codes.INTERRUPTED
    (run_id,) = kubeflow.runs
    command = shlex.split(value(capsys.readouterr().out, "To stop it"))
    assert run_pipeline.main(command[2:]) == 0
    assert kubeflow.calls.count("terminate_run") == 1
    assert kubeflow.calls.count("create_run") == 1
    out = capsys.readouterr().out
    assert value(out, "Kubeflow says") == "FAILED (canceled)"
    assert storage.exists(f"{gs_root}/runs/{run_id}/report.html")


def test_an_interrupt_detaches_and_the_line_it_prints_attaches_again(kubeflow, start, gs_root, capsys):
    def interrupt(run_id: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    first, *rest = promoted(gs_root)
    kubeflow.scenes = [first, Scene("RUNNING", happens=interrupt), *rest]
    assert start("--junit", "gates.xml") == exit_codes.INTERRUPTED
    (run_id,) = kubeflow.runs
    out = capsys.readouterr().out
    assert "it goes on" in out
    command = shlex.split(value(out, "To follow it"))
    assert command[:2] == ["python", "run_pipeline.py"]
    assert ElementTree.parse("gates.xml").find(".//error").text == "interrupted"

    assert run_pipeline.main(command[2:]) == exit_codes.PROMOTED
    assert list(kubeflow.runs) == [run_id]
    assert kubeflow.calls.count("create_run") == 1
    assert not list(ElementTree.parse("gates.xml").iter("error"))


def test_a_connection_that_stays_away_detaches_too(kubeflow, start, capsys, monkeypatch):
    monkeypatch.setattr(client, "FOLLOW_PATIENCE_SECONDS", 0.1)
    kubeflow.scenes = [Scene("RUNNING")]
    kubeflow.faults = {"get_run": [503] * 1_000}
    assert start() == exit_codes.ERROR
    told = capsys.readouterr()
    assert f"--run-id {next(iter(kubeflow.runs))}" in value(told.out, "To follow it")
    assert told.err.endswith(f"error: {kubeflow.url}: 503 Service Unavailable\n")


def test_a_token_that_is_not_accepted(kubeflow, start, tmp_path, capsys):
    kubeflow.token = "another"
    (tmp_path / "token").write_text("s3cret")
    assert start("--token-file", "token", "--junit", "gates.xml") == exit_codes.ERROR
    told = capsys.readouterr()
    assert re.fullmatch(r"error: .*401 Unauthorized.*write a fresh token into token\n", told.err)
    assert "s3cret" not in told.out + told.err + (tmp_path / "gates.xml").read_text()
    assert not kubeflow.runs


def test_images_that_are_only_here_are_refused(kubeflow, start, capsys, monkeypatch):
    monkeypatch.setattr(components.container, "IMAGES", ROOT / "images" / "digests.yaml")
    kubeflow.scenes = [Scene("FAILED")]
    assert start() == exit_codes.ERROR
    assert "no digest for posttrain-cpu:local and posttrain-train:local yet" in capsys.readouterr().err
    assert kubeflow.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sft-dataset", "data/sft.jsonl"], "sft_dataset='{here}/data/sft.jsonl': on this machine"),
        (["--base-model", "./model"], "base_model='{here}/model': on this machine"),
        (["--storage-root", "runs"], "storage_root='{here}/runs': on this machine"),
        (["--set", "publish_root=models"], "publish_root='{here}/models': on this machine"),
        (["--set", "validation.red_team_prompts=r.jsonl"], "validation.red_team_prompts='{here}/r.jsonl': on this"),
        (["--base-model", "./a", "--storage-root", "b"], "base_model='{here}/a', storage_root='{here}/b': on this"),
        (["--sft-dataset", "gs://elsewhere/sft.jsonl"], "none of the allowed prefixes"),
        (["--pipeline-root", "file:///tmp"], "give an address with gs://, s3://, minio://"),
        (["--set", 'sft_dataset=""'], "sft_dataset is empty; set it with --sft-dataset"),
    ],
)
def test_what_no_pod_could_read_is_refused_before_anything_is_sent(
    kubeflow, start, tmp_path, capsys, arguments, message
):
    assert start(*arguments) == exit_codes.ERROR
    told = capsys.readouterr()
    assert re.fullmatch(r"error: .*\n", told.err)
    assert message.format(here=tmp_path) in told.err
    assert kubeflow.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--namespace", "n"], "give --endpoint URL"),
        (["--stop", "r1"], "give --endpoint URL"),
        (["--attempts", "2"], "give N from 1, and --endpoint URL"),
        (["--endpoint", "http://localhost", "--fresh"], "--fresh is for this machine"),
        (["--endpoint", "http://localhost", "--detach", "--junit", "gates.xml"], "leave out --detach"),
        (["--endpoint", "http://localhost", "--stop", "r1", "--run-id", "r1"], "give one of them"),
    ],
)
def test_a_wrong_command_line_is_no_gate_that_stopped_the_run(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run_pipeline.main(arguments)
    assert caught.value.code == exit_codes.ERROR
    assert message in capsys.readouterr().err


def test_the_documented_command_of_kfp_itself_runs(kubeflow):
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^kfp .*?[^\\]$", text, re.MULTILINE | re.DOTALL)
    kubeflow.scenes = [Scene("FAILED")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"KFP_ENDPOINT": kubeflow.url, "PATH": path}
    done = subprocess.run(["bash", "-euc", command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    (run,) = kubeflow.runs.values()
    assert run.display_name.startswith("task-api ")
    assert run.runtime_config.parameters == {
        "sft_dataset": "gs://my-bucket/datasets/task_api/sft.jsonl",
        "preference_dataset": "gs://my-bucket/datasets/task_api/preferences.jsonl",
        "overrides": {"sft": {"epochs": 2}},
    }
    assert run.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "post-training"


def test_the_example_for_ci_gives_flags_that_there_are_and_pins_its_actions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "train.yaml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["train"]["steps"]
    script = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    (ours,) = re.findall(r"^python run_pipeline\.py (.*)$", script, re.MULTILINE)
    (check,) = re.findall(r"^python compile\.py (.*)$", script, re.MULTILINE)
    args = run_pipeline.build_parser().parse_args(shlex.split(ours))
    assert (args.endpoint, args.token_file, args.junit) == ("$KFP_ENDPOINT", "$RUNNER_TEMP/token", "gates.xml")
    assert compile_command.build_parser().parse_args(shlex.split(check)).check
    assert "${{" not in script
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in steps if "uses" in step)
