"""Tasks of lm-evaluation-harness, from a folder of the user's and without the Hub."""

import json
from pathlib import Path

import pytest

from posttrain.config import AlignmentLimits
from validators.skills import harness, leg
from validators.skills.judging import Scored

pytestmark = pytest.mark.long

YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: sums.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with the task `toy_sums` of eight rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.yaml").write_text(YAML.format(name="toy_sums"))
    rows = [{"question": f"{a} + 1 =", "choices": [f" {a + 1}", f" {a + 2}"], "answer": 0} for a in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def limits(folder: Path | str, *names: str) -> AlignmentLimits:
    return AlignmentLimits(skills=False, lm_eval_tasks=list(names), lm_eval_data=str(folder))


def sample(at: int, filter: str = "none", **metrics) -> dict:
    return {"doc_id": at, "filter": filter, "metrics": list(metrics), "arguments": [1, 2, 3, 4], **metrics}


def test_tasks_are_evaluated_offline_from_their_folder(tasks, tiny_model, tmp_path):
    pytest.importorskip("lm_eval")
    asked = limits(tasks, "toy_sums", "not_there")
    path = leg.bring(asked, tmp_path, ["/"])["lm_eval_data"]
    measured = leg.run_tasks({"model": tiny_model, "before": tiny_model}, asked, path)
    assert measured.failures == [] and set(measured.seconds) == {"model_lm_eval", "before_lm_eval"}
    found = measured.numbers["model"]["skills"]["tasks"]
    assert len(found["toy_sums"]["scores"]) == 8 and found["toy_sums"]["chance"] == 0.5
    assert found["not_there"]["scores"] is None and "no task of this name" in found["not_there"]["error"]
    assert measured.numbers["before"]["skills"]["tasks"]["toy_sums"] == found["toy_sums"]


def test_an_evaluation_that_ends_badly_says_why(tasks, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    (tmp_path / "no_model").mkdir()
    with pytest.raises(ValueError, match="lm-eval ended with exit code 1: .*no_model"):
        harness.run(tmp_path / "no_model", ["toy_sums"], str(tasks))
    assert "Traceback" in capsys.readouterr().err  # for the log of the gate


def test_the_scores_of_the_first_metric_and_the_first_filter_are_read_in_order():
    samples = [sample(1, acc=0.0, f1=0.5), sample(0, acc=1.0, f1=0.5), sample(0, "strict", acc=0.0, f1=0.0)]
    assert harness.read_samples(samples, "", data=Path("tasks")) == Scored(scores=[1.0, 0.0], chance=0.25)
    assert harness.read_samples(samples, "f1", data=Path("tasks")).scores == [0.5, 0.5]


@pytest.mark.parametrize(("num_choices", "chance"), [(1, 0.0), (2, 0.5)])
def test_where_nothing_is_chosen_nothing_is_guessed(num_choices, chance):
    row = sample(0, acc=1.0) | {"arguments": [1] * num_choices}
    assert harness.read_samples([row], "", data=Path("tasks")).chance == chance


@pytest.mark.parametrize(
    ("samples", "metric", "error"),
    [
        (None, "", "no task of this name in tasks"),
        ([], "", "no task of this name in tasks"),
        ([sample(0, acc=1.0)], "f1", "ended without its metric f1; it gave acc"),
        ([sample(0, acc=1.0), sample(1)], "", "ended without its metric acc"),
        ([sample(0)], "", "ended without its metric (it names none); it gave"),
        ([sample(0, perplexity=12.5)], "", "its metric perplexity is not a share"),
        ([sample(0, acc=float("nan"))], "", "its metric acc is not a share"),
        ([sample(0, acc=1.0), sample(1, acc=1.5)], "", "its metric acc is not a share"),
        ([sample(0, bleu=("a", "b"))], "", "its metric bleu is not a share"),
    ],
)
def test_a_task_without_its_metric_has_no_scores(samples, metric, error):
    scored = harness.read_samples(samples, metric, data=Path("some/tasks"))
    assert scored.scores is None and error in scored.error


def test_data_that_is_not_there_or_not_allowed_is_refused(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="lm_eval_data: .*gone is not a folder"):
        leg.bring(limits(tmp_path / "gone", "toy_sums"), tmp_path, ["/"])
    with pytest.raises(ValueError, match="lm_eval_data"):
        leg.bring(limits(tasks, "toy_sums"), tmp_path, ["gs://bucket/"])
    assert leg.bring(limits(tasks, "toy_sums"), tmp_path, ["/"]) == {"lm_eval_data": str(tasks)}
    (tasks / "secret").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="secret: is a link that leads out of"):
        leg.bring(limits(tasks, "toy_sums"), tmp_path, ["/"])


def test_data_that_lies_elsewhere_is_brought(tmp_path, monkeypatch):
    brought = []
    monkeypatch.setattr(harness, "find_spec", lambda name: True)
    monkeypatch.setattr(harness.storage, "download_folder", lambda *places: brought.append(places))
    path = str(tmp_path / "lm_eval_data")
    assert harness.fetch("gs://bucket/tasks", tmp_path, ["gs://bucket/"]) == path
    assert brought == [("gs://bucket/tasks", path)]


def test_modules_are_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness.sys, "path", ["", "/elsewhere", "here"])
    assert harness._python_path() == f"{tmp_path}:/elsewhere:{tmp_path}/here"


def test_the_command_writes_scores_and_needs_every_one_of_its_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "evaluate", lambda model, tasks, data: {task: Scored(scores=[1.0]) for task in tasks})
    harness.main(["--model=m", "--data=d", f"--output={tmp_path / 'scores'}", "a", "b:acc"])
    assert json.loads((tmp_path / "scores").read_text()).keys() == {"a", "b:acc"}
    with pytest.raises(SystemExit):
        harness.main([])
    assert "required: --model, --data, --output, TASK[:METRIC]\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        harness.main(["--help"])
    assert "Tasks of lm-evaluation-harness" in capsys.readouterr().out


def test_without_the_extra_it_is_refused_before_anything_is_measured(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="posttrain\\[lm-eval\\]"):
        leg.bring(limits(tasks, "toy_sums"), tmp_path, ["/"])


def test_nothing_is_run_where_nothing_is_asked(tmp_path):
    asked = AlignmentLimits(skills=False)
    assert leg.bring(asked, tmp_path, ["/"]) == {}
    assert leg.run_tasks({}, asked, None).numbers == {}
