"""Checks the rules of the platform for one step: its command line, its image, and the Kubernetes settings of its pod.

`Package` -> (where, what, remedy) of each place that breaks a rule

Files named as sources are from kubeflow/pipelines 2.17.0.
"""

import re
from collections.abc import Iterator

from components.container import DIGEST
from pipelines.package import Package, Task
from pipelines.resources import RUN_ID_LABEL
from posttrain.config import RUN_ID_ENV
from posttrain.config.line import LAUNCH, TRAININGS

Breaches = Iterator[tuple[str, str, str]]

PLACEHOLDER = re.compile(r"\{\{\$.*?\}\}")
REFERENCE = re.compile(
    r"\{\{\$\.(?P<side>inputs|outputs)\.(?P<kind>parameters|artifacts)\['(?P<name>[^']+)'\](?P<part>\.\w+)?\}\}"
)
EXECUTOR_INPUT = "{{$}}"
RUN_DEPENDENT = "{{$.pipeline_"  # run id, run and task name, time
RESOLVED_PARTS = {  # by the launcher
    ("inputs", "parameters"): (None,),
    ("inputs", "artifacts"): (".path", ".uri"),
    ("outputs", "parameters"): (".output_file",),
    ("outputs", "artifacts"): (".path", ".uri"),
}
IF_PRESENT = re.compile(r'\{"IfPresent": *\{"InputName": *"(?P<name>[^"]+)"')
METRICS = ("system.Metrics", "system.ClassificationMetrics", "system.SlicedClassificationMetrics")
# Narrower than masking's: TOKENIZERS_PARALLELISM and the path in GOOGLE_APPLICATION_CREDENTIALS may be in a package.
SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|(API|ACCESS|SECRET|PRIVATE)_?KEY)$", re.IGNORECASE)


def concat_placeholder(package: Package) -> Breaches:
    """The backend does not resolve ConcatPlaceholder: the container gets its JSON instead.

    Source: kubeflow/pipelines#9486, #8711
    """
    for _, where, text in _arguments(package):
        if '{"Concat":' in text:
            yield where, f"{text[:60]!r} reaches the container unresolved", "use one f-string in the component's args"


def if_present_placeholder(package: Package) -> Breaches:
    """IfPresentPlaceholder looks among input parameters only: an artifact is never present, an output never resolved.

    Source: kubeflow/pipelines#9486; backend/src/v2/driver/util.go, resolveCondition
    """
    for step, where, text in _arguments(package):
        match = IF_PRESENT.search(text)
        if match and (match["name"] in step.declared("inputs", "artifacts") or "$.outputs" in text):
            what = f"IfPresent on {match['name']!r} takes the else side, or is not resolved at all"
            yield where, what, "declare the artifact as required and pass it, or write a component without it"


def inputs_passed(package: Package) -> Breaches:
    """An input that a task leaves out has no value in the pod, whatever its default: its placeholder fails there.

    Source: kubeflow/pipelines#14175
    """
    for step in package.steps:
        for kind in ("parameters", "artifacts"):
            for name in step.declared("inputs", kind):
                if name not in step.given(kind):
                    what = f"input {name!r} is declared but not passed"
                    yield f"{step.name}: inputs.{kind}.{name}", what, "pass it where the component is called"


def known_placeholders(package: Package) -> Breaches:
    """The launcher resolves paths, addresses, parameters and `{{$}}`; any other placeholder stays unresolved.

    Source: backend/src/v2/component/launcher_v2.go, getPlaceholders
    """
    for _, where, text in _arguments(package):
        for placeholder in PLACEHOLDER.findall(text):
            match = REFERENCE.fullmatch(placeholder)
            known = match and match["part"] in RESOLVED_PARTS[match["side"], match["kind"]]
            if not known and placeholder != EXECUTOR_INPUT and RUN_DEPENDENT not in placeholder:
                remedy = "read it from the executor input, which '{{$}}' passes in"
                yield where, f"{placeholder} is resolved by kfp.local at most, not by the launcher", remedy


def declared_placeholders(package: Package) -> Breaches:
    """A placeholder for an input or output that the component does not declare is never resolved.

    Source: backend/src/v2/component/launcher_v2.go, getPlaceholders
    """
    for step, where, text in _arguments(package):
        for match in REFERENCE.finditer(text):
            if match["name"] not in step.declared(match["side"], match["kind"]):
                remedy = f"declare {match['name']!r} in the component's signature, or remove it from its args"
                yield where, f"{match[0]} is not among the {match['side']} of the component", remedy


