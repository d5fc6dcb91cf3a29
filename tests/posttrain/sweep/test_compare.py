"""A comparison without a winner says so; a comparison removes the checkpoints of the trials that lost."""

import json

import pytest

from posttrain import storage
from posttrain.config import RUN_ID_ENV, PipelineConfig
from posttrain.config.sweep import CompareStep, SweepConfig
from posttrain.step import records
from posttrain.sweep import compare
from posttrain.sweep.compare import check_winner, remove_losers
from posttrain.sweep.ranking import Candidate, Measure, ranked
from posttrain.sweep.study import Study
from posttrain.train.checkpoints import Checkpoints

HALVING = {"reduction_factor": 2, "num_rungs": 2}
LOSSES = {"trial_1": 0.4, "trial_2": 0.1, "trial_3": 0.2, "trial_4": None}


@pytest.fixture
def study(tmp_path):
    """After the first of two rungs; the last trial was killed in it."""
    sweep = SweepConfig(space={"sft.lora_r": [1, 2, 3, 4]}, halving=HALVING)
    study = Study(str(tmp_path / "root"), "study", sweep)
    for number, (name, loss) in enumerate(LOSSES.items()):
        train(study, tmp_path, f"first.{name}", fingerprint=f"{number}" * 64)
        measures = {} if loss is None else {"check_sft.held_out_loss": Measure(value=loss)}
        candidate = Candidate(
            name=name, run_id=f"first.{name}", settings={"sft.lora_r": number + 1}, measures=measures,
            status="killed" if loss is None else "qualified", objective="check_sft.held_out_loss",
        )  # fmt: skip
        study.keep(name, candidate)
    return study


def train(study: Study, folder, run_id: str, *, fingerprint: str) -> None:
    """Leaves behind what a training does: its record and a checkpoint."""
    (folder / "trainer_state.json").write_text("{}")
    Checkpoints(study.storage_root, "train_sft", fingerprint, run_id, limit=5).publish(folder, step=10)
    entry = {"step": "train_sft", "attempt": 1, "run_id": run_id, "status": "unfinished", "fingerprint": fingerprint}
    entry |= {"started_at": "2026-01-01T00:00:00Z", "seconds": 1.0}
    entry |= {name: {} for name in ("config", "inputs", "outputs", "measured")}
    records.write_record(study.storage_root, records.StepRecord.model_validate(entry))


def left(study: Study) -> set[str]:
    """The runs whose checkpoints there are."""
    names = storage.list_files(storage.join(study.storage_root, "checkpoints"))
    return {name.split("/")[3].rpartition("-")[0] for name in names}


def test_after_a_rung_who_goes_on_and_who_was_killed_keeps_its_checkpoints(study):
    remove_losers(study, 0, best=None)
    assert left(study) == {"first.trial_2", "first.trial_3", "first.trial_4"}


@pytest.mark.parametrize("keeps_best", [True, False])
def test_after_the_last_rung_only_the_best_one_has_some_if_they_are_to_be_kept(study, tmp_path, keeps_best):
    candidates = study.ended(study.sweep.rungs[0])
    for rank, candidate in enumerate((candidates[1], candidates[2]), start=1):
        candidate = candidate.model_copy(update={"run_id": f"second.{candidate.name}", "rung": 1})  # it was resumed
        train(study, tmp_path, candidate.run_id, fingerprint=f"{rank}" * 64)
        study.keep(f"rung_2_rank_{rank}", candidate)
    remove_losers(study, 1, best=candidates[1] if keeps_best else None)
    assert left(study) == {"first.trial_4"} | ({"first.trial_2", "second.trial_2"} if keeps_best else set())


def test_what_another_run_has_written_stays(study, tmp_path):
    train(study, tmp_path, "by-hand", fingerprint="0" * 64)
    remove_losers(study, 0, best=None)
    assert "by-hand" in left(study) and "first.trial_1" not in left(study)


def test_a_training_that_losers_share_with_the_best_keeps_its_checkpoints(study, tmp_path):
    train(study, tmp_path, "first.trial_1", fingerprint="1" * 64)  # made by one trial, reused by another
    remove_losers(study, 0, best=None)
    assert left(study) == {"first.trial_1", "first.trial_2", "first.trial_3", "first.trial_4"}
    shared = storage.list_files(storage.join(study.storage_root, "checkpoints", "train_sft", "0" * 64))
    assert not shared


def test_where_none_qualifies_each_kind_of_end_is_told_once():
    ends = [("trial_1", "diverged", "at step 3"), ("trial_2", "gate failed", "loss 9"), ("trial_3", "diverged", "at 4")]
    found = [Candidate(name=name, run_id=name, settings={}, status=end, reason=why) for name, end, why in ends]
    with pytest.raises(ValueError) as caught:
        check_winner(ranked(found, 1))
    words = "none of 3 trials qualifies: 2 diverged, trial_1: at step 3; 1 gate failed, trial_2: loss 9"
    assert str(caught.value) == words


@pytest.mark.parametrize("qualifies", [True, False])
def test_there_is_a_winners_configuration_only_for_a_winner(tmp_path, monkeypatch, qualifies):
    monkeypatch.setenv(RUN_ID_ENV, "r")
    sweep = SweepConfig(space={"sft.lora_r": [4]}, objective={"metric": "held_out_loss"})
    study = Study(str(tmp_path / "root"), "study", sweep)
    candidate = Candidate(
        name="trial_1", run_id="r.trial_1", settings={"sft.lora_r": 4}, status="qualified" if qualifies else "killed",
        measures={"check_sft.held_out_loss": Measure(value=0.1)}, objective="check_sft.held_out_loss",
    )  # fmt: skip
    study.keep("trial_1", candidate)
    pipeline = PipelineConfig(storage_root=str(tmp_path / "root")).model_dump(mode="json", exclude_none=True)
    step = CompareStep(sweep=sweep, pipeline=pipeline)
    flags = {"step": "compare_trials", "storage-root": study.storage_root, "config": step.model_dump_json()}
    flags |= {"rows": json.dumps([[], ["", storage.join(study.root, "trial_1.json")]])}
    flags |= dict.fromkeys(("base-model", "sft-dataset", "preference-dataset", "model-name"), "x")
    flags |= {name: str(tmp_path / name) for name in ("table", "summary", "csv", "winner", "best")}
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    if qualifies:
        compare.main(argv)
    else:
        with pytest.raises(ValueError, match="none of 1 trials qualifies"):
            compare.main(argv)
    folder = tmp_path / "root" / "runs" / "r" / "compare_trials"
    assert (folder / "winner.yaml").exists() == (tmp_path / "winner").exists() == qualifies
    assert (folder / "comparison.html").exists() and (folder / "trials.csv").exists()
