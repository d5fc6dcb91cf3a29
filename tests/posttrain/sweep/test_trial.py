"""A trial, its steps stood in for: every end of a child process is a candidate, and what is known stays known."""

import json
import math
from functools import partial
from pathlib import Path

import pytest

from posttrain.config import RUN_ID_ENV
from posttrain.config.sweep import Command, SweepConfig, TrialStep
from posttrain.step import records
from posttrain.sweep import children, trial
from posttrain.sweep.claims import Claims
from posttrain.sweep.ranking import Candidate, Cost
from posttrain.train import ends
from posttrain.train.checkpoints import Checkpoints
from posttrain.train.stage import ADAPTER_FILES
from tests.posttrain.sweep.stand_in import RATES

MODULE = "tests.posttrain.sweep.stand_in"
COMMANDS = [
    Command(step="train_sft", module=MODULE, config={"training": {}}, inputs={}, outputs=["adapter"]),
    Command(
        step="check_sft", module=MODULE, config={}, outputs=["passed", "verdict"],
        inputs={"adapter": "train_sft.adapter", "eval": "prepare_sft_data.eval"},
    ),
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a step of the sweep `rates` and gives its record and its candidate."""
    monkeypatch.setattr(children, "import_libraries", Cost)  # stand-ins need none

    def run(slot: str, *rates: float, run_id: str = "r", overrides: str = "{}", **settings):
        monkeypatch.setenv(RUN_ID_ENV, run_id)
        sweep = SweepConfig(space={"sft.learning_rate": list(rates)}, **settings)
        step = TrialStep(sweep=sweep, commands=COMMANDS)
        files = {"base": "base", "sft-train": "train", "sft-eval": "selection"}
        files |= {"sft-judged": "unseen"} if slot == "judge_winner" else {}
        for text in files.values():
            Path(tmp_path, text).write_text(text)
        flags = {name: str(tmp_path / text) for name, text in files.items()}
        flags |= {"step": slot, "storage-root": str(tmp_path / "root"), "config": step.model_dump_json()}
        flags |= {"summary": str(tmp_path / "summary.md"), "metrics": str(tmp_path / "metrics.json")}
        monkeypatch.chdir(Path(__file__).parents[3])
        trial.main(
            [word for name, value in flags.items() for word in (f"--{name}", value)] + ["--overrides", overrides]
        )
        entry = [found for found in records.read_records(str(tmp_path / "root"), run_id) if found.step == slot][-1]
        place = entry.measured["row"]
        return entry, Candidate.model_validate_json(Path(place).read_text()) if place else None

    return run


def test_a_trial_that_passes_its_gate_qualifies_with_its_numbers_and_its_cost(run):
    entry, candidate = run("trial_2", 0.3, 0.4)
    assert (candidate.status, candidate.settings, candidate.name) == (
        "qualified",
        {"sft.learning_rate": 0.4},
        "trial_2",
    )
    assert candidate.measure.model_dump() == {"value": 0.4, "interval": (pytest.approx(0.39), pytest.approx(0.41))}
    assert candidate.cost.cpu_seconds > 0 and candidate.cost.peak_memory > 10_000_000
    assert entry.measured["check_sft.held_out_loss"] == 0.4


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        ("diverges", "diverged", "train_sft: diverged at step 3/9"),
        ("runs out of memory", "out of memory", "can't allocate memory"),
        ("is killed", "killed", "train_sft: ended by SIGKILL (out of memory?)"),
        ("breaks", "failed", "ValueError: rows are broken"),
        ("fails its gate", "gate failed", "check_sft: held_out_loss: 0.5, not <= 0.45"),
    ],
)
def test_what_goes_wrong_is_the_candidates_status_and_never_a_failure(run, end, status, reason):
    entry, candidate = run("trial_1", RATES[end])
    assert entry.status == "succeeded"
    assert candidate.status == status
    assert reason in candidate.reason


def test_a_constraint_disqualifies(run):
    bound = {"metric": "num_held_out_rows", "min": 100}
    _, candidate = run("trial_1", 0.3, constraints=[bound])
    assert (candidate.status, candidate.reason) == (
        "constraint not kept",
        "check_sft.num_held_out_rows is not at least 100",
    )


def test_an_objective_that_nothing_measures_is_said(run):
    _, candidate = run("trial_1", 0.3, objective={"metric": "answer_correct"})
    assert candidate.status == "not measured"
    assert "check_sft.held_out_loss" in candidate.reason


def test_another_run_of_the_same_sweep_takes_over_what_is_final_alone(run):
    for end, status in (("diverges", "reused"), ("is killed", "succeeded")):
        run("trial_1", RATES[end])
        entry, _ = run("trial_1", RATES[end], run_id="again")
        assert entry.status == status


def test_another_sweep_takes_over_nothing(run):
    run("trial_1", 0.3)
    entry, _ = run("trial_1", 0.3, run_id="again", seed=1)
    assert entry.status == "succeeded"


def test_parallelism_and_what_follows_make_no_other_sweep(run):
    run("trial_1", 0.3)
    entry, _ = run("trial_1", 0.3, run_id="again", parallelism=2, continue_with_best=False)
    assert entry.status == "reused"


def test_the_winner_is_judged_on_other_rows(run):
    _, chosen = run("trial_1", 0.3)
    _, winner = run("judge_winner", 0.3, overrides=json.dumps({"sft": {"learning_rate": 0.3}}))
    assert chosen.measures["check_sft.num_held_out_rows"].value == len("selection")
    assert winner.measures["check_sft.num_held_out_rows"].value == len("unseen")


def test_the_next_rung_takes_the_best_and_leaves_the_rest(run):
    halving = {"halving": {"reduction_factor": 2, "num_rungs": 2}}
    for name in ("trial_1", "trial_2", "trial_3", "trial_4"):
        _, candidate = run(name, 0.5, 0.2, 0.9, 0.3, **halving)
    assert candidate.status == "qualified"  # 0.3; and 0.5 too: limits are for trainings that came to their end
    names = [run(f"rung_2_rank_{rank}", 0.5, 0.2, 0.9, 0.3, **halving)[1].name for rank in (1, 2)]
    assert names == ["trial_2", "trial_4"]


def test_a_rung_that_too_few_qualify_for_has_empty_places(run):
    halving = {"halving": {"reduction_factor": 2, "num_rungs": 2}}
    for name in ("trial_1", "trial_2", "trial_3", "trial_4"):
        run(name, 0.9, 0.2, 0.8, 0.7, **halving)
    _, candidate = run("rung_2_rank_2", 0.9, 0.2, 0.8, 0.7, **halving)
    assert candidate is None


def test_a_step_starts_its_own_clock_and_does_what_it_has_to_at_its_end(tmp_path, monkeypatch):
    """A fork inherits the modules of the trial: when it started, what it is to do at its end."""
    monkeypatch.setattr(ends, "STARTED", 0.0)
    command = Command(step="step", module="tests.posttrain.sweep.own_state", config={}, inputs={}, outputs=["found"])
    shared = children.Trial(
        storage_root=str(tmp_path / "root"), run_id="r.trial_1", overrides={}, folder=tmp_path, given={}, judged={}
    )
    ended = children.run(command, shared, config={}, num_gpus=0)
    content = json.loads((tmp_path / "step" / "found").read_text())
    assert ended.status == ""
    assert content == {"run_id": "r.trial_1", "has_started_itself": True}
    assert (tmp_path / "step" / "found.at_exit").exists()


@pytest.mark.parametrize(("step", "is_far_enough"), [(4, False), (5, True)])
def test_a_preference_training_that_is_cut_short_gives_what_its_checkpoint_holds(tmp_path, step, is_far_enough):
    """So the gates of a lower rung find an adapter, and that DPO started at the start model."""
    log = [{"loss": math.log(2), "grad_norm": 2.0}, {"loss": 0.5, "grad_norm": 1.0}]
    state = {"global_step": step, "max_steps": 10, "epoch": 0.5, "log_history": log}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    for name in ADAPTER_FILES:
        (tmp_path / name).write_text(name)
    root, training = str(tmp_path / "root"), {"run_id": "r.trial_1", "fingerprint": "f" * 64}
    Checkpoints(root, "train_dpo", limit=1, **training).publish(tmp_path, step=step)
    entry = {"step": "train_dpo", "attempt": 1, "status": "unfinished", "started_at": "2026-01-01T00:00:00Z"}
    entry |= training | {"seconds": 1.0} | {name: {} for name in ("config", "inputs", "outputs", "measured")}
    records.write_record(root, records.StepRecord.model_validate(entry))
    command = Command(step="train_dpo", module="posttrain.dpo", config={"training": {}}, inputs={}, outputs=["adapter"])
    shared = children.Trial(
        storage_root=root, run_id="r.trial_1", overrides={"dpo": {"beta": 0.2}}, folder=tmp_path / "out", given={},
        judged={},
    )  # fmt: skip
    assert trial.take_checkpoint(command, shared, 0.5) is is_far_enough
    assert (tmp_path / "out" / "train_dpo" / "adapter").exists() is is_far_enough
    if is_far_enough:
        metrics = json.loads((tmp_path / "out" / "train_dpo" / "metrics").read_text())
        assert (metrics["start_loss"], metrics["total_steps"]) == (pytest.approx(math.log(2)), 5)
        assert metrics["max_gradient_norm"] == 2.0


def test_a_step_that_hangs_is_ended_and_is_a_row(run, monkeypatch):
    monkeypatch.setattr(children, "GRACE_SECONDS", 1.0)
    late = [command.model_copy(update={"seconds": 1}) for command in COMMANDS]
    monkeypatch.setattr(f"{__name__}.COMMANDS", late)
    _, candidate = run("trial_1", RATES["hangs"])
    assert (candidate.status, candidate.reason) == (
        "out of time", "train_sft: ended when its time was up (timeout_minutes)"
    )  # fmt: skip


@pytest.fixture
def work_off(tmp_path, monkeypatch):
    """Runs a worker of the sweep over these rates and returns the rows that it hands on."""
    monkeypatch.setattr(children, "import_libraries", Cost)
    monkeypatch.setenv(RUN_ID_ENV, "r")
    monkeypatch.chdir(Path(__file__).parents[3])
    for name in ("base", "train", "selection"):
        (tmp_path / name).write_text(name)

    def run(worker: str, *rates: float, **settings) -> list[str]:
        sweep = SweepConfig(space={"sft.learning_rate": list(rates)}, parallelism=2, **settings)
        folder = tmp_path / worker
        folder.mkdir(exist_ok=True)
        outputs = {
            "parameters": {"rows": {"outputFile": str(folder / "rows")}},
            "outputFile": str(folder / "output.json"),
        }
        flags = {"base": "base", "sft-train": "train", "sft-eval": "selection"}
        flags = {name: str(tmp_path / text) for name, text in flags.items()}
        flags |= {"step": worker, "storage-root": str(tmp_path / "root"), "rows": str(folder / "rows")}
        flags |= {"config": TrialStep(sweep=sweep, commands=COMMANDS).model_dump_json()}
        flags |= {"summary": str(folder / "summary.md"), "metrics": str(folder / "metrics.json")}
        flags |= {"executor-input": json.dumps({"outputs": outputs})}
        trial.main([word for name, value in flags.items() for word in (f"--{name}", value)])
        return [Path(row).stem for row in json.loads((folder / "rows").read_text())]

    return run


def test_workers_share_the_trials_of_a_rung(work_off, tmp_path):
    claims = tmp_path / "root" / "runs" / "r" / "claims"
    claims.mkdir(parents=True)
    (claims / "trial_2.1.json").write_text('{"worker": "rung_1_worker_2", "beat": 7, "is_done": true}')
    assert work_off("rung_1_worker_1", 0.3, 0.4, 0.35) == ["trial_1", "trial_3"]
    assert work_off("rung_1_worker_2", 0.3, 0.4, 0.35) == ["trial_2"]  # which it had taken before it was lost
    assert work_off("rung_1_worker_1", 0.3, 0.4, 0.35) == ["trial_1", "trial_3"]
    entries = records.read_records(str(tmp_path / "root"), "r")
    assert [(entry.step, entry.status) for entry in entries] == [
        ("trial_1", "succeeded"), ("trial_3", "succeeded"), ("trial_2", "succeeded"), ("trial_1", "reused"),
        ("trial_3", "reused"),
    ]  # fmt: skip
    assert "trial\\_3" in (tmp_path / "rung_1_worker_1" / "summary.md").read_text()


def test_a_worker_works_off_the_trial_of_one_that_is_lost(work_off, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "Claims", partial(Claims, lease_seconds=0.2, beat_seconds=0.05))
    claims = tmp_path / "root" / "runs" / "r" / "claims"
    claims.mkdir(parents=True)
    (claims / "trial_1.1.json").write_text('{"worker": "rung_1_worker_2", "beat": 7, "is_done": false}')
    assert work_off("rung_1_worker_1", 0.3, 0.4) == ["trial_2", "trial_1"]
    assert work_off("rung_1_worker_2", 0.3, 0.4) == []


def test_a_worker_that_comes_too_late_hands_on_nothing(work_off, tmp_path):
    work_off("rung_1_worker_1", 0.3, 0.4)
    assert work_off("rung_1_worker_2", 0.3, 0.4) == []
    assert "Other workers" in (tmp_path / "rung_1_worker_2" / "summary.md").read_text()


def test_a_step_named_after_a_trial_runs_that_alone(work_off):
    assert work_off("trial_2", 0.3, 0.4) == ["trial_2"]