def literal_program(package: Package) -> Breaches:
    """The launcher resolves no input in the program itself, and does not use the image's ENTRYPOINT instead.

    Source: backend/src/v2/component/launcher_v2.go, compileCmdAndArgs
    """
    for step in package.steps:
        program = next(iter(step.container.get("command", [])), "")
        if not program or "{{" in program or program.startswith("{"):
            remedy = "give the program as a literal, such as python, in ContainerSpec.command"
            yield f"{step.name}: command[0]", f"{program!r} is not a program", remedy


def executor_input(package: Package) -> Breaches:
    """Metrics are written into the file that the executor input names; without `{{$}}` the container knows neither.

    Source: backend/src/v2/component/launcher_v2.go, compileCmdAndArgs
    """
    for step in package.steps:
        outputs = step.declared("outputs", "artifacts")
        metrics = [name for name, output in outputs.items() if output["artifactType"].get("schemaTitle") in METRICS]
        if metrics and not any(EXECUTOR_INPUT in text for _, text in _command_line(step)):
            remedy = "add dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER to the component's args"
            yield f"{step.name}: args", f"output {metrics[0]!r} is metrics, but '{{{{$}}}}' is not passed", remedy


def run_dependent_value(package: Package) -> Breaches:
    """A placeholder of the run resolves only as a whole parameter value, not in args, text or a dict; and it gives
    every run a cache key of its own.

    Source: kubeflow/pipelines#11035, #12040; backend/src/v2/driver/resolve.go, resolveInputParameter
    """
    remedy = f"read the environment variable {RUN_ID_ENV}, which has the run's id from the pod's label"
    arguments = [(where, text) for _, where, text in _arguments(package)]
    for where, value in [*arguments, *_environment(package), *package.values.items()]:
        if RUN_DEPENDENT in str(value):
            yield where, f"{str(value)[:80]!r} depends on the run", remedy


def artifacts_by_path(package: Package) -> Breaches:
    """Every declared input artifact is downloaded in full before the container starts, even one that is not read.

    Source: backend/src/v2/component/launcher_v2.go, downloadArtifacts
    """
    for step in package.steps:
        text = " ".join(text for _, text in _command_line(step))
        for name in step.declared("inputs", "artifacts"):
            if f"{{{{$.inputs.artifacts['{name}'].path}}}}" not in text:
                what = f"artifact {name!r} is downloaded, but its path is in no argument"
                yield f"{step.name}: args", what, "pass its path, or take its address as a string parameter"


def whole_digest(package: Package) -> Breaches:
    """A digest is `sha256:` and 64 hex digits, given by the registry; a node can pull nothing by any other.

    Source: OCI image specification, descriptor.md, "Digests"
    """
    for where, image in _images(package):
        digest = image.partition("@")[2]
        if "@" in image and not DIGEST.fullmatch(digest):
            remedy = "write the digest that the registry gave into images/digests.yaml and compile again"
            yield where, f"{image!r} has no complete digest", remedy


def image_by_digest(package: Package) -> Breaches:
    """A tag can refer to another image tomorrow, and a local tag refers to none on a node.

    Source: backend/src/v2/driver/cache.go, getFingerPrint: an image is only its name
    """
    for where, image in _images(package):
        if "@" not in image:
            remedy = "push it, write its digest into images/digests.yaml and compile again"
            yield where, f"{image!r} is a tag", remedy


def caching_off(package: Package) -> Breaches:
    """Kubeflow's cache knows an artifact by its name, not by its content, and neither environment nor secrets.

    Source: backend/src/v2/driver/cache.go, getFingerPrint
    """
    for task in package.tasks:
        if task.spec.get("cachingOptions", {}).get("enableCache"):
            yield f"{task.name}: cachingOptions", "the cache is on", "call set_caching_options(False) on the task"


def accelerator_pair(package: Package) -> Breaches:
    """An accelerator's type without its count, or the count without the type, is silently dropped.

    Source: kubeflow/pipelines#11374; backend/src/v2/driver/driver.go, initPodSpecPatch
    """
    for step in package.steps:
        asked = step.container.get("resources", {}).get("accelerator", {})
        kind, count = (asked.get(f"resource{key.title()}") or asked.get(key) for key in ("type", "count"))
        if bool(kind) != bool(count):
            what = f"type {kind!r}, count {count!r}: the pod gets no accelerator"
            remedy = "set both, set_accelerator_type and set_accelerator_limit"
            yield f"{step.name}: resources.accelerator", what, remedy


def time_limit(package: Package) -> Breaches:
    """A pod without a time limit that hangs occupies its node forever.

    Source: backend/src/v2/driver/k8s.go, extendPodSpecPatch: activeDeadlineSeconds, per attempt
    """
    for step in package.steps:
        seconds = step.kubernetes.get("activeDeadlineSeconds", 0)
        if not str(seconds).isdigit() or int(seconds) == 0:
            what = f"activeDeadlineSeconds is {seconds!r}"
            yield f"{step.name}: activeDeadlineSeconds", what, "set kubernetes.set_timeout on the task"


