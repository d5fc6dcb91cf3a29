"""Turns components into steps of a graph, each with its configuration and its placement."""

import copy
import dataclasses
import math
from typing import Any

from kfp import dsl

from components.container import image_reference
from pipelines.resources import place
from posttrain import config as c
from posttrain.config import table
from posttrain.config.cards import memory_gb
from posttrain.config.evidence import Evidence
from posttrain.config.line import LAUNCH, LINE, PREFLIGHT, SELECTION, TRAININGS, Step, is_gate, step_of
from posttrain.config.placement import TOKEN_ENV, UPLOAD_TOKEN_ENV, ConfigMapEnv, Placement, SecretEnv, num_bytes
from posttrain.config.requirements import evidence_of_pairs

TIMEOUT_MINUTES = 60  # for a step that belongs to no stage
RETRY_COUNT = 1
SAVE_MINUTES = 10  # from a training stage's own deadline, at which it saves and leaves, to the end of its attempt
QUICK_MINUTES = 10  # for a step whose work takes seconds
POD_GRACE_MINUTES = 10  # for what is around the attempts: the pull of the image, small inputs and outputs
LAUNCH_MINUTES = 40  # for what a launch step does around its job: the end of the last one, inputs, an API that is away
TRANSFER_BYTES_PER_SECOND = 50e6  # of a model that the launcher brings before the step, or takes after it
SOURCE_ENV = "POSTTRAIN_SECRET"  # with a number: what a secret of another step holds, for preflight to look for


def step_names(config: c.PipelineConfig) -> list[str]:
    """Returns the names of the steps of a promoted run, in the order of the graph."""
    shape = {"promote": config.promote, "sections": config.sections}
    return [step.name for step in LINE if step.is_in(config.stages, **shape)]


def num_models(task: dsl.PipelineTask) -> int:
    """Returns how many models the task takes and gives; none is larger than the memory of the pods that load it."""
    spec = task.component_spec
    artifacts = [*(spec.inputs or {}).values(), *(spec.outputs or {}).values()]
    return sum(artifact.type.startswith("system.Model") for artifact in artifacts)


def named(component, name: str):
    """Returns the component under the name of a step: kfp numbers the tasks of a component that is used twice."""
    copied = copy.copy(component)
    copied.component_spec = dataclasses.replace(component.component_spec, name=name.replace("_", "-"))
    return copied


def launching(component):
    """Returns a training's component as one that has the training run on several nodes, from a pod without a GPU."""
    copied, spec = copy.copy(component), component.component_spec
    container = spec.implementation.container
    command = [*container.command[:-1], LAUNCH]
    container = dataclasses.replace(container, image=image_reference("cpu"), command=command)
    implementation = dataclasses.replace(spec.implementation, container=container)
    copied.component_spec = dataclasses.replace(spec, implementation=implementation)
    return copied


