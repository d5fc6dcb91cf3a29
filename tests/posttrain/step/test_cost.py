"""Tests what a run is expected to cost, by the records of earlier runs alone."""

from posttrain.step.cost import Cost, Load, costs, sentence
from posttrain.step.progress import Progress
from posttrain.step.records import StepRecord

BASE = "hf://org/tiny"


def record(step: str, run_id: str = "r1", **values) -> StepRecord:
    given = {"status": "succeeded", "seconds": 12.0, "work_seconds": 10.0, "measured": {}} | values
    return StepRecord(
        step=step, attempt=1, run_id=run_id, started_at="2026-01-01T00:00:00+00:00", fingerprint="f", config={},
        inputs={}, outputs={}, peak_memory=2_000_000_000, **given,
    )  # fmt: skip


def fetched(run_id: str = "r1", source: str = BASE) -> StepRecord:
    return record("fetch_model", run_id, measured={"source": source})


TRAINED = record("train_sft", measured={"samples_processed": 100}, num_gpus=2)


def known(*records: StepRecord, base_model: str = "org/tiny@v1", **loads: Load) -> dict[str, Cost]:
    return costs(list(records), base_model=base_model, loads=loads)


def test_a_training_takes_its_time_for_a_row_and_what_is_around_its_work_once():
    expected = known(fetched(), TRAINED, train_sft=Load(num_rows=500, epochs=3))["train_sft"]
    assert expected == Cost(seconds=152.0, memory=2_000_000_000, num_gpus=2, run_id="r1")
    assert expected.words == "about 2 min 32 s, 0.084 GPU hours, 2 GB of memory"
    assert known(fetched(), TRAINED)["train_sft"].seconds == 12.0  # nothing is known of its rows


def test_other_steps_take_what_they_took_and_the_newest_counts():
    steps = known(fetched(), record("check_sft"), fetched("r2"), record("check_sft", "r2", seconds=40.0))
    assert (steps["check_sft"].seconds, steps["check_sft"].run_id) == (40.0, "r2")


def test_only_runs_of_the_same_base_model_count():
    other = (fetched("r2", "hf://org/large"), record("check_sft", "r2", seconds=4000.0))
    assert known(fetched(), record("check_sft"), *other)["check_sft"].seconds == 12.0
    assert known(*other) == {}
    local = (fetched("r3", "/models/tiny"), record("check_sft", "r3"))
    assert known(*local, base_model="/models/tiny")["check_sft"].seconds == 12.0
    assert known(*local, base_model="/models/other") == known(*local) == {}


def test_what_failed_was_reused_or_resumed_says_nothing():
    resumed = TRAINED.model_copy(update={"progress": Progress(done=9, total=9, resumed_at=5)})
    reused, failed = record("check_sft", status="reused"), record("merge_sft", status="failed")
    assert known(fetched(), resumed, reused, failed).keys() == {"fetch_model"}


def test_the_sentence_adds_up_and_names_the_runs():
    steps = known(fetched(), TRAINED, fetched("r2"), record("check_sft", "r2"))
    assert sentence(steps) == "about 36 s and 0.0067 GPU hours of work, based on r2, r1"


def test_a_load_says_rows_tokens_and_passes():
    assert Load(1200, 1.0, 41.25).words == "1,200 rows, about 49,500 tokens, 1 pass"
    assert Load(7, 2.5).words == "7 rows, 2.5 passes"
