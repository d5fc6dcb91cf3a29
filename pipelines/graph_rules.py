"""Checks the rules of the platform for the graph: its run parameters and values, its gates, its exit task, its loops.

`Package` -> (where, what, remedy) of each place that breaks a rule

Files named as sources are from kubeflow/pipelines 2.17.0.
"""

import json
from collections.abc import Iterator
from typing import Any

from pipelines.package import CONDITION, Package, Spec, Task
from pipelines.step_rules import RUN_DEPENDENT, Breaches
from pipelines.workflow_size import MAX_WORKFLOW_BYTES, iteration_bytes, num_iterations, workflow_bytes
from posttrain.config import MAX_RUN_PARAMETERS_BYTES
from posttrain.config.masking import TOKENS
from posttrain.config.parse import EXPANDED

REJECT, PUBLISH, PROMOTE = "posttrain.reject", "posttrain.publish", "posttrain.make_current"
JUDGES_PUBLISHED = "validators.champion"  # the gate between publishing and promoting


def secret_value(package: Package) -> Breaches:
    """Everyone who may list pipelines can read a package: a token or key in it has leaked.

    Source: Kubernetes, "Good practices for Kubernetes Secrets"
    """
    for document in (package.spec, package.platform):
        for where, text in _texts(document):
            if TOKENS.search(text):
                remedy = "revoke it, and take the new one from a Kubernetes secret: placement.*.secrets"
                yield where, "holds what looks like a token, a key or a password, not repeated here", remedy


def expanded_value(package: Package) -> Breaches:
    """The backend expands what looks like a placeholder, even inside a value; the kubelet expands `$(NAME)` and `$$`.

    Source: kubeflow/pipelines#11035; backend/src/v2/component/launcher_v2.go, compileCmdAndArgs; Kubernetes,
    "Define a Command and Arguments for a Container"
    """
    for where, value in package.values.items():
        for _, text in _texts(value):
            for mark, remedy in EXPANDED.items():
                if mark in text and RUN_DEPENDENT not in text:
                    at = max(0, text.index(mark) - 30)
                    yield where, f"{text[at : at + 80]!r} holds {mark!r}", remedy


def run_time_limit(package: Package) -> Breaches:
    """A pod that no node can take has no time limit: only that of the run ends it.

    Source: kfp.dsl.PipelineConfig; Argo Workflows, "Timeouts": a pod's activeDeadlineSeconds counts from its start
    """
    limits = package.platform.get("platforms", {}).get("kubernetes", {}).get("pipelineConfig", {})
    if not limits.get("activeDeadlineSeconds"):
        remedy = "give dsl.pipeline a dsl.PipelineConfig with active_deadline_seconds"
        yield "pipelineConfig.activeDeadlineSeconds", "the run has no time limit", remedy


def parameter_bytes(package: Package) -> Breaches:
    """The backend refuses a run whose parameters are over 10,000 bytes in all, and a run's own values need room.

    Source: backend/src/common/util/consts.go, MAX_PARAMETER_BYTES
    """
    defaults = {name: parameter.get("defaultValue") for name, parameter in package.parameters.items()}
    size = len(json.dumps(defaults).encode())
    if size > MAX_RUN_PARAMETERS_BYTES:
        what = f"the defaults are {size} bytes in all, at most {MAX_RUN_PARAMETERS_BYTES} are safe"
        yield "run parameters", what, "compile what is long into the config of a step"


def parameter_default(package: Package) -> Breaches:
    """An optional run parameter without a default is null, and a step that gets it fails.

    Source: kubeflow/pipelines#11667
    """
    for name, parameter in package.parameters.items():
        if parameter.get("isOptional") and "defaultValue" not in parameter:
            yield f"run parameter {name}", "its default is null", 'give it a default, such as "", or make it required'


def struct_default(package: Package) -> Breaches:
    """A run that gives one key of a struct parameter replaces the whole default: the other keys are silently lost.

    Source: backend/src/v2/compiler/argocompiler/argo.go, "fill root component default parameters"
    """
    for name, parameter in package.parameters.items():
        if parameter["parameterType"] == "STRUCT" and parameter.get("defaultValue"):
            remedy = "make the default {} and merge a run's values over a compiled constant in the container"
            yield f"run parameter {name}", f"its default has keys: {', '.join(parameter['defaultValue'])}", remedy


