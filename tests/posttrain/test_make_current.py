"""The last step makes current what its gate judged, whatever became of earlier attempts, and clears up."""

import json
import shutil
from pathlib import Path

import pytest

from posttrain import make_current, promote, verify
from posttrain.config import RUN_ID_ENV, PromoteStep
from posttrain.config.line import CHAMPION
from posttrain.step import records
from posttrain.storage import layout
from posttrain.train.checkpoints import COMPLETE
from posttrain.verdict import holds
from tests.posttrain.line import Line

PASSED, FAILED = (holds("not_worse", True),), (holds("not_worse", False),)


@pytest.fixture
def line(tmp_path, monkeypatch) -> Line:
    """A run that has published, and whose gate compared the model with promotion 0, that is with none."""
    monkeypatch.setenv(RUN_ID_ENV, "run-1")
    line = Line(tmp_path).run()
    receipt = line.publish(str(tmp_path / "published"), version="v1")
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    compare(line, PASSED, follows=0)
    return line


def compare(line: Line, checks: tuple, *, follows: int) -> None:
    line.judge(CHAMPION, {"model": line.model}, checks=checks, claims={"numbers": {make_current.FOLLOWS: follows}})


def make(line: Line, **settings) -> promote.Promotion:
    """Runs the command, and returns what it wrote."""
    step = PromoteStep(publish_root=str(line.folder / "published"), **settings)
    output = line.folder / "out" / "promotion.json"
    output.parent.mkdir(exist_ok=True)
    make_current.main([
        "--step", "promote_model", "--storage-root", line.root, "--config", step.model_dump_json(),
        "--receipt", str(line.folder / "receipt.json"), "--promotion", str(output),
    ])  # fmt: skip
    return promote.Promotion.model_validate_json(output.read_bytes())


def current(line: Line) -> promote.Promotion | None:
    return promote.current(str(line.folder / "published" / "m"))


def checkpoint(line: Line, run_id: str) -> Path:
    """A checkpoint that a run has written."""
    folder = Path(layout.checkpoints(line.root, "train_sft", "f"), "step-00000001", f"{run_id}-0123abcd")
    folder.mkdir(parents=True)
    (folder / COMPLETE).write_text("{}")
    return folder


def test_the_command_makes_current_what_was_judged_and_records_it(line):
    promotion = make(line)
    assert (promotion.version, promotion.number, promotion.by) == ("v1", 1, "run-1")
    assert promotion.reason == "check_champion passed"
    assert current(line) == promotion
    record = records.read_records(line.root, "run-1")[-1]
    assert (record.step, record.status) == ("promote_model", "succeeded")
    assert record.measured == promotion.model_dump(mode="json")
    assert record.inputs.keys() == {"receipt"} and record.outputs.keys() == {"promotion"}


def test_another_attempt_looks_again_and_takes_no_result_over(line):
    """Somebody may have made another version current in between."""
    make(line)
    line.publish(str(line.folder / "published"), version="v2")
    folder = str(line.folder / "published" / "m")
    promote.promote(folder, "v2", model_name="m", follows=1, by="ann", reason="better")
    with pytest.raises(ValueError, match="version v2 by promotion 2 of ann is current"):
        make(line)
    assert current(line).version == "v2"


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_checkpoints_of_the_run_go_unless_they_are_wanted(line, is_kept):
    own, others = checkpoint(line, "run-1"), checkpoint(line, "run-2")
    make(line, save_intermediate=is_kept)
    assert own.exists() is is_kept and others.exists()


def test_the_last_verdict_counts(line):
    compare(line, FAILED, follows=0)
    with pytest.raises(ValueError, match="check_champion: did not pass in run run-1"):
        make(line)
    compare(line, PASSED, follows=0)
    assert make(line).number == 1


def test_a_verdict_that_names_no_promotion_is_refused(line):
    line.judge(CHAMPION, {"model": line.model}, checks=PASSED)
    with pytest.raises(ValueError, match="does not say which promotion it compared with; run again"):
        make(line)
    assert current(line) is None


def test_a_version_that_was_exchanged_since_it_was_published_is_not_made_current(line):
    """It agrees with itself: whoever exchanges it can write its manifest and its chain anew."""
    folder = line.folder / "published" / "m" / "v1"
    shutil.rmtree(folder)
    other = Line(line.folder / "other", run_id="run-2", seed="other").run()
    other.publish(str(line.folder / "published"), version="v1")
    assert verify.verify(str(folder)).faults == []
    with pytest.raises(ValueError, match=r"v1/manifest.json: its SHA-256 is \w+, not \w+ as when this run published"):
        make(line)
    assert current(line) is None
