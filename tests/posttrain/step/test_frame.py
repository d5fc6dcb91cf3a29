import json
import logging
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

from posttrain.config import SftConfig
from posttrain.step import code, digests, frame, kfp_io, records
from posttrain.step.run import Unfinished

DEFAULTS = SftConfig()


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    return kfp_io.parser("posttrain.sft").parse_args(["--step", "train_sft", "--storage-root", str(tmp_path / "root")])


@pytest.fixture
def step(args, tmp_path):
    """Runs one step which writes a file and a folder; says how often the work was really done."""
    (tmp_path / "in.txt").write_text("input")

    def run(config=DEFAULTS, **changes):
        done = []

        def work(_):
            done.append(1)
            (tmp_path / "out.txt").write_text("output")
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / "weights").write_text("weights")
            return {"loss": 0.5}

        outputs = {"out": str(tmp_path / "out.txt"), "model": str(tmp_path / "model")}
        settings = {"inputs": {"in": str(tmp_path / "in.txt")}, "outputs": outputs, "work": work} | changes
        return frame.run_step(args, config=config, **settings), len(done)

    return run


def test_a_finished_result_is_reused_by_content(step, tmp_path, args):
    first, done = step()
    assert done == 1
    (tmp_path / "out.txt").unlink()
    (tmp_path / "model" / "weights").unlink()
    second, done = step()
    assert (done, second) == (0, first)
    assert (tmp_path / "model" / "weights").read_text() == "weights"
    assert [r.status for r in records.read_records(args.storage_root, "run-1")] == ["succeeded", "reused"]


def test_a_damaged_result_leaves_nothing_where_it_is_made_again(step, tmp_path, args):
    first, _ = step()
    Path(args.storage_root, first.kept, "model", "weights").write_text("garbage")
    (tmp_path / "out.txt").unlink()
    (tmp_path / "model" / "weights").unlink()
    (tmp_path / "model").rmdir()

    def work(_):
        assert not (tmp_path / "model").exists() and not (tmp_path / "out.txt").exists()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text("weights")
        (tmp_path / "out.txt").write_text("output")
        return {"loss": 0.5}

    assert step(work=work)[0].outputs == first.outputs


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_receipt_is_no_result_and_the_next_one_is_found(content, step, args, caplog):
    step()
    (receipt,) = Path(args.storage_root).glob("results/train_sft/*/COMPLETE.json")
    receipt.write_text(content)
    assert step()[1] == 1
    assert f"{receipt}: is damaged" in caplog.text
    assert step()[1] == 0


def test_work_is_given_a_value_and_the_command_line_stays_as_it_was(step, args, tmp_path):
    parsed = dict(vars(args))
    seen = []

    def work(running):
        seen.append(running)
        (tmp_path / "out.txt").write_text("output")
        running.add_digest("out", "computed while writing")
        return {}

    outputs = {"out": str(tmp_path / "out.txt")}
    inputs = {"in": str(tmp_path / "in.txt"), "folder": str(tmp_path / "folder"), "absent": None}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    result, _ = step(inputs=inputs, outputs=outputs, work=work, reusable=False)
    (running,) = seen
    assert vars(args) == parsed
    assert running.inputs == {name: digests.digest(path) for name, path in inputs.items() if path}
    assert running.files == {"folder": digests.file_digests(tmp_path / "folder")}
    assert records.read_records(args.storage_root, "run-1")[-1].fingerprint == running.fingerprint
    assert result.outputs == {"out": "computed while writing"}


def test_another_input_or_configuration_is_another_result(step, tmp_path):
    step()
    assert step(config=SftConfig(epochs=1))[1] == 1
    (tmp_path / "in.txt").write_text("another input")
    assert step()[1] == 1


def test_a_damaged_result_is_made_again(step, tmp_path, args, caplog):
    step()
    (kept,) = (tmp_path / "root" / "results" / "train_sft").rglob("weights")
    kept.write_text("other weights")
    assert step()[1] == 1
    assert "is damaged, doing the work again: 'model' is damaged" in caplog.text
    assert step()[1] == 0