def boolean_condition(package: Package) -> Breaches:
    """Only `<boolean> == true` and `== false` mean the same here and on the cluster; a value that cannot be compared,
    such as NaN or a text with a quote, skips every branch and leaves the run green.

    Source: kubeflow/pipelines#13313; backend/src/v2/expression/expression.go
    """
    for task in package.tasks:
        match = CONDITION.fullmatch(task.condition)
        channel = match["channel"] if match else ""
        kind = task.declared("inputs", "parameters").get(channel, {}).get("parameterType")
        if task.condition and kind != "BOOLEAN":
            what = f"{channel} is {kind}, not BOOLEAN" if match else f"{task.condition[:120]!r} is another form"
            remedy = "compare a boolean output with True and with False, each in a dsl.Condition; no dsl.Else"
            yield f"{task.name}: triggerPolicy.condition", what, remedy


def gate_branches(package: Package) -> Breaches:
    """A gate exits 0, because a task that fails uploads no verdict, and a skipped branch leaves the run green: so the
    pipeline goes on behind `passed == true`, and a reject behind `passed == false` fails the run.

    Source: kubeflow/pipelines#12425
    """
    for gate in package.gates:
        where = f"{gate.name}: passed"
        for wanted in (True, False):
            branches = [t for t in package.inside(gate.group) if package.branch(t) == (gate, "passed", wanted)]
            if len(branches) != 1:
                what = f"{len(branches)} branches wait for passed == {str(wanted).lower()}, not 1"
                yield where, what, "open the gate with pipelines.gate.gate, which writes both"
            rejects = [t for branch in branches for t in package.inside(branch) if t.runs(REJECT) and not t.condition]
            if branches and not wanted and not rejects:
                yield where, "nothing rejects the run if it is false", "put components.reject into that branch"


def publish_behind_gates(package: Package) -> Breaches:
    """A model published without passing every gate was not judged; beside a gate, a step does not even wait for it.

    Source: kubeflow/pipelines#12425
    """
    for step in package.steps:
        if not (step.runs(PUBLISH) or step.runs(PROMOTE)):
            continue
        behind = [package.branch(task) for task in (step, *step.groups)]
        for gate in package.gates:
            is_later = step.runs(PUBLISH) and gate.runs(JUDGES_PUBLISHED)
            if (gate, "passed", True) not in behind and not is_later:
                what = f"it does not wait for {gate.name} to pass"
                yield f"{step.name}: its place in the graph", what, "put it below that gate, into its branch"


def exit_task(package: Package) -> Breaches:
    """An exit task becomes a hook of the outermost group: it runs whatever failed, so no output is certain to exist.

    Source: kubeflow/pipelines#10187; backend/src/v2/compiler/argocompiler/dag.go
    """
    for task in package.tasks:
        if not task.is_exit_task:
            continue
        if task.group:
            remedy = "open dsl.ExitHandler around the whole graph; do not ignore an upstream failure"
            yield f"{task.name}: triggerPolicy.strategy", f"it is an exit task inside {task.group.name}", remedy
        for kind, source in (("parameters", "taskOutputParameter"), ("artifacts", "taskOutputArtifact")):
            for name, value in task.given(kind).items():
                if source in value:
                    what = f"takes an output of {value[source]['producerTask']}, which may not have run"
                    yield f"{task.name}: inputs.{kind}.{name}", what, "let it read the run record instead"


def never_retried(package: Package) -> Breaches:
    """A reject fails on purpose; an exit task is a hook of Argo's, whose retry can leave the run in Running forever.

    Source: argoproj/argo-workflows#12120
    """
    for task in package.tasks:
        retries = task.spec.get("retryPolicy", {}).get("maxRetryCount", 0)
        if retries and (task.is_exit_task or task.runs(REJECT)):
            where = f"{task.name}: retryPolicy.maxRetryCount"
            yield where, f"it is retried {retries} times", "remove the task's set_retry"


def loop_in_exit_handler(package: Package) -> Breaches:
    """A loop inside an exit handler fails when the run starts.

    Source: kubeflow/pipelines#12390
    """
    handled = [name for task in package.tasks if task.is_exit_task for name in task.spec.get("dependentTasks", [])]
    for task in package.tasks:
        if task.is_loop and any(group.key in handled for group in task.groups):
            yield f"{task.name}: iterator", "it loops inside an exit handler", "make the loop a pipeline of its own"