class Steps:
    """Adds steps to a graph while it is written."""

    def __init__(
        self,
        config: c.PipelineConfig,
        *,
        evidence: Evidence | None = None,
        **run_parameters: dsl.pipeline_channel.PipelineChannel,
    ):
        self.config = config
        self.evidence = evidence or config.evidence  # a sweep needs more than the line
        self.run_parameters = run_parameters
        self.names: list[str] = []  # in the order in which they were added
        self.pod_minutes: list[int] = []  # their time limits
        self.settings: dict[str, dict[str, Any]] = {}  # of each step that gets the digest of its own
        self.table: dict[str, Any] = {}  # all of these; preflight gets it, and kfp compiles it when it is complete

    def run(self, component, name: str | None = None, **inputs) -> dsl.PipelineTask:
        """Adds one task of `component`, called `name` (the component's own name unless given)."""
        task = self.add(component, name, **inputs)
        name = self.names[-1]
        self.place(task, self._placement_of(name), self.attempt_minutes(name), self.retry_count(name))
        return task

    def place(self, task: dsl.PipelineTask, placement: Placement, minutes: int, retry_count: int) -> None:
        """Places a task, with `minutes` for an attempt. Its pod has the time of all attempts."""
        attempts = c.Attempts(1 + retry_count, minutes * 60, placement.retry_backoff_seconds)
        limit = attempts.number * minutes
        if not step_of(self.names[-1]).is_quick:
            limit += POD_GRACE_MINUTES + self._transfer_minutes(num_models(task))
        self.pod_minutes.append(limit)
        place(task, placement, attempts=attempts, pod_minutes=limit)

    def add(self, component, name: str | None = None, **inputs) -> dsl.PipelineTask:
        """Adds a task without a placement."""
        component_name = component.name.replace("-", "_")
        name = name or component_name
        if self.config.placement.of(name).nodes > 1:
            component = launching(component)
        config = inputs.pop("config", None) or self._config_of(step_of(name))
        config = config | {"allowed_storage_roots": self.config.storage_roots}
        declared = component.component_spec.inputs or {}
        common = {"step": name, **self.run_parameters}
        if "config" in declared:
            common["config"] = self._compiled(name, config)
        task = named(component, name)(**({key: value for key, value in common.items() if key in declared} | inputs))
        task.set_display_name(name)
        self.names.append(name)
        return task

    def finish(self) -> None:
        """Completes what depends on all steps of the graph, when the last one has been added."""
        self.table |= table.table_of(self.settings)

    def _compiled(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        """Returns what a step gets as its config: preflight those of all, others the digest of their own. report_run
        has its own, because it runs even if preflight has failed.
        """
        if step_of(name).section is c.ReportStep:
            return config
        self.settings[name] = config
        return self.table if name == PREFLIGHT else table.reference(config)

    def going_on(self, **run_parameters: dsl.pipeline_channel.PipelineChannel) -> "Steps":
        """Returns steps that continue the same graph with other run parameters."""
        steps = Steps(self.config, evidence=self.evidence, **(self.run_parameters | run_parameters))
        steps.names += self.names
        steps.pod_minutes, steps.settings, steps.table = self.pod_minutes, self.settings, self.table
        return steps

    @property
    def deadline_seconds(self) -> int:
        """The time limit of the run: those of all its pods, and the wait for their nodes."""
        return 60 * (sum(self.pod_minutes) + self.config.max_wait_minutes)

    def has(self, *stages: str) -> tuple[bool, ...]:
        """Tells for each of these stages whether it is on, as `Stages.has` does."""
        return tuple(map(self.config.stages.has, stages))

    def tells(self, at: str) -> bool:
        """Tells whether a webhook hears of this, `stop` or `end`."""
        return self.config.notify is not None and at in self.config.notify.at

    def attempt_minutes(self, name: str) -> int:
        """Returns the time after which an attempt is ended; a training leaves by itself before that."""
        if workers := self._workers(name):
            return workers.queue_minutes + workers.deadline_minutes + LAUNCH_MINUTES
        return self._timeout_minutes(name) + (SAVE_MINUTES if step_of(name).kind == "training" else 0)

    def _transfer_minutes(self, num_models: int) -> int:
        transfer = num_models * num_bytes(self.config.placement.gpu.memory) / TRANSFER_BYTES_PER_SECOND
        return math.ceil(transfer / 60)

    def _workers(self, name: str) -> c.Workers | None:
        """Returns the pods of a training on several nodes; None if it trains in its own pod.

        Each of them pulls its image and brings the model by itself, before the training's clock begins.
        """
        placement = self.config.placement.of(name)
        if placement.nodes == 1:
            return None
        plain = Placement.model_validate(placement.model_dump())  # whose defaults are not those of a pool
        return c.Workers(
            num_nodes=placement.nodes,
            image=image_reference("train"),
            runtime=placement.training_runtime,
            placement=plain.model_dump(mode="json", exclude_defaults=True, exclude_none=True),
            deadline_minutes=self._timeout_minutes(name) + POD_GRACE_MINUTES + self._transfer_minutes(1) + SAVE_MINUTES,
            queue_minutes=placement.queue_minutes,
        )

    def _placement_of(self, name: str) -> Placement:
        placement = self.config.placement.of(name)
        if placement.nodes > 1:  # its pod only launches; the workers have this placement
            return self.config.placement.cpu
        placement = placement.model_copy(update={"secrets": self.config.secrets_of(name)})
        if name != PREFLIGHT:
            return placement
        secrets, config_maps = [*placement.secrets, *self._upload_token()], list(placement.config_maps)
        for at, other in enumerate(self._sources_of_others(placement), start=1):
            renamed = other.model_copy(update={"env": f"{SOURCE_ENV}_{at}"})
            (config_maps if isinstance(other, ConfigMapEnv) else secrets).append(renamed)
        return placement.model_copy(update={"secrets": secrets, "config_maps": config_maps})

    def _upload_token(self) -> list[SecretEnv]:
        """Returns the token of publish_model under the name by which preflight knows it."""
        if not self.config.upload_to_hub:
            return []
        secrets = [secret for secret in self.config.placement.of("publish_model").secrets if secret.env == TOKEN_ENV]
        return [secret.model_copy(update={"env": UPLOAD_TOKEN_ENV}) for secret in secrets]

    def _sources_of_others(self, placement: Placement) -> list[SecretEnv | ConfigMapEnv]:
        """Returns the secrets and config maps of all steps that this placement lacks, as plain variables."""
        own = [entry.source for entry in (*placement.secrets, *placement.config_maps, *self._upload_token())]
        entries = [entry for one in self.config.placement.all for entry in (*one.secrets, *one.config_maps)]
        others = {entry.source: entry for entry in entries if entry.source not in own}
        return [
            other.model_copy(update={"as_file": False}) if isinstance(other, SecretEnv) else other
            for other in others.values()
        ]

    def _timeout_minutes(self, name: str) -> int:
        """Returns the configured time limit of one attempt; a training saves at that time, for which it gets more."""
        step, placed = step_of(name), self.config.placement.of(name).timeout_minutes
        if step.is_quick:
            return self.config.placement.own(name).timeout_minutes or QUICK_MINUTES
        if placed is not None:
            return placed
        if step.kind == "gate":
            return self.config.validation.timeout_minutes
        return getattr(self.config.stages, step.stage).timeout_minutes if step.stage else TIMEOUT_MINUTES

    def retry_count(self, name: str) -> int:
        """Returns the number of further attempts. A gate that gave a verdict did not fail: only a crash is retried."""
        step, placed = step_of(name), self.config.placement.of(name).retry_count
        if not step.is_retried:
            return 0
        if placed is not None:
            return placed
        has_own = step.stage and step.kind != "gate"
        return getattr(self.config.stages, step.stage).retry_count if has_own else RETRY_COUNT

    def _config_of(self, step: Step) -> dict[str, Any]:
        """Returns the step's section of the configuration, filled by the names of its fields."""
        names, placements = step_names(self.config), self.config.placement
        values = {"allowed_prefixes": self.config.prefixes, "steps": names, "evidence": self.evidence}
        on_gpu = {name: placements.of(name) for name in names if step_of(name).pool == "gpu"}
        values["num_gpus"] = {name: placement.nodes * placement.accelerator_count for name, placement in on_gpu.items()}
        runtimes = {placement.training_runtime for placement in on_gpu.values() if placement.nodes > 1}
        values |= {"training_runtimes": sorted(runtimes) or None, "workers": self._workers(step.name)}
        sizes = {name: memory_gb(placements.of(name)) for name in names if name in TRAININGS}
        values["gpu_memory_gb"] = {name: size for name, size in sizes.items() if size}
        values["pairs"] = self.config.pairs if self.config.stages.pairs.enabled else None
        values |= {"evidence": evidence_of_pairs(self.config)} if step.section is c.CheckPairsStep else {}
        if step.kind == "training" and getattr(self.config, step.stage).keep_best:
            judging = self.config.validation.model_dump(include=set(c.Selection.model_fields))
            values["selection"] = c.Selection(**judging, module=SELECTION)
        values.setdefault("selection", None)
        values |= self._gates() if step.section is c.PublishStep else {}
        values |= {"sources": self._sources()} if step.section is c.PreflightStep else {}
        images = {name: image_reference(name) for name in ("cpu", "train")}
        signing = self.config.signing
        values["signing"] = c.SigningStep(images=images, keyless=signing.keyless) if signing else None
        at = {c.RejectStep: ("stop",), c.ReportStep: ("end",)}.get(step.section, ("stop", "end"))
        values["registries"] = self.config.registries and self.config.registries.servers
        values["notify"] = True if any(map(self.tells, at)) else None
        for name, field in step.section.model_fields.items():
            if name == "training":
                values[name] = self._training(step.name)
            elif name == "validation":  # the limits that this gate reads
                values[name] = self.config.validation.model_dump(include=set(field.annotation.model_fields))
            elif name not in values:
                values[name] = getattr(self.config, name)
        section = step.section.model_validate({name: values[name] for name in step.section.model_fields})
        return section.model_dump(mode="json", exclude_none=True)  # kfp cannot compile a null; all nulls are defaults

    def _training(self, step: str) -> c.Training:
        return c.Training(
            checkpoint_every_n_steps=self.config.checkpoint_every_n_steps,
            checkpoint_every_n_minutes=self.config.checkpoint_every_n_minutes,
            gpu_memory_fraction=self.config.gpu_memory_fraction,
            report_to=self.config.report_to,
            timeout_minutes=self._timeout_minutes(step),
            num_processes=self.config.placement.num_ranks(step),
        )

    def _sources(self) -> dict[str, str]:
        placement = self._placement_of(PREFLIGHT)
        return {entry.env: entry.source for entry in (*placement.secrets, *placement.config_maps)}

    def _gates(self) -> dict[str, list[str]]:
        """Names the gates so far, and those that judged the model as it is now."""
        makers = [at for at, name in enumerate(self.names) if step_of(name).kind in ("training", "merge")]
        return {
            "required_gates": [name for name in self.names if is_gate(name)],
            "judged_gates": [name for name in self.names[makers[-1] :] if is_gate(name)],
        }
