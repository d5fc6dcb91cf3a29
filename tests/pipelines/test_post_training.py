"""The compiled graph: its shapes, its gates on both sides, and where its steps run."""

import json
from pathlib import Path

import pytest

from pipelines.compiler import compile_graph
from pipelines.steps import step_names
from posttrain.config import Attempts, PipelineConfig, load_config
from posttrain.config.line import LINE, is_rejection
from tests.pipelines.graph import SHAPES, Graph

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    result = {}
    for shape, settings in SHAPES.items():
        compile_graph(load_config("configs/pipeline_config.yaml", settings), folder / f"{shape}.yaml")
        result[shape] = Graph(folder / f"{shape}.yaml")
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_step_names_are_those_of_the_graph(graphs, shape):
    names = [name for name in graphs[shape].tasks if not name.startswith(("reject_", "report_run"))]
    assert sorted(names) == sorted(step_names(load_config("configs/pipeline_config.yaml", SHAPES[shape])))


@pytest.mark.parametrize("shape", ["sft_only", "dpo_only", "pairs", "exported", "registered"])
def test_other_shapes_match_their_golden_files(tmp_path, shape):
    compile_graph(load_config("configs/pipeline_config.yaml", SHAPES[shape]), tmp_path / "graph.yaml")
    assert (tmp_path / "graph.yaml").read_text() == (GOLDEN / f"{shape}.yaml").read_text(), (
        "wanted? then run: make golden"
    )


def test_the_full_shape_is_the_committed_package(tmp_path):
    compile_graph(load_config("configs/pipeline_config.yaml"), tmp_path / "graph.yaml")
    assert (tmp_path / "graph.yaml").read_text() == Path("post_training.yaml").read_text(), (
        "wanted? then run: make golden"
    )


