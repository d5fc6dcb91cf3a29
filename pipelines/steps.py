"""The steps of the line by name; and how a component becomes one: it is given its configuration and its placement."""

from typing import Any

from kfp import dsl

from pipelines.resources import place
from posttrain import config as c

GPU_STEPS = {"train_sft", "train_dpo", "check_sft", "check_alignment", "check_safety"}
STAGE_OF = {"train_sft": "sft", "train_dpo": "dpo", "merge_sft": "merge", "merge_dpo": "merge"}
TIMEOUT_MINUTES = 60  # of a step that belongs to no stage
RETRY_COUNT = 1


def step_names(config: c.PipelineConfig) -> list[str]:
    """The steps of a promoted run, in the order of the graph."""
    sft, merge, dpo = (getattr(config.stages, stage).enabled for stage in ("sft", "merge", "dpo"))
    sft_merge, sft_only = sft and merge, sft and merge and not dpo
    wanted = {
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
        component_name = component.name.replace("-", "_")
        name = name or component_name
        common = {"step": name, "config": self._config_of(component_name), **self.run_parameters}
        declared = component.component_spec.inputs or {}
        task = component(**{key: value for key, value in common.items() if key in declared}, **inputs)
        task.set_display_name(name)
        self._place(task, name)
        self.names.append(name)
        return task

    def _place(self, task: dsl.PipelineTask, name: str) -> None:
        placement = self.config.placement.of(name, "gpu" if name in GPU_STEPS else "cpu")
        minutes, retries = TIMEOUT_MINUTES, RETRY_COUNT
        if name in STAGE_OF:
            stage = getattr(self.config.stages, STAGE_OF[name])
            minutes, retries = stage.timeout_minutes, stage.retry_count
        elif name.startswith("check_"):
            minutes = self.config.validation.timeout_minutes
        if placement.timeout_minutes is not None:
            minutes = placement.timeout_minutes
        if placement.retry_count is not None:
            retries = placement.retry_count
        if name.startswith("reject_") or name == "report_run":
            retries = 0  # whatever its pool has: one fails on purpose, the other is a hook that may not be retried
        place(task, placement, timeout_minutes=minutes, retry_count=retries)

    def _config_of(self, component: str) -> dict[str, Any]:
        """The component's section of the configuration, by the names of its fields."""
        section = c.STEP_SECTIONS[component]
        values = {"allowed_prefixes": self.config.prefixes, "steps": step_names(self.config)}
        values |= self._published() if component == "publish_model" else {}
        for name, field in section.model_fields.items():
            if name == "training":
                values[name] = self._training(STAGE_OF[component])
            elif name == "validation":  # of all limits those that this gate reads
                values[name] = self.config.validation.model_dump(include=set(field.annotation.model_fields))
            elif name not in values:
                values[name] = getattr(self.config, name)
        chosen = section.model_validate({name: values[name] for name in section.model_fields})
        return chosen.model_dump(mode="json", exclude_none=True)  # kfp cannot compile a null; all nulls are defaults

    def _training(self, stage: str) -> c.Training:
        return c.Training(
            checkpoint_every_n_steps=self.config.checkpoint_every_n_steps,
            checkpoint_every_n_minutes=self.config.checkpoint_every_n_minutes,
            gpu_memory_fraction=self.config.gpu_memory_fraction,
            timeout_minutes=getattr(self.config.stages, stage).timeout_minutes,
        )

    def _published(self) -> dict[str, Any]:
        gates = [name for name in self.names if name.startswith("check_")]
        made = [name for name in self.names if name.startswith(("merge_", "train_"))][-1]  # gave the model
        return {
            "required_gates": gates,
            "judged_gates": [name for name in gates if self.names.index(name) > self.names.index(made)],
        }