def run_id(package: Package) -> Breaches:
    """A step gets the run's id from its pod's label: no argument can carry it.

    Source: kubeflow/pipelines#10453, #12040
    """
    for step in package.steps:
        if {"name": RUN_ID_ENV, "fieldPath": RUN_ID_LABEL} not in step.kubernetes.get("fieldPathAsEnv", []):
            remedy = f"add kubernetes.use_field_path_as_env(task, {RUN_ID_ENV!r}, {RUN_ID_LABEL!r})"
            yield f"{step.name}: fieldPathAsEnv", f"{RUN_ID_ENV} is not set from the pod's label", remedy


def plain_user(package: Package) -> Breaches:
    """The backend drops all capabilities and forbids privilege escalation: root gains nothing and breaks on many nodes.

    Source: backend/src/v2/compiler/argocompiler/security_context.go
    """
    for step in package.steps:
        context = step.kubernetes.get("securityContext", {})
        if str(context.get("runAsUser", "")) == "0" or context.get("runAsNonRoot") is False:
            remedy = "remove the setting: the images have a user of their own"
            yield f"{step.name}: securityContext", "the container may run as root", remedy


def shared_memory(package: Package) -> Breaches:
    """/dev/shm on a volume that is not memory is a disk: data loaders and NCCL crawl, and it counts as storage.

    Source: Kubernetes, "Volumes", emptyDir.medium
    """
    for step in package.steps:
        for mount in step.kubernetes.get("emptyDirMounts", []):
            if mount["mountPath"] == "/dev/shm" and mount.get("medium") != "Memory":
                where = f"{step.name}: emptyDirMounts.{mount['volumeName']}"
                yield where, "/dev/shm is on disk", "give kubernetes.empty_dir_mount medium='Memory'"


def secret_env(package: Package) -> Breaches:
    """Everyone who may list pipelines can read a package: a secret belongs into a Kubernetes secret.

    Source: Kubernetes, "Good practices for Kubernetes Secrets"
    """
    for step in package.steps:
        for variable in step.container.get("env", []):
            if variable.get("value") and SECRET_NAME.search(variable["name"]):
                what = f"{variable['name']} has its value in the package"
                yield f"{step.name}: env.{variable['name']}", what, "take it from a secret: placement.*.secrets"


def launched_training(package: Package) -> Breaches:
    """Kubeflow gives a task one pod: a training on several nodes is a TrainJob, which its step creates and follows.

    Source: kubeflow/trainer 2.3, pkg/runtime/framework/plugins/torch: only pods of a TrainJob get the variables PET_*
    """
    for step in package.steps:
        workers, is_launch = _workers(package, step), step.runs(LAUNCH)
        if workers and not is_launch:
            what = f"trains on {workers['num_nodes']} nodes, but its container does not run {LAUNCH}"
            yield f"{step.name}: command", what, "compile it from a configuration with placement.steps.<step>.nodes"
        if is_launch and (not workers or workers["num_nodes"] < 2):
            what = "launches a training on several nodes, but its settings have none"
            yield (
                f"{step.name}: config.workers",
                what,
                "compile it from a configuration with placement.steps.<step>.nodes",
            )
        if is_launch and step.container.get("resources", {}).get("accelerator"):
            what = "launches a training, and holds a GPU while others train"
            yield f"{step.name}: resources.accelerator", what, "give it the placement of the cpu pool"


def _workers(package: Package, step: Task) -> dict | None:
    """Returns what the settings of a step say of its workers; None for a step without."""
    return package.settings_of(step).get("workers") if step.name in TRAININGS else None


def _command_line(step: Task) -> Iterator[tuple[str, str]]:
    for part in ("command", "args"):
        for position, text in enumerate(step.container.get(part, [])):
            yield f"{step.name}: {part}[{position}]", str(text)


def _arguments(package: Package) -> Iterator[tuple[Task, str, str]]:
    """Returns every word of every step's command line, with its place."""
    return ((step, where, text) for step in package.steps for where, text in _command_line(step))


def _environment(package: Package) -> Iterator[tuple[str, str]]:
    for step in package.steps:
        for variable in step.container.get("env", []):
            yield f"{step.name}: env.{variable['name']}", variable.get("value", "")


def _images(package: Package) -> Iterator[tuple[str, str]]:
    """Returns every image once, with the steps that run it."""
    images: dict[str, list[str]] = {}
    for step in package.steps:
        images.setdefault(step.container.get("image", ""), []).append(step.name)
        if workers := _workers(package, step):
            images.setdefault(workers["image"], []).append(f"{step.name}'s workers")
    return ((f"image of {', '.join(steps)}", image) for image, steps in images.items())