def importer_in_loop(package: Package) -> Breaches:
    """An importer does not know its iteration: inside a loop it fails.

    Source: kubeflow/pipelines#10860
    """
    for task in package.tasks:
        if "importer" in task.executor and any(group.is_loop for group in (task, *task.groups)):
            yield f"{task.name}: importer", "it is inside a loop", "import before the loop, or pass the address"


def workflow_size(package: Package) -> Breaches:
    """Argo keeps a run as one object, which from some size on it can save no more: the run ends in an error, and what
    its steps have found is lost.

    Source: Kubeflow Pipelines 2.17.0 with Argo Workflows 4.0.5, "Request entity too large: limit is 3145728" at 6.6 MB
    """
    size, loops = workflow_bytes(package), [task for task in package.tasks if task.is_loop]
    if size <= MAX_WORKFLOW_BYTES:
        return
    what = f"it becomes about {size / 1e6:.1f} MB, and {MAX_WORKFLOW_BYTES / 1e6:g} MB are safe"
    if not loops:
        yield "Workflow", what, "shorten what is compiled into the steps, such as validation.output_format.json_schema"
        return
    each = sum(iteration_bytes(package, loop) for loop in loops)
    others = size - sum(num_iterations(loop) * iteration_bytes(package, loop) for loop in loops)
    fitting = max(0, (MAX_WORKFLOW_BYTES - others) // each)
    names = " and ".join(loop.name for loop in loops)
    yield "Workflow", what, f"let {names} have at most {fitting} iterations: lower the sweep's parallelism to {fitting}"


def artifact_loop(package: Package) -> Breaches:
    """The backend has no loop over artifacts.

    Source: backend/src/v2/compiler/argocompiler/dag.go, "artifact iterator not implemented yet"
    """
    for task in package.tasks:
        if "artifactIterator" in task.spec:
            yield f"{task.name}: artifactIterator", "it loops over artifacts", "loop over their addresses, as a list"


def artifact_twice(package: Package) -> Breaches:
    """The driver records each input of a task, and an artifact given to a task under two names cannot be recorded: the
    task fails before its pod starts.

    Source: google/ml-metadata, metadata_source/metadata_source_query_config.h, UNIQUE(artifact_id, execution_id, type)
    """
    for task in package.tasks:
        names: dict[tuple[Task | None, str], str] = {}
        for name, source in task.given("artifacts").items():
            origin = package.origin(source, task.group)
            if first := names.get(origin):
                what = f"{origin[0].name if origin[0] else 'the run'}.{origin[1]} is given as {first!r} too"
                remedy = "give it once; where a component needs another artifact only sometimes, write two components"
                yield f"{task.name}: inputs.artifacts.{name}", what, remedy
            names.setdefault(origin, name)


def collected_condition(package: Package) -> Breaches:
    """An output collected from a condition has no value if the branch was skipped, and fails the step that takes it.

    Source: backend/src/v2/driver/resolve.go, resolveUpstreamParameters
    """
    for group in package.tasks:
        conditional = {task.key for task in package.inside(group) if task.condition}
        for name, producer in _handed_out(group):
            if producer in conditional:
                remedy = "let a step outside the condition write it, with a value for a skipped branch"
                yield f"{group.name}: outputs.{name}", f"comes from {producer}, which may be skipped", remedy


def _handed_out(group: Task) -> Iterator[tuple[str, str]]:
    """Yields each output of a group that comes from one of its tasks, with that task. `dsl.OneOf` names several."""
    outputs = group.component.get("dag", {}).get("outputs", {})
    for name, output in outputs.get("parameters", {}).items():
        if "valueFromParameter" in output:
            yield name, output["valueFromParameter"]["producerSubtask"]
    for name, output in outputs.get("artifacts", {}).items():
        if len(output.get("artifactSelectors", [])) == 1:
            yield name, output["artifactSelectors"][0]["producerSubtask"]


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yields every text in a value, with the path to it."""
    if isinstance(value, str):
        yield where, value
    inner: Spec = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    for key, part in inner.items():
        yield from _texts(part, f"{where}.{key}".removeprefix("."))