def test_a_version_is_made_current_only_after_it_is_registered(graphs):
    """With `registries.required` a registry that does not take it fails that step, and ends what waits for it."""
    champion = graphs["registered"].tasks["check_champion"]
    assert graphs["registered"].tasks["register_model"]["under"] == champion["under"]
    assert champion["task"]["dependentTasks"] == ["publish-model", "register-model"]
    assert champion["under"] == graphs["registered"].tasks["promote_model"]["under"][:-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_gate_has_both_branches_and_a_reject(graphs, shape):
    graph = graphs[shape]
    gates = [name for name in graph.tasks if name.startswith("check_")]
    assert gates
    for gate in gates:
        name, key = gate.removeprefix("check_"), graph.tasks[gate]["key"]
        for branch, wanted in ((f"{name}-passed", "true"), (f"{name}-failed", "false")):
            condition = next(text for group, text in graph.conditions.items() if group.startswith(branch))
            assert f"pipelinechannel--{key}-passed" in condition
            assert f"== {wanted}" in condition
        assert graph.tasks[f"reject_{name}"]["under"][-1] == f"{name}-failed"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_gate_leaves_its_verdict_in_every_form(graphs, shape):
    for name, task in graphs[shape].tasks.items():
        outputs = graphs[shape].spec["components"][task["task"]["componentRef"]["name"]].get("outputDefinitions", {})
        if name.startswith("check_"):
            assert outputs["artifacts"].keys() >= {"verdict", "report", "summary", "metrics"}, name
            assert outputs["parameters"] == {"passed": {"parameterType": "BOOLEAN"}}, name
        kinds = {key: artifact["artifactType"]["schemaTitle"] for key, artifact in outputs.get("artifacts", {}).items()}
        assert kinds.get("summary", "system.Markdown") == "system.Markdown", name
        assert ("confusion" in kinds) == (name in ("check_alignment", "check_safety")), name


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ("full", {"base", "before", "model", "training", "preference_eval", "sft_eval"}),
        ("dpo_only", {"before", "model", "training", "preference_eval"}),
    ],
)
def test_alignment_is_judged_against_all_that_the_graph_has(graphs, shape, given):
    """From which task each input comes; an artifact from an outer group of the graph carries its task in its name."""
    inputs = graphs[shape].tasks["check_alignment"]["task"]["inputs"]["artifacts"]
    assert inputs.keys() == given
    wanted = {"training": "train-dpo-metrics", "preference_eval": "prepare-preferences", "before": "model"}
    for name, source in wanted.items():
        assert source in json.dumps(inputs[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_publishing_lies_behind_every_gate(graphs, shape):
    graph = graphs[shape]
    *gates, last = [name for name in graph.tasks if name.startswith("check_")]
    assert last == "check_champion"
    assert list(graph.tasks["publish_model"]["under"]) == [
        "line",
        *(f"{g.removeprefix('check_')}-passed" for g in gates),
    ]
    assert graph.config_of("publish_model")["required_gates"] == gates


@pytest.mark.parametrize(
    ("shape", "judged"),
    [
        ("full", ["check_dpo_merge", "check_alignment"]),
        ("sft_only", ["check_sft_merge", "check_safety"]),
        ("dpo_only", ["check_dpo_merge", "check_alignment"]),
        ("adapter", ["check_sft"]),
    ],
)
def test_what_is_published_was_judged_itself(graphs, shape, judged):
    assert graphs[shape].config_of("publish_model")["judged_gates"] == judged


@pytest.mark.parametrize("shape", SHAPES)
def test_kubeflows_cache_is_off_everywhere(graphs, shape):
    for name, task in graphs[shape].tasks.items():
        assert not task["task"]["cachingOptions"].get("enableCache"), name


@pytest.mark.parametrize("shape", SHAPES)
def test_preflight_comes_before_everything(graphs, shape):
    graph, config = graphs[shape], load_config("configs/pipeline_config.yaml", SHAPES[shape])
    for name in ("fetch_model", "prepare_sft_data", "prepare_preferences"):
        if name in step_names(config):
            assert graph.tasks[name]["task"]["dependentTasks"] == ["preflight"], name
    first = [name for name, task in graph.tasks.items() if task["under"] == ("line",) and not _inputs_from_tasks(task)]
    assert [name for name in first if "dependentTasks" not in graph.tasks[name]["task"]] == ["preflight"]
    assert graph.config_of("preflight")["stages"]["dpo"]["enabled"] is config.stages.dpo.enabled


def _inputs_from_tasks(task: dict) -> bool:
    return "taskOutput" in json.dumps(task["task"]["inputs"])


def test_every_step_of_every_shape_can_be_placed(graphs):
    names = {name for graph in graphs.values() for name in graph.tasks if not is_rejection(name)}
    assert names == {step.name for step in LINE} | {"report_run"}


@pytest.mark.parametrize("step", ["train_sft", "train_dpo", "check_sft", "check_alignment"])
def test_gpu_steps_ask_for_the_gpu(graphs, step):
    task = graphs["full"].tasks[step]
    accelerator = task["container"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert task["kubernetes"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert task["kubernetes"]["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
    assert graphs["full"].config_of("preflight")["num_gpus"][step] == 1


@pytest.mark.parametrize(
    "step", ["preflight", "fetch_model", "prepare_sft_data", "check_data", "merge_sft", "check_sft_merge", "report_run"]
)
def test_other_steps_ask_for_none(graphs, step):
    task = graphs["full"].tasks[step]
    assert "accelerator" not in task["container"]["resources"]
    assert "tolerations" not in task["kubernetes"]


@pytest.mark.parametrize(
    ("step", "minutes", "retries"),
    [("train_sft", 190, 2), ("merge_sft", 30, 1), ("train_dpo", 130, 2), ("check_sft", 60, 1), ("fetch_model", 60, 1)],
)
def test_steps_have_their_timeouts_and_retries(graphs, step, minutes, retries):
    """The limit of the pod holds all attempts."""
    task = graphs["full"].tasks[step]
    assert graphs["full"].attempts_of(step) == Attempts(1 + retries, minutes * 60, 30)
    assert int(task["kubernetes"]["activeDeadlineSeconds"]) >= (1 + retries) * minutes * 60 + 600
    assert task["task"]["retryPolicy"]["maxRetryCount"] == retries


@pytest.mark.parametrize("settings", [[], ["placement.gpu.timeout_minutes=45"], ["stages.sft.timeout_minutes=45"]])
def test_a_training_stage_knows_a_deadline_before_that_of_its_attempt(tmp_path, settings):
    compile_graph(load_config("configs/pipeline_config.yaml", settings), tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    deadline = graph.config_of("train_sft")["training"]["timeout_minutes"]
    assert deadline == (45 if settings else 180)
    assert graph.attempts_of("train_sft").seconds == (deadline + 10) * 60


def test_every_step_knows_its_run_and_only_what_fetches_the_token(graphs):
    for name, task in graphs["full"].tasks.items():
        assert task["kubernetes"]["fieldPathAsEnv"][0]["name"] == "KFP_RUN_ID", name
        assert bool(task["kubernetes"].get("secretAsEnv")) == (name in ("preflight", "fetch_model")), name


def test_what_failed_for_good_is_never_tried_again(tmp_path):
    settings = ["placement.cpu.retry_count=5", "placement.gpu.retry_count=5"]
    compile_graph(load_config("configs/pipeline_config.yaml", settings), tmp_path / "graph.yaml")
    for name, task in Graph(tmp_path / "graph.yaml").tasks.items():
        never = name in ("preflight", "report_run") or name.startswith("reject_")
        assert ("retryPolicy" not in task["task"]) == never, name


def test_preflight_sees_the_token_that_uploads(tmp_path):
    token = "{secrets: [{env: HF_TOKEN, secret: hub-writer, key: token}]}"
    settings = ["upload_to_hub=true", "hub_repo_id=acme/model", f"placement.steps.publish_model={token}"]
    compile_graph(load_config("configs/pipeline_config.yaml", settings), tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    found = {
        key["envVar"]: secret["secretName"]
        for secret in graph.tasks["preflight"]["kubernetes"]["secretAsEnv"]
        for key in secret["keyToEnv"]
    }
    assert found == {"HF_TOKEN": "hf-token", "HF_UPLOAD_TOKEN": "hub-writer"}
    assert graph.config_of("preflight")["hub_repo_id"] == "acme/model"


def test_preflight_looks_for_the_secrets_of_all_steps_and_no_pod_waits_for_them(tmp_path):
    secrets = "[{env: HF_TOKEN, secret: hf-token, key: token}, {env: A, secret: gcs, key: key.json, as_file: true}]"
    settings = [f"placement.gpu.secrets={secrets}", "placement.gpu.config_maps=[{env: B, config_map: s3, key: url}]"]
    compile_graph(load_config("configs/pipeline_config.yaml", settings), tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    assert graph.config_of("preflight")["sources"] == {
        "HF_TOKEN": "secret hf-token, key token",
        "POSTTRAIN_SECRET_1": "secret gcs, key key.json",
        "POSTTRAIN_SECRET_2": "config map s3, key url",
    }
    for name in ("preflight", "train_sft"):
        pod = graph.tasks[name]["kubernetes"]
        entries = [entry for key in ("secretAsEnv", "configMapAsEnv", "secretAsVolume") for entry in pod.get(key, [])]
        assert len(entries) == 3
        assert all(entry["optional"] for entry in entries), entries


SECONDS = ("preflight", "reject_sft", "report_run")


def test_a_step_of_seconds_has_ten_minutes_whatever_the_others_have(tmp_path):
    compile_graph(
        load_config("configs/pipeline_config.yaml", ["placement.steps.fetch_model={timeout_minutes: 300}"]),
        tmp_path / "graph.yaml",
    )
    tasks = Graph(tmp_path / "graph.yaml").tasks
    limits = {step: tasks[step]["kubernetes"]["activeDeadlineSeconds"] for step in SECONDS}
    assert limits == dict.fromkeys(SECONDS, "600")


def test_a_pod_has_time_for_the_models_that_it_takes_and_gives(tmp_path):
    limits = {}
    for memory in ("1Gi", "100Gi"):
        settings = [f"placement.gpu.memory={memory}", "placement.gpu.shm_size=null"]
        compile_graph(load_config("configs/pipeline_config.yaml", settings), tmp_path / "graph.yaml")
        tasks = Graph(tmp_path / "graph.yaml").tasks
        limits[memory] = {name: int(task["kubernetes"]["activeDeadlineSeconds"]) for name, task in tasks.items()}
    longer = {name: limits["100Gi"][name] - limits["1Gi"][name] for name in limits["1Gi"]}
    assert longer["prepare_sft_data"] == longer["reject_sft"] == 0
    assert longer["check_alignment"] > longer["fetch_model"] == pytest.approx(99 * 2**30 / 50e6, abs=60)


def test_a_run_ends_when_its_pods_had_their_time_and_a_day_to_start(graphs):
    limits = [int(task["kubernetes"]["activeDeadlineSeconds"]) for task in graphs["full"].tasks.values()]
    limit = graphs["full"].platform["platforms"]["kubernetes"]["pipelineConfig"]["activeDeadlineSeconds"]
    assert limit == sum(limits) + 24 * 3600


@pytest.mark.parametrize(("shape", "judged"), [("pairs", "prepare-preferences"), ("pairs_alone", "sample-pairs-eval")])
def test_pairs_are_sampled_from_the_merged_sft_model_and_trained_on_behind_their_gate(graphs, shape, judged):
    graph = graphs[shape]
    assert graph.tasks["sample_pairs"]["under"][-1] == "sft_merge-passed"
    assert graph.tasks["train_dpo"]["under"][-1] == "pairs-passed"
    inputs = graph.tasks["train_dpo"]["task"]["inputs"]["artifacts"]
    assert "sample-pairs-train" in json.dumps(inputs["train"])
    assert judged in json.dumps(inputs["eval"])
    assert judged in json.dumps(graph.tasks["check_alignment"]["task"]["inputs"]["artifacts"]["preference_eval"])
    assert ("prepare_preferences" in graph.tasks) == (shape == "pairs")
    assert {need["of"] for need in graph.config_of("check_pairs")["evidence"]["needs"]} == {"preference_rows"}
    counted = {need["of"] for need in graph.config_of("preflight")["evidence"]["needs"]}
    assert ("preference_rows" in counted) == (shape == "pairs")


def test_a_graph_without_pairs_knows_nothing_of_their_settings(graphs):
    settings = graphs["full"].config_of("preflight")
    assert "pairs" not in settings and "pairs" not in settings["stages"]
    assert graphs["pairs"].config_of("preflight")["pairs"]["num_answers"] == 8


def test_two_compiles_are_byte_identical(tmp_path):
    for name in ("a", "b"):
        compile_graph(load_config("configs/pipeline_config.yaml"), tmp_path / f"{name}.yaml")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": None}, "validation.judge is empty"),
        ({"judge": "model"}, "validation.judge_model is empty"),
        ({"red_team_prompts": None}, "validation.red_team_prompts is empty"),
        ({"output_format": {"kind": "text"}}, "validation.output_format.declines_with is empty"),
    ],
)
def test_a_gate_with_nothing_to_judge_by_is_refused(tmp_path, changes, words):
    validation = {
        "judge": "closed_form",
        "red_team_prompts": "p.jsonl",
        "output_format": {"declines_with": "No."},
    } | changes
    with pytest.raises(ValueError, match=words):
        compile_graph(PipelineConfig(validation=validation), tmp_path / "graph.yaml")
    assert not (tmp_path / "graph.yaml").exists()


def test_a_training_has_a_process_for_each_gpu_of_its_pod(tmp_path):
    steps = "placement.steps={train_sft: {accelerator_count: 2}, train_dpo: {accelerator_count: 0}}"
    compile_graph(load_config("configs/pipeline_config.yaml", [steps]), tmp_path / "graph.yaml")
    graph = Graph(tmp_path / "graph.yaml")
    found = {name: graph.config_of(name)["training"]["num_processes"] for name in ("train_sft", "train_dpo")}
    assert found == {"train_sft": 2, "train_dpo": 1}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_knows_the_storage_roots_that_are_trusted(graphs, shape):
    roots = load_config("configs/pipeline_config.yaml").storage_roots
    for name in (name for name in graphs[shape].tasks if not is_rejection(name)):
        assert graphs[shape].config_of(name)["allowed_storage_roots"] == roots == ["gs://my-bucket/posttrain"]


NODES = "{nodes: 2, accelerator_count: 2, queue: gpus, queue_minutes: 60, memory: 96Gi}"


@pytest.fixture(scope="module")
def on_nodes(tmp_path_factory) -> Graph:
    """The full graph, with SFT on two nodes."""
    path = tmp_path_factory.mktemp("nodes") / "graph.yaml"
    compile_graph(load_config("configs/pipeline_config.yaml", [f"placement.steps.train_sft={NODES}"]), path)
    return Graph(path)


def test_a_training_on_several_nodes_is_the_same_task_launched_from_a_pod_without_gpu(graphs, on_nodes):
    before, launch = graphs["full"].tasks["train_sft"], on_nodes.tasks["train_sft"]
    assert launch["container"]["command"] == [*before["container"]["command"][:-1], "posttrain.nodes.launch"]
    assert launch["container"]["args"] == before["container"]["args"]
    assert launch["container"]["image"].startswith("posttrain-cpu")
    assert "accelerator" not in launch["container"]["resources"]
    assert launch["container"]["resources"]["resourceMemoryLimit"] == "16Gi"
    assert "podMetadata" not in launch["kubernetes"]  # the queue is that of the TrainJob
    assert launch["task"]["inputs"].keys() == before["task"]["inputs"].keys()
    others = {name: task["container"] for name, task in graphs["full"].tasks.items() if name != "train_sft"}
    assert {name: task["container"] for name, task in on_nodes.tasks.items() if name != "train_sft"} == others


def test_the_workers_of_several_nodes_have_the_placement_of_the_training(on_nodes):
    settings = on_nodes.config_of("train_sft")
    workers, training = settings["workers"], settings["training"]
    assert training["num_processes"] == 4  # the gates and checkpoints know no nodes
    assert (workers["num_nodes"], workers["runtime"]) == (2, "posttrain")
    assert workers["image"].startswith("posttrain-train")
    placed = workers["placement"]
    assert (placed["accelerator_count"], placed["memory"], placed["queue"]) == (2, "96Gi", "gpus")
    assert (placed["cpu"], placed["shm_size"]) == ("8", "16Gi")  # of the gpu pool
    assert on_nodes.config_of("preflight")["training_runtimes"] == ["posttrain"]
    assert on_nodes.config_of("preflight")["num_gpus"]["train_sft"] == 4
    assert "workers" not in on_nodes.config_of("train_dpo")


def test_an_attempt_on_several_nodes_has_the_time_of_the_queue_and_of_what_each_pod_brings(on_nodes):
    number, seconds, _ = on_nodes.attempts_of("train_sft")
    workers = on_nodes.config_of("train_sft")["workers"]
    assert workers["deadline_minutes"] == 180 + 10 + 18 + 10  # start of a pod, 48Gi at 50 MB/s, a last checkpoint
    assert (number, seconds) == (3, (60 + workers["deadline_minutes"] + 40) * 60)
