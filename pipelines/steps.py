"""The steps of the line by name; and how a component becomes one: it is given its configuration and its placement."""

from typing import Any

from kfp import dsl

from pipelines.resources import POD_GRACE_MINUTES, place
from posttrain import config as c
from posttrain.config.placement import GPU_STEPS, TOKEN_ENV, TRAINING_STEPS, UPLOAD_TOKEN_ENV, Placement

STAGE_OF = {"train_sft": "sft", "train_dpo": "dpo", "merge_sft": "merge", "merge_dpo": "merge"}
TIMEOUT_MINUTES = 60  # of a step that belongs to no stage
RETRY_COUNT = 1


def step_names(config: c.PipelineConfig) -> list[str]:
    """The steps of a promoted run, in the order of the graph."""
    sft, merge, dpo = (getattr(config.stages, stage).enabled for stage in ("sft", "merge", "dpo"))
    sft_merge, sft_only = sft and merge, sft and merge and not dpo
    wanted = {
        "preflight": True,
        "fetch_model": True,
        "prepare_sft_data": sft,
        "prepare_preferences": dpo,
        "check_data": sft and dpo,
        "check_sft_data": not dpo,
        "check_preference_data": not sft,
        "train_sft": sft,
        "check_sft": sft,
        "merge_sft": sft_merge,
        "check_sft_merge": sft_merge,
        "check_safety": sft_only,
        "train_dpo": dpo,
        "merge_dpo": dpo,
        "check_dpo_merge": dpo,
        "check_alignment": dpo,
        "publish_model": True,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


class Steps:
    """The steps of one graph while it is written."""

    def __init__(self, config: c.PipelineConfig, **run_parameters: dsl.pipeline_channel.PipelineChannel):
        self.config = config
        self.run_parameters = run_parameters
        self.names: list[str] = []  # in the order in which they were added

    def run(self, component, name: str | None = None, **inputs) -> dsl.PipelineTask:
        """Adds one task of `component`, called `name` (the component's own name unless given)."""
        task = self.add(component, name, **inputs)
        name = self.names[-1]
        place(
            task, self._placement_of(name), timeout_minutes=self.pod_minutes(name), retry_count=self.retry_count(name)
        )
        return task

    def add(self, component, name: str | None = None, **inputs) -> dsl.PipelineTask:
        """The same without its placement."""
        component_name = component.name.replace("-", "_")
        name = name or component_name
        config = inputs.get("config") or self._config_of(component_name)
        declared = component.component_spec.inputs or {}
        common = {"step": name, "config": config, **self.run_parameters}
        task = component(**({key: value for key, value in common.items() if key in declared} | inputs))
        task.set_display_name(name)
        self.names.append(name)
        return task

    def going_on(self, **run_parameters: dsl.pipeline_channel.PipelineChannel) -> "Steps":
        """Steps that follow on these, with other parameters of the run."""
        steps = Steps(self.config, **(self.run_parameters | run_parameters))
        steps.names += self.names
        return steps

    def has(self, *stages: str) -> tuple[bool, ...]:
        """Which of these stages are on."""
        return tuple(getattr(self.config.stages, stage).enabled for stage in stages)

    def pod_minutes(self, name: str) -> int:
        """The time limit of the pod."""
        return self._timeout_minutes(name) + (POD_GRACE_MINUTES if name in TRAINING_STEPS else 0)

    def _placement_of(self, name: str) -> Placement:
        placement = self.config.placement.of(name)
        if name != "preflight" or not self.config.upload_to_hub:
            return placement
        found = [secret for secret in self.config.placement.of("publish_model").secrets if secret.env == TOKEN_ENV]
        token = [secret.model_copy(update={"env": UPLOAD_TOKEN_ENV}) for secret in found]
        return placement.model_copy(update={"secrets": [*placement.secrets, *token]})

    def _timeout_minutes(self, name: str) -> int:
        """Of one attempt; of a training stage its deadline, after which its pod has a while to save."""
        placed = self.config.placement.of(name).timeout_minutes
        if placed is not None:
            return placed
        if name in STAGE_OF:
            return getattr(self.config.stages, STAGE_OF[name]).timeout_minutes
        return self.config.validation.timeout_minutes if name.startswith("check_") else TIMEOUT_MINUTES

    def retry_count(self, name: str) -> int:
        """A verdict is no failure: a gate that gave one has ended well, and only one that crashed runs again."""
        if name in ("preflight", "report_run") or name.startswith("reject_"):
            return 0  # for what preflight and gates found stays so, and report_run is a hook that may not be retried
        placed = self.config.placement.of(name).retry_count
        if placed is not None:
            return placed
        return getattr(self.config.stages, STAGE_OF[name]).retry_count if name in STAGE_OF else RETRY_COUNT

    def _config_of(self, component: str) -> dict[str, Any]:
        """The component's section of the configuration, by the names of its fields."""
        section = c.STEP_SECTIONS[component]
        names, placements = step_names(self.config), self.config.placement
        values = {"allowed_prefixes": self.config.prefixes, "steps": names}
        values["num_gpus"] = {name: placements.of(name).accelerator_count for name in names if name in GPU_STEPS}
        values |= self._published() if component == "publish_model" else {}
        for name, field in section.model_fields.items():
            if name == "training":
                values[name] = self._training(component)
            elif name == "validation":  # of all limits those that this gate reads
                values[name] = self.config.validation.model_dump(include=set(field.annotation.model_fields))
            elif name not in values:
                values[name] = getattr(self.config, name)
        chosen = section.model_validate({name: values[name] for name in section.model_fields})
        return chosen.model_dump(mode="json", exclude_none=True)  # kfp cannot compile a null; all nulls are defaults

    def _training(self, step: str) -> c.Training:
        return c.Training(
            checkpoint_every_n_steps=self.config.checkpoint_every_n_steps,
            checkpoint_every_n_minutes=self.config.checkpoint_every_n_minutes,
            gpu_memory_fraction=self.config.gpu_memory_fraction,
            report_to=self.config.report_to,
            timeout_minutes=self._timeout_minutes(step),
            num_processes=max(1, self.config.placement.of(step).accelerator_count),
        )

    def _published(self) -> dict[str, Any]:
        gates = [name for name in self.names if name.startswith("check_")]
        made = [name for name in self.names if name.startswith(("merge_", "train_"))][-1]  # gave the model
        return {
            "required_gates": gates,
            "judged_gates": [name for name in gates if self.names.index(name) > self.names.index(made)],
        }