@pytest.mark.parametrize("change", [Path.touch, Path.unlink])
def test_a_result_of_an_input_that_changed_meanwhile_is_none(change, step, tmp_path, args):
    def work(_):
        (tmp_path / "out.txt").write_text("output")
        change(tmp_path / "in.txt")
        return {}

    with pytest.raises((ValueError, FileNotFoundError), match=r"in\.txt"):
        step(outputs={"out": str(tmp_path / "out.txt")}, work=work)
    assert [entry.status for entry in records.read_records(args.storage_root, "run-1")] == ["failed"]
    assert not (tmp_path / "root" / "results").exists()


def test_a_file_beside_a_reused_result_shows(step, tmp_path):
    step()
    (tmp_path / "model" / "stranger").write_text("of nobody")
    again, done = step()
    assert (done, again.outputs["model"]) == (1, digests.digest(tmp_path / "model"))


def test_a_result_without_one_of_its_files_is_made_again(step, tmp_path, caplog):
    step()
    (kept,) = (tmp_path / "root" / "results" / "train_sft").rglob("out")
    kept.unlink()
    assert step()[1] == 1
    assert "is damaged" in caplog.text


def test_two_runs_that_finish_at_once_never_mix_files(step, tmp_path):
    def overtaken(_):
        step()  # another process is faster
        (tmp_path / "out.txt").write_text("of the slower")
        return {"loss": 0.5}

    slow, _ = step(work=overtaken)
    root = tmp_path / "root"
    assert (root / slow.kept / "out").read_text() == "of the slower"
    fast, done = step()
    assert (done, (root / fast.kept / "out").read_text()) == (0, "output")


def test_a_fresh_run_takes_nothing_over(step, monkeypatch):
    step()
    monkeypatch.setenv("POSTTRAIN_FRESH", "1")
    assert step()[1] == 1
    monkeypatch.delenv("POSTTRAIN_FRESH")
    assert step()[1] == 0


def test_what_a_gate_left_that_stopped_a_run_is_evidence_and_no_result(step, tmp_path):
    def stop(_):
        (tmp_path / "out.txt").write_text("no")
        return {"passed": False}

    outputs = {"out": str(tmp_path / "out.txt")}
    stopped, _ = step(outputs=outputs, work=stop)
    assert (tmp_path / "root" / stopped.kept / "out").read_text() == "no"
    assert step()[1] == 1


