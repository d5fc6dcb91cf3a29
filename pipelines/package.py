"""Reads a compiled package as the tasks of its graph: what each runs, what it gets, and which group it is in.

a file (YAML: the pipeline spec and, as a second document, the settings for Kubernetes) -> `Package`
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from posttrain.config import table

CONDITION = re.compile(r"inputs\.parameter_values\['(?P<channel>[^']+)'\] == (?P<wanted>true|false)")
AT_ANY_END = "ALL_UPSTREAM_TASKS_COMPLETED"  # strategy of an exit task, which also runs after failures
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast

Spec = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """One task of the graph: a step with a container, or a group of tasks."""

    key: str  # unique among the tasks of its group
    spec: Spec
    component: Spec
    executor: Spec  # empty for a group
    kubernetes: Spec
    group: "Task | None"  # None for an outermost task

    @property
    def name(self) -> str:
        return self.spec.get("taskInfo", {}).get("name", self.key)

    @property
    def container(self) -> Spec:
        return self.executor.get("container", {})

    @property
    def groups(self) -> list["Task"]:
        """The groups that the task is in, from the inside out."""
        return [self.group, *self.group.groups] if self.group else []

    @property
    def constants(self) -> Spec:
        """The compiled-in values, by input parameter."""
        values = {name: value.get("runtimeValue", {}) for name, value in self.given("parameters").items()}
        return {name: value["constant"] for name, value in values.items() if "constant" in value}

    @property
    def condition(self) -> str:
        return " ".join(self.spec.get("triggerPolicy", {}).get("condition", "").split())

    @property
    def is_exit_task(self) -> bool:
        return self.spec.get("triggerPolicy", {}).get("strategy") == AT_ANY_END

    @property
    def is_loop(self) -> bool:
        return "parameterIterator" in self.spec or "artifactIterator" in self.spec

    def runs(self, module: str) -> bool:
        """Tells whether its container runs `python -m <module>`."""
        return module in self.container.get("command", [])

    def given(self, kind: str) -> Spec:
        """Returns the `parameters` or `artifacts` that the task passes to its component."""
        return self.spec.get("inputs", {}).get(kind, {})

    def declared(self, side: str, kind: str) -> Spec:
        """Returns the `parameters` or `artifacts` among the `inputs` or `outputs` of its component."""
        return self.component.get(f"{side.removesuffix('s')}Definitions", {}).get(kind, {})


class Branch(NamedTuple):
    """The output that a conditional task waits for."""

    task: Task
    output: str
    wanted: bool


@dataclass(frozen=True)
class Package:
    """A pipeline spec and its platform spec."""

    spec: Spec
    platform: Spec = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Package":
        """Reads a file; raises ValueError if it is not a compiled pipeline."""
        try:
            documents = list(yaml.load_all(Path(path).read_text(encoding="utf-8"), Loader=LOADER))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}): compile it again") from error
        is_package = len(documents) in (1, 2) and all(isinstance(document, dict) for document in documents)
        if not is_package or "dag" not in (documents[0].get("root") or {}):
            raise ValueError(f"{path} is not a compiled pipeline: it has no root.dag; write one with compile.py")
        return cls(*documents)

    @property
    def parameters(self) -> Spec:
        """The declared parameters of a run."""
        return self.spec["root"].get("inputDefinitions", {}).get("parameters", {})

    @cached_property
    def tasks(self) -> list[Task]:
        """All tasks, also those inside groups; a group comes before its tasks."""
        return list(self._tasks_of(self.spec["root"], group=None))

    @property
    def steps(self) -> list[Task]:
        """The tasks that run a container."""
        return [task for task in self.tasks if task.container]

    @property
    def gates(self) -> list[Task]:
        """The steps with an output `passed`, which decides whether the pipeline goes on."""
        return [step for step in self.steps if "passed" in step.declared("outputs", "parameters")]

    @property
    def values(self) -> Spec:
        """All values in the file that a step may get: defaults of run parameters and constants, by their place."""
        values = {f"run parameter {name}": spec.get("defaultValue") for name, spec in self.parameters.items()}
        for task in self.tasks:
            values |= {f"{task.name}: inputs.parameters.{name}": value for name, value in task.constants.items()}
        return values

    @cached_property
    def settings(self) -> dict[str, Spec]:
        """The settings of all steps that get the digest of their own, by that."""
        tables = [config for step in self.steps if table.is_table(config := step.constants.get("config", {}))]
        settings = table.settings_of(tables[0]).values() if tables else []
        return {table.reference(one)["sha256"]: one for one in settings}

    def settings_of(self, step: Task) -> Spec:
        """Returns the settings of a step, whether it gets them or the digest of them."""
        config = step.constants.get("config", {})
        if table.is_table(config):
            return table.settings_of(config)[step.name]
        return self.settings[sha256] if (sha256 := table.referred(config)) else config

    def inside(self, group: Task | None) -> list[Task]:
        """Returns the tasks directly in a group; for None, the outermost."""
        return [task for task in self.tasks if task.group is group]

    def branch(self, task: Task) -> Branch | None:
        """Returns what a conditional task waits for, if that is a boolean output of a task beside it."""
        match = CONDITION.fullmatch(task.condition)
        source = task.given("parameters").get(match["channel"], {}).get("taskOutputParameter") if match else None
        for producer in self.inside(task.group) if source else []:
            if producer.key == source["producerTask"]:
                return Branch(producer, source["outputParameterKey"], match["wanted"] == "true")
        return None

    def origin(self, source: Spec, group: Task | None) -> tuple[Task | None, str]:
        """Returns the step, and its output, behind an artifact that a task in `group` gets; None for one of the run."""
        if name := source.get("componentInputArtifact"):
            outer = group.given("artifacts").get(name) if group else None
            return self.origin(outer, group.group) if outer else (None, name)
        key, output = source["taskOutputArtifact"]["producerTask"], source["taskOutputArtifact"]["outputArtifactKey"]
        producer = next((task for task in self.inside(group) if task.key == key), None)
        if not producer:
            return None, f"{key}.{output}"  # of no task of this group: another rule says so
        selectors = producer.component.get("dag", {}).get("outputs", {}).get("artifacts", {}).get(output)
        if not selectors:
            return producer, output
        inner = selectors["artifactSelectors"][0]
        inner = {"producerTask": inner["producerSubtask"], "outputArtifactKey": inner["outputArtifactKey"]}
        return self.origin({"taskOutputArtifact": inner}, producer)

    def _tasks_of(self, component: Spec, group: Task | None) -> Iterator[Task]:
        for key, spec in component["dag"]["tasks"].items():
            task = self._task(key, spec, group)
            yield task
            if "dag" in task.component:
                yield from self._tasks_of(task.component, task)

    def _task(self, key: str, spec: Spec, group: Task | None) -> Task:
        reference = spec["componentRef"]["name"]
        component = self.spec.get("components", {}).get(reference)
        if component is None:
            raise ValueError(f"task {key}: the package has no component {reference}: compile it again")
        label = component.get("executorLabel")
        executor = self.spec.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        kubernetes = self.platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
        return Task(key, spec, component, executor, kubernetes.get("executors", {}).get(label, {}), group)
