"""The sweep's graph: loops of trials outside any exit handler, the line's own steps inside a trial."""

import json

import pytest

from pipelines.compiler import compile_sweep
from pipelines.lint import lint
from pipelines.package import Package
from pipelines.sweep import sweep_steps, trial_commands
from posttrain.config import load_config
from posttrain.config.sweep import SweepConfig
from tests.pipelines.graph import SHAPES, Graph

SPACE = {"sft.learning_rate": [1e-4, 2e-4], "sft.lora_r": [8, 16]}
OBJECTIVES = {
    gate: {"gate": gate, "metric": "answer_correct", "direction": "maximize"}
    for gate in ("check_sft", "check_safety", "check_alignment")
}
CONFIG = "configs/pipeline_config.yaml"


def compiled(path, settings=(), **sweep):
    compile_sweep(load_config(CONFIG, settings), SweepConfig(space=SPACE, **sweep), path)
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    halving = {"reduction_factor": 2, "num_rungs": 2}
    return compiled(tmp_path_factory.mktemp("sweep") / "sweep.yaml", halving=halving, parallelism=2)


def test_the_committed_sweep_keeps_every_rule_of_the_platform():
    assert lint(Package.read("sweep.yaml"), allow_tags=True) == []


@pytest.mark.parametrize(
    "shape",
    ["full", *(pytest.param(shape, marks=pytest.mark.long) for shape in ("sft_only", "dpo_only"))],
)
@pytest.mark.parametrize(
    "sweep",
    [{"continue_with_best": False}, {"halving": {"reduction_factor": 2, "num_rungs": 2}}],
    ids=["ends", "halves"],
)
def test_sweeps_of_every_shape_keep_every_rule_of_the_platform(tmp_path, shape, sweep):
    gate = "check_alignment" if shape == "dpo_only" else "check_sft"
    space = {"dpo.learning_rate": [1e-4, 2e-4]} if shape == "dpo_only" else SPACE
    config = load_config(CONFIG, SHAPES[shape])
    compile_sweep(config, SweepConfig(space=space, objective=OBJECTIVES[gate], **sweep), tmp_path / "sweep.yaml")
    package = Package.read(tmp_path / "sweep.yaml")
    assert lint(package, allow_tags=True) == []

    # an artifact under a second name in the loop around the trials
    trial = next(step for step in package.steps if step.name == "trials_of_rung_1")
    kind = "preference" if shape == "dpo_only" else "sft"
    loop, given = trial.group.given("artifacts"), trial.given("artifacts")
    loop["other"] = loop[given[f"{kind}_eval"]["componentInputArtifact"]]
    given[f"{kind}_train"] = {"componentInputArtifact": "other"}
    findings = lint(package, allow_tags=True)  # of the loop, and of the trial in it
    assert {finding.rule for finding in findings} == {"artifact_twice"}
    assert all(".selection is given as" in finding.what for finding in findings)
    assert f"trials_of_rung_1: inputs.artifacts.{kind}_train" in [finding.where for finding in findings]


def test_a_loop_for_each_rung_and_no_exit_handler_around_it(package):
    read_back = Package.read(package)
    loops = [task for task in read_back.tasks if task.is_loop]
    assert [task.spec["iteratorPolicy"]["parallelismLimit"] for task in loops] == [2, 2]
    items = [json.loads(task.spec["parameterIterator"]["items"]["raw"]) for task in loops]
    assert items == [["rung_1_worker_1", "rung_1_worker_2"], ["rung_2_worker_1", "rung_2_worker_2"]]
    assert not any(task.is_exit_task for task in read_back.tasks)
    for loop in loops:
        (trial,) = read_back.inside(loop)
        assert trial.runs("posttrain.sweep.trial")


def test_on_one_machine_each_iteration_is_a_trial(tmp_path):
    settings = SweepConfig(space=SPACE, halving={"reduction_factor": 2, "num_rungs": 2})
    compile_sweep(load_config(CONFIG), settings, tmp_path / "sweep.yaml", by_trial=True)
    loops = [task for task in Package.read(tmp_path / "sweep.yaml").tasks if task.is_loop]
    items = [json.loads(task.spec["parameterIterator"]["items"]["raw"]) for task in loops]
    assert items == [["trial_1", "trial_2", "trial_3", "trial_4"], ["rung_2_rank_1", "rung_2_rank_2"]]


def test_a_trial_is_placed_as_its_training_with_the_time_of_all_its_steps(package):
    graph = Graph(package)
    trial, training = (graph.tasks[name] for name in ("trials_of_rung_1", "train_sft"))
    assert trial["container"]["resources"] == training["container"]["resources"]
    seconds = [graph.attempts_of(name).seconds for name in ("train_sft", "check_sft")]
    assert graph.attempts_of("judge_winner").seconds == sum(seconds)
    # Two workers for four trials: each takes two, may begin a third while the other works on its last, or take that
    # over.
    assert graph.attempts_of("trials_of_rung_1").seconds == 4 * sum(seconds)


PLACED = {
    "hold_out_sft": "{memory: 3Gi, node_selector: {pool: small}}",
    "hold_out_preferences": "{memory: 5Gi}",
    "trials": "{memory: 90Gi, timeout_minutes: 999, retry_count: 7}",
    "compare_trials": "{cpu: 1}",
    "judge_winner": "{memory: 91Gi}",
    "train_sft": "{memory: 92Gi, timeout_minutes: 100}",
}