def test_a_step_says_that_it_runs_before_it_works(step, args):
    seen = []

    def look(_):
        seen.extend(records.read_records(args.storage_root, "run-1"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(work=look)
    (running,) = seen
    assert (running.status, running.attempt, set(running.inputs)) == ("running", 1, {"in"})
    assert running.fingerprint
    (after,) = records.read_records(args.storage_root, "run-1")
    assert (after.status, after.attempt) == ("failed", 1)


def test_a_step_that_left_to_go_on_later_is_no_failure(step, args):
    def leave(_):
        raise Unfinished("left at step 3/9: SIGTERM; the next attempt goes on from step 3")

    with pytest.raises(SystemExit) as left:
        step(work=leave)
    assert left.value.code == 75
    (entry,) = records.read_records(args.storage_root, "run-1")
    assert (entry.status, entry.error) == ("unfinished", str(left.value))


def test_a_step_that_raises_is_recorded_and_raises(step, args):
    def work(_):
        raise ValueError("row 3 is empty")

    with pytest.raises(ValueError, match="row 3 is empty"):
        step(work=work)
    (failed,) = records.read_records(args.storage_root, "run-1")
    assert (failed.status, failed.error) == ("failed", "ValueError: row 3 is empty")
    assert step()[1] == 1


def test_a_record_says_what_its_fingerprint_binds(step, args):
    step()
    (done,) = records.read_records(args.storage_root, "run-1")
    bound = {"config": done.config, "inputs": done.inputs}
    assert code.fingerprint(done.step, **bound, code=done.code) == done.fingerprint
    newer = done.code.model_copy(update={"libraries": done.code.libraries | {"trl": "99"}})
    assert code.fingerprint(done.step, **bound, code=newer) != done.fingerprint
    assert done.code.posttrain == metadata.version("posttrain")


def test_attempts_are_numbered_and_kept(step, args):
    for _ in range(3):
        step(reusable=False)
    assert [r.attempt for r in records.read_records(args.storage_root, "run-1")] == [1, 2, 3]


def test_a_folder_digest_follows_names_and_contents(tmp_path):
    for name, file, text in (("a", "x/f", "1"), ("b", "x/f", "1"), ("c", "y/f", "1"), ("d", "x/f", "2")):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_text(text)
    a, b, c, d = (digests.digest(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert digests.folder_digest(digests.file_digests(tmp_path / "a")) == a


def test_outputs_reach_kubeflow(step, args, tmp_path):
    passed = tmp_path / "passed"
    args.executor_input = json.dumps(
        {
            "outputs": {
                "outputFile": str(tmp_path / "output.json"),
                "parameters": {"passed": {"outputFile": str(passed)}},
                "artifacts": {"out": {"artifacts": [{"name": "out", "uri": "gs://b/out"}]}},
            }
        }
    )
    outputs = {"out": str(tmp_path / "out.txt")}

    def work(_):
        (tmp_path / "out.txt").write_text("output")
        return {"passed": True}

    step(outputs=outputs, work=work)
    written = json.loads((tmp_path / "output.json").read_text())
    assert (passed.read_text(), written["parameterValues"]) == ("true", {"passed": True})
    assert written["artifacts"]["out"]["artifacts"][0]["metadata"]["sha256"] == digests.digest(tmp_path / "out.txt")


def test_a_run_cannot_choose_a_storage_root_elsewhere(step, args):
    args.config = json.dumps({"allowed_prefixes": ["gs://bucket/"]})
    with pytest.raises(ValueError, match="storage_root"):
        step()
    assert not records.read_records(args.storage_root, "run-1")


def test_the_record_of_a_running_step_is_written_again_and_again(step, args, monkeypatch):
    monkeypatch.setattr("posttrain.step.progress.BEAT_SECONDS", 0.02)
    seen = []

    def work(_):
        logging.getLogger("posttrain").warning("step 3/9 loss 0.5")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            (record,) = records.read_records(args.storage_root, "run-1")
            if record.progress:
                break
            time.sleep(0.01)
        seen.append(record)
        return {}

    step(work=work, outputs={})
    assert (seen[0].status, seen[0].progress.words, seen[0].is_alive) == ("running", "step 3/9", True)
    (record,) = records.read_records(args.storage_root, "run-1")
    assert (record.status, record.progress.done, record.is_alive) == ("succeeded", 3, False)


def test_a_running_step_that_was_not_heard_of_for_a_minute_is_dead():
    values = {"step": "train_sft", "attempt": 1, "run_id": "r", "status": "running", "fingerprint": "f"}
    values |= {"config": {}, "inputs": {}, "outputs": {}, "measured": {}}
    for seconds, is_alive in ((3590.0, True), (3500.0, False)):
        started = datetime.now(UTC) - timedelta(hours=1)
        record = records.StepRecord(**values, started_at=started.isoformat(), seconds=seconds)
        assert record.is_alive == is_alive


def test_a_run_cannot_choose_a_storage_root_that_the_graph_was_not_compiled_for(step, args):
    args.config = json.dumps({"allowed_prefixes": ["/"], "allowed_storage_roots": [f"{args.storage_root}-of-ours"]})
    with pytest.raises(ValueError, match="is not a storage root that this graph was compiled for"):
        step()
    assert not records.read_records(args.storage_root, "run-1")
