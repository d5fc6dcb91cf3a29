"""Our graphs break no rule; and for each rule the graph that breaks it and nothing else."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from pipelines import lint
from pipelines.compiler import compile_graph
from pipelines.package import AT_ANY_END, Package, Task
from posttrain.config import load_config
from tests.pipelines.graph import SHAPES

LINTED = SHAPES | {"retried": ["placement.cpu.retry_count=3"]}
TOKEN = "hf_" + "aB" * 17  # put together here, so that nobody takes this file for one that leaks something


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> str:
    """The full graph as it is once both images have been pushed."""
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    compile_graph(load_config("configs/pipeline_config.yaml"), path)
    return path.read_text().replace(":local", f"@sha256:{'0a' * 32}")


@pytest.fixture(scope="module")
def documents(pushed) -> list[dict]:
    return list(yaml.safe_load_all(pushed))


@pytest.fixture
def package(documents) -> Package:
    return Package(*copy.deepcopy(documents))


def task(package: Package, name: str) -> Task:
    return next(task for task in package.tasks if task.name == name)


def findings(package: Package) -> list[lint.Finding]:
    """Lints a package whose tasks were changed."""
    return lint.lint(Package(package.spec, package.platform))


class Broken(NamedTuple):
    rule: str
    change: Callable[[Package], object]
    where: str
    remedy: str


def argument(text: str, step: str = "train_sft") -> Callable[[Package], object]:
    return lambda package: task(package, step).container["args"].append(text)


def without(text: str, step: str = "train_sft") -> Callable[[Package], object]:
    return lambda package: task(package, step).container["args"].remove(text)


def in_task(name: str, **values) -> Callable[[Package], object]:
    return lambda package: task(package, name).spec.update(values)


def in_container(step: str, **values) -> Callable[[Package], object]:
    return lambda package: task(package, step).container.update(values)


def in_pod(step: str, **values) -> Callable[[Package], object]:
    return lambda package: task(package, step).kubernetes.update(values)


def default(parameter: str, value) -> Callable[[Package], object]:
    return lambda package: package.parameters[parameter].update(defaultValue=value)


def constant(step: str, parameter: str, value) -> Callable[[Package], object]:
    return lambda package: task(package, step).given("parameters")[parameter]["runtimeValue"].update(constant=value)


def only_accelerator(kept: str) -> Callable[[Package], object]:
    other = {"count": "type", "type": "count"}[kept]

    def change(package: Package) -> None:
        asked = task(package, "train_sft").container["resources"]["accelerator"]
        del asked[other], asked[f"resource{other.title()}"]

    return change


def remove_group(name: str) -> Callable[[Package], object]:
    def change(package: Package) -> None:
        group = task(package, name)
        del group.group.component["dag"]["tasks"][group.key]

    return change


def move_beside_the_gates(name: str) -> Callable[[Package], object]:
    def change(package: Package) -> None:
        step = task(package, name)
        moved = step.group.component["dag"]["tasks"].pop(step.key)
        task(package, "line").component["dag"]["tasks"][step.key] = moved

    return change


def hand_out_of_a_branch(kind: str) -> Callable[[Package], object]:
    def change(package: Package) -> None:
        producer = {"producerSubtask": task(package, "sft-passed").key}
        output = {"valueFromParameter": producer} if kind == "parameters" else {"artifactSelectors": [producer]}
        task(package, "data-passed").component["dag"]["outputs"] = {kind: {"loss": output}}

    return change


def import_in_a_loop(package: Package) -> None:
    package.spec["components"]["comp-import"] = {"executorLabel": "exec-import"}
    package.spec["deploymentSpec"]["executors"]["exec-import"] = {"importer": {}}
    loop = {"componentRef": {"name": "comp-import"}, "parameterIterator": {"items": {"raw": "[1, 2]"}}}
    package.spec["root"]["dag"]["tasks"]["import"] = loop


LOOP = {"itemInput": "item", "items": {"raw": "[1, 2]"}}
IF_PRESENT = '{"IfPresent": {"InputName": "%s", "Then": ["--x", "%s"]}}'
BROKEN = [
    Broken("concat_placeholder", argument('{"Concat": ["a=", "b"]}'), "train_sft: args[", "use one f-string"),
    Broken("if_present_placeholder", argument(IF_PRESENT % ("base", "y")), "train_sft: args[", "and pass it"),
    Broken(
        "if_present_placeholder",
        argument(IF_PRESENT % ("step", "{{$.outputs.artifacts['curve'].path}}")),
        "train_sft: args[",
        "without it",
    ),
    Broken(
        "inputs_passed",
        lambda package: task(package, "train_sft").given("parameters").pop("overrides"),
        "train_sft: inputs.parameters.overrides",
        "pass it",
    ),
    Broken(
        "inputs_passed",
        lambda package: task(package, "train_sft").given("artifacts").pop("eval"),
        "train_sft: inputs.artifacts.eval",
        "pass it",
    ),
    Broken("known_placeholders", argument("{{$.outputs.output_file}}"), "train_sft: args[", "'{{$}}'"),
    Broken(
        "known_placeholders", argument("{{$.inputs.artifacts['base'].metadata['x']}}"), "train_sft: args[", "'{{$}}'"
    ),
    Broken("declared_placeholders", argument("{{$.inputs.parameters['x']}}"), "train_sft: args[", "declare 'x'"),
    Broken("declared_placeholders", argument("{{$.outputs.artifacts['x'].path}}"), "train_sft: args[", "declare 'x'"),
    Broken(
        "literal_program",
        in_container("train_sft", command=["{{$.inputs.parameters['step']}}"]),
        "train_sft: command[0]",
        "as a literal",
    ),
    Broken("literal_program", in_container("train_sft", command=[]), "train_sft: command[0]", "as a literal"),
    Broken("executor_input", without("{{$}}"), "train_sft: args", "EXECUTOR_INPUT_PLACEHOLDER"),
    Broken("run_dependent_value", argument("x-{{$.pipeline_job_uuid}}"), "train_sft: args[", "KFP_RUN_ID"),
    Broken(
        "run_dependent_value",
        constant("train_sft", "config", {"name": "{{$.pipeline_job_name}}"}),
        "train_sft: inputs.parameters.config",
        "KFP_RUN_ID",
    ),
    Broken(
        "run_dependent_value",
        default("model_name", "{{$.pipeline_job_name}}"),
        "run parameter model_name",
        "KFP_RUN_ID",
    ),
    Broken(
        "run_dependent_value",
        in_container("train_sft", env=[{"name": "RUN", "value": "{{$.pipeline_job_uuid}}"}]),
        "train_sft: env.RUN",
        "KFP_RUN_ID",
    ),
    Broken("artifacts_by_path", without("{{$.inputs.artifacts['eval'].path}}"), "train_sft: args", "as a string"),
    Broken("whole_digest", in_container("train_sft", image="a@sha256:12"), "image of train_sft", "images/digests.yaml"),
    Broken("image_by_digest", in_container("train_sft", image="a:1.0"), "image of train_sft", "push it"),
    Broken("image_by_digest", in_container("train_sft", image="a"), "image of train_sft", "push it"),
    Broken(
        "caching_off",
        in_task("train_sft", cachingOptions={"enableCache": True}),
        "train_sft: cachingOptions",
        "set_caching_options(False)",
    ),
    Broken(
        "launched_training",
        in_container("train_sft", command=["python", "-m", "posttrain.step.attempts", "posttrain.nodes.launch"]),
        "train_sft: config.workers",
        "placement.steps.<step>.nodes",
    ),
    Broken("accelerator_pair", only_accelerator("type"), "train_sft: resources.accelerator", "set_accelerator_limit"),
    Broken("accelerator_pair", only_accelerator("count"), "train_sft: resources.accelerator", "set_accelerator_type"),
    Broken("time_limit", in_pod("train_sft", activeDeadlineSeconds=0), "train_sft: activeDead", "set_timeout"),
    Broken("run_id", in_pod("train_sft", fieldPathAsEnv=[]), "train_sft: fieldPathAsEnv", "use_field_path_as_env"),
    Broken(
        "plain_user",
        in_pod("train_sft", securityContext={"runAsUser": "0"}),
        "train_sft: securityContext",
        "remove the setting",
    ),
    Broken(
        "plain_user",
        in_pod("train_sft", securityContext={"runAsNonRoot": False}),
        "train_sft: securityContext",
        "remove the setting",
    ),
    Broken(
        "shared_memory",
        lambda package: task(package, "train_sft").kubernetes["emptyDirMounts"][0].pop("medium"),
        "train_sft: emptyDirMounts.dshm",
        "medium='Memory'",
    ),
    Broken(
        "secret_env",
        in_container("train_sft", env=[{"name": "WANDB_API_KEY", "value": "abc"}]),
        "train_sft: env.WANDB_API_KEY",
        "placement.*.secrets",
    ),
    Broken("secret_value", argument(TOKEN), "deploymentSpec.executors.exec-train-sft.container.args.", "revoke it"),
    Broken("secret_value", default("storage_root", "s3://me:pa55@host/b"), "root.inputDefinitions.", "revoke it"),
    Broken("secret_value", default("model_name", TOKEN), "root.inputDefinitions.parameters.model_name.", "revoke it"),
    Broken(
        "secret_value",
        in_pod("train_sft", podMetadata={"annotations": {"note": "-----BEGIN " + "PRIVATE KEY-----"}}),
        "platforms.kubernetes.deploymentSpec.executors.exec-train-sft.podMetadata.annotations.note",
        "revoke it",
    ),
    Broken("expanded_value", default("model_name", "{{x}}"), "run parameter model_name", "remove the braces"),
    Broken(
        "expanded_value",
        constant("train_sft", "config", {"text": ["{{$.inputs.parameters['x']}}"]}),
        "train_sft: inputs.parameters.config",
        "remove the braces",
    ),
    *(
        Broken("expanded_value", constant("train_sft", "config", {"text": text}), "train_sft: inputs.", "as [$]")
        for text in ("^a$(b)", "costs $$5")
    ),
    Broken(
        "run_time_limit",
        lambda package: package.platform["platforms"]["kubernetes"].pop("pipelineConfig"),
        "pipelineConfig.activeDeadlineSeconds",
        "active_deadline_seconds",
    ),
    Broken("parameter_bytes", default("model_name", "x" * 8_000), "run parameters", "into the config of a step"),
    Broken(
        "parameter_default",
        lambda package: package.parameters["sft_dataset"].pop("defaultValue"),
        "run parameter sft_dataset",
        "give it a default",
    ),
    Broken("struct_default", default("overrides", {"sft": {}}), "run parameter overrides", "make the default {}"),
    Broken(
        "boolean_condition",
        in_task("publish_model", triggerPolicy={"condition": "inputs.parameter_values['model_name'] == true"}),
        "publish_model: triggerPolicy.condition",
        "dsl.Condition",
    ),
    Broken(
        "boolean_condition",
        in_task("publish_model", triggerPolicy={"condition": "inputs.parameter_values['model_name'] == 'a'"}),
        "publish_model: triggerPolicy.condition",
        "dsl.Condition",
    ),
    Broken("gate_branches", remove_group("sft-failed"), "check_sft: passed", "pipelines.gate.gate"),
    Broken(
        "gate_branches",
        in_container("reject_sft", command=["python", "-m", "posttrain.report"]),
        "check_sft: passed",
        "components.reject",
    ),
    Broken("publish_behind_gates", move_beside_the_gates("publish_model"), "publish_model: its place", "that gate"),
    Broken("publish_behind_gates", move_beside_the_gates("promote_model"), "promote_model: its place", "that gate"),
    Broken(
        "exit_task",
        in_task("reject_sft", triggerPolicy={"strategy": AT_ANY_END}),
        "reject_sft: triggerPolicy.strategy",
        "around the whole graph",
    ),
    Broken(
        "exit_task",
        lambda package: (
            task(package, "report_run")
            .given("parameters")["config"]
            .update(taskOutputParameter={"producerTask": "train-sft", "outputParameterKey": "x"})
        ),
        "report_run: inputs.parameters.config",
        "run record",
    ),
    Broken("never_retried", in_task("reject_sft", retryPolicy={"maxRetryCount": 2}), "reject_sft: retry", "set_retry"),
    Broken("never_retried", in_task("report_run", retryPolicy={"maxRetryCount": 1}), "report_run: retry", "set_retry"),
    Broken("loop_in_exit_handler", in_task("sft-passed", parameterIterator=LOOP), "sft-passed: iterator", "of its own"),
    Broken("importer_in_loop", import_in_a_loop, "import: importer", "before the loop"),
    Broken("workflow_size", constant("train_sft", "config", {"text": "x" * 1_000_000}), "Workflow", "shorten what is"),
    Broken("artifact_loop", in_task("report_run", artifactIterator={}), "report_run: artifactIterator", "addresses"),
    Broken(
        "artifact_twice",
        lambda package: (
            task(package, "train_sft")
            .given("artifacts")
            .update(eval=task(package, "train_sft").given("artifacts")["train"])
        ),
        "train_sft: inputs.artifacts.train",
        "give it once",
    ),
    Broken("collected_condition", hand_out_of_a_branch("parameters"), "data-passed: outputs.loss", "skipped branch"),
    Broken("collected_condition", hand_out_of_a_branch("artifacts"), "data-passed: outputs.loss", "skipped branch"),
]


@pytest.mark.parametrize("shape", LINTED)
def test_our_graphs_break_no_rule(tmp_path, shape):
    compile_graph(load_config("configs/pipeline_config.yaml", LINTED[shape]), tmp_path / "graph.yaml")
    assert lint.lint(Package.read(tmp_path / "graph.yaml"), allow_tags=True) == []


def test_nor_does_the_graph_with_pushed_images(package):
    assert lint.lint(package) == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.rule)
def test_a_broken_rule_is_found_with_place_and_remedy(package, broken):
    broken.change(package)
    broken_rules = findings(package)
    assert {finding.rule for finding in broken_rules} == {broken.rule}
    assert any(
        finding.where.startswith(broken.where) and broken.remedy in finding.remedy for finding in broken_rules
    ), broken_rules


def test_every_rule_has_a_graph_that_breaks_it():
    assert {broken.rule for broken in BROKEN} == set(lint.RULES)


def test_a_secret_is_not_repeated(package):
    argument(TOKEN)(package)
    assert TOKEN not in str(findings(package))


def test_a_gate_without_its_open_branch_publishes_past_it(package):
    passed = task(package, "sft-passed")
    passed.spec["triggerPolicy"]["condition"] = passed.condition.replace("true", "false")
    assert {finding.rule for finding in findings(package)} == {"gate_branches", "publish_behind_gates"}


def test_without_a_platform_spec_no_pod_has_a_time_limit(package):
    rules = [finding.rule for finding in lint.lint(Package(package.spec))]
    assert rules == ["time_limit"] * len(package.steps) + ["run_id"] * len(package.steps) + ["run_time_limit"]


def test_check_names_all_findings_at_once(tmp_path, package):
    argument("{{$.pipeline_job_uuid}}")(package)
    in_container("train_dpo", image="a:1.0")(package)
    path = tmp_path / "graph.yaml"
    path.write_text(yaml.safe_dump_all([package.spec, package.platform]))
    with pytest.raises(ValueError, match="(?s)graph.yaml.*run_dependent_value: train_sft.*image_by_digest: image of"):
        lint.check(path)
    with pytest.raises(ValueError) as caught:
        lint.check(path, allow_tags=True)
    assert "image_by_digest" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not YAML"), ("a: 1", "has no root.dag"), ("", "has no root.dag"), ("- 1", "no root")],
)
def test_what_is_no_package_is_one_error(tmp_path, capsys, text, words):
    (tmp_path / "graph.yaml").write_text(text)
    assert lint.main([str(tmp_path / "graph.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_a_task_without_its_component_is_an_error(package):
    del package.spec["components"]["comp-train-sft"]
    with pytest.raises(ValueError, match="task train-sft: the package has no component comp-train-sft"):
        findings(package)


def test_the_command_prints_findings_and_exits_1(tmp_path, capsys, pushed):
    clean, tagged = tmp_path / "clean.yaml", tmp_path / "tagged.yaml"
    clean.write_text(pushed)
    tagged.write_text(pushed.replace(f"@sha256:{'0a' * 32}", ":local"))
    assert lint.main([str(clean)]) == 0
    assert lint.main([str(tagged), "--allow-tags"]) == 0
    capsys.readouterr()
    assert lint.main([str(clean), str(tagged)]) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{clean}: no findings"
    assert [line.partition(": ")[2].split(": ")[0] for line in rest] == ["image_by_digest"] * 2


def test_the_rule_table_says_why_and_whence(capsys):
    assert lint.main(["--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == list(lint.RULES)
    assert all(line.startswith("    Source: ") for line in lines[2::3])


def test_no_package_reaches_a_file_that_is_there(tmp_path):
    """A graph that breaks a rule leaves the one before it as it was."""
    path = tmp_path / "graph.yaml"
    path.write_text("before")
    with pytest.raises(ValueError, match=f"{path} breaks rules.*\n.*expanded_value: run parameter sft_dataset"):
        compile_graph(load_config("configs/pipeline_config.yaml", ["sft_dataset=gs://b/{{run}}.jsonl"]), path)
    assert path.read_text() == "before"
    assert [file.name for file in Path(tmp_path).iterdir()] == ["graph.yaml"]


@pytest.fixture(scope="module")
def on_nodes(tmp_path_factory) -> list[dict]:
    path = tmp_path_factory.mktemp("nodes") / "graph.yaml"
    compile_graph(load_config("configs/pipeline_config.yaml", ["placement.steps.train_sft.nodes=2"]), path)
    return list(yaml.safe_load_all(path.read_text()))


def test_the_image_of_workers_has_a_digest_too(on_nodes):
    rules = [(finding.rule, finding.where) for finding in lint.lint(Package(*on_nodes))]
    assert {rule for rule, _ in rules} == {"image_by_digest"}
    assert any(where.endswith("train_sft's workers") for _, where in rules)


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (lambda one: one["command"].__setitem__(-1, "posttrain.sft"), "command", "does not run posttrain.nodes.launch"),
        (
            lambda one: one["resources"].update(accelerator={"type": "x", "count": "1"}),
            "resources.accelerator",
            "holds",
        ),
    ],
)
def test_a_training_on_several_nodes_is_launched_and_nothing_else(on_nodes, change, where, what):
    package = Package(*copy.deepcopy(on_nodes))
    change(task(package, "train_sft").container)
    (finding,) = lint.lint(Package(package.spec, package.platform), allow_tags=True)
    assert (finding.rule, finding.where) == ("launched_training", f"train_sft: {where}")
    assert what in finding.what