def test_every_step_of_a_sweep_can_be_placed(tmp_path):
    settings = [f"placement.steps.{step}={placement}" for step, placement in PLACED.items()]
    graph = Graph(compiled(tmp_path / "s.yaml", settings, halving={"reduction_factor": 2, "num_rungs": 2}))
    tasks = graph.tasks
    memory = {name: task["container"]["resources"].get("resourceMemoryLimit") for name, task in tasks.items()}
    assert (memory["hold_out_sft"], memory["hold_out_preferences"]) == ("3Gi", "5Gi")
    assert tasks["hold_out_sft"]["kubernetes"]["nodeSelector"] == {"labels": {"pool": "small"}}
    assert "nodeSelector" not in tasks["hold_out_preferences"]["kubernetes"]
    for name in ("compare_rung_1", "compare_trials"):
        assert tasks[name]["container"]["resources"]["resourceCpuLimit"] == "1"
    assert (memory["trials_of_rung_1"], memory["trials_of_rung_2"], memory["judge_winner"]) == ("90Gi", "90Gi", "91Gi")
    limits = {name: graph.attempts_of(name).seconds for name in tasks}
    assert limits["trials_of_rung_1"] == 999 * 60 * 6  # one worker for four trials
    assert limits["judge_winner"] == limits["train_sft"] + limits["check_sft"]
    assert tasks["trials_of_rung_1"]["task"]["retryPolicy"]["maxRetryCount"] == 7


def test_the_line_goes_on_with_the_winners_settings_and_is_judged_on_unseen_rows(package):
    graph = Graph(package)
    for name, output in (("train_sft", "selection"), ("check_sft", "unseen"), ("judge_winner", "unseen")):
        given = graph.tasks[name]["task"]["inputs"]
        artifact = given["artifacts"]["sft_judged" if name == "judge_winner" else "eval"]
        assert output in json.dumps(artifact)
        assert "compare-trials" in json.dumps(given["parameters"]["overrides"])
    assert graph.config_of("publish_model")["required_gates"][:2] == ["check_data", "check_sft"]


def test_a_sweep_that_ends_with_a_winner_has_no_line_behind_it(tmp_path):
    names = set(Graph(compiled(tmp_path / "sweep.yaml", continue_with_best=False)).tasks)
    assert {"compare_trials", "judge_winner"} <= names
    assert not {"train_sft", "publish_model"} & names


@pytest.mark.parametrize(
    ("settings", "gate", "steps"),
    [
        ([], "check_sft", ["train_sft", "check_sft"]),
        (
            [],
            "check_alignment",
            [
                "train_sft", "check_sft", "merge_sft", "check_sft_merge", "train_dpo", "merge_dpo", "check_dpo_merge",
                "check_alignment",
            ],
        ),
        (
            ["stages.dpo.enabled=false"],
            "check_safety",
            ["train_sft", "check_sft", "merge_sft", "check_sft_merge", "check_safety"],
        ),
        (
            ["stages.sft.enabled=false"],
            "check_alignment",
            ["train_dpo", "merge_dpo", "check_dpo_merge", "check_alignment"],
        ),
    ],
)  # fmt: skip
def test_a_trial_has_the_lines_own_steps_as_far_as_the_gate(tmp_path, settings, gate, steps):
    commands = trial_commands(load_config(CONFIG, settings), until=gate)
    assert [command.step for command in commands] == steps
    assert (
        lint(Package.read(compiled(tmp_path / "s.yaml", settings, objective=OBJECTIVES[gate])), allow_tags=True) == []
    )
    made = {f"{command.step}.{output}" for command in commands for output in command.outputs}
    rows = {f"prepare_{kind}.{side}" for kind in ("sft_data", "preferences") for side in ("train", "eval")}
    assert {source for command in commands for source in command.inputs.values()} <= made | rows | {"fetch_model.model"}


def test_a_gate_that_the_line_does_not_have_is_refused():
    with pytest.raises(ValueError, match="check_safety is not in this line: give one of check_sft"):
        trial_commands(load_config(CONFIG), until="check_safety")


def test_a_sweep_refuses_what_its_trials_would_not_measure(tmp_path):
    with pytest.raises(
        ValueError, match="objective.metric: 'answer_correct' is not measured by check_sft in this line"
    ):
        compiled(tmp_path / "s.yaml", ["validation.answer_match=none"], objective=OBJECTIVES["check_sft"])
    assert list(tmp_path.iterdir()) == []


def test_preflight_and_data_gate_know_what_each_part_needs(package):
    for step in ("preflight", "check_data"):
        evidence = Graph(package).config_of(step)["evidence"]
        parts = {need["part"] for need in evidence["needs"] if need["of"] == "sft_prompts"}
        assert (evidence["unseen_fraction"], parts) == (0.5, {"selection", "unseen"})


def test_the_steps_of_a_sweep_are_those_of_its_graph(package):
    halving = {"reduction_factor": 2, "num_rungs": 2}
    names = sweep_steps(load_config(CONFIG), SweepConfig(space=SPACE, halving=halving))
    loops = {"trials_of_rung_1", "trials_of_rung_2"}
    slots = {name for name in names if name.startswith(("trial_", "rung_"))}
    rejects = {name for name in Graph(package).tasks if name.startswith("reject_")}
    assert set(names) - slots == set(Graph(package).tasks) - loops - rejects


def test_a_sweep_over_trainings_on_several_nodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_sft.nodes = 2: a trial of a sweep trains in its own pod: .*nodes=1"):
        compiled(tmp_path / "sweep.yaml", ["placement.steps.train_sft.nodes=2"])
