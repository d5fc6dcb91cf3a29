"""The whole configuration of a pipeline, as its YAML file holds it."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.limits import Validation
from posttrain.config.placement import Placements
from posttrain.config.section import Count, Positive, Section
from posttrain.config.stages import DataConfig, DpoConfig, SftConfig, Stages, check_dealt


class PipelineConfig(Section):
    """All of it, resolved."""

    pipeline_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "task-api-v1.0"  # name
    base_model: str = "unsloth/Qwen2.5-3B-Instruct-bnb-4bit"  # Hub id[@revision], gs://, s3:// or folder
    model_name: str | None = None  # null: pipeline_id
    sft_dataset: str = ""  # path, gs://, s3:// or Hub id
    preference_dataset: str = ""  # path, gs://, s3:// or Hub id
    storage_root: str = "runs"  # gs://, s3:// or folder
    publish_root: str | None = None  # null: <storage_root>/published
    allowed_prefixes: list[str] = []  # of every run-time URI; empty: storage_root's bucket (or any path) and the Hub
    stages: Stages = Stages()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    data: DataConfig = DataConfig()
    validation: Validation = Validation()
    placement: Placements = Placements()
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9  # of the GPU's memory, for one process
    checkpoint_every_n_steps: Count = 100  # upper bound for every stage's save_steps
    checkpoint_every_n_minutes: Positive = 15  # minutes; a checkpoint is also made where steps are slow
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = []  # where trainings are watched; servers by their env
    save_intermediate: bool = True  # keep the run's checkpoints after promotion
    upload_to_hub: bool = False  # also to a Hub repository, private unless it exists and is public
    hub_repo_id: str | None = None  # org/name

    @model_validator(mode="before")
    @classmethod
    def _stages_by_name(cls, raw):
        if isinstance(raw, dict) and isinstance(raw.get("stages"), list):
            raw = raw | {"stages": _stages_from_list(raw["stages"])}
        return raw

    @model_validator(mode="after")
    def _hub_upload_has_a_repo(self):
        if self.upload_to_hub and not self.hub_repo_id:
            raise ValueError("upload_to_hub is on but hub_repo_id is empty: give org/name")
        return self

    @model_validator(mode="after")
    def _micro_batches_are_dealt_to_the_gpus(self):
        for name in ("sft", "dpo"):
            if getattr(self.stages, name).enabled:
                check_dealt(getattr(self, name), self.placement.of(f"train_{name}").accelerator_count, section=name)
        return self

    @property
    def prefixes(self) -> list[str]:
        """Prefixes under which every URI of a run must lie."""
        if self.allowed_prefixes:
            return self.allowed_prefixes
        bucket = re.match(r"(gs|s3)://[^/]+/?", self.storage_root)
        return [bucket[0] if bucket else "/", "hf://"]


def _stages_from_list(stages: list, *, file: str = "stages") -> dict:
    by_name = {}
    for at, stage in enumerate(stages):
        if not isinstance(stage, dict) or "name" not in stage:
            raise ValueError(f"{file}: stages[{at}] is {stage!r}: give a mapping with a name (sft, merge or dpo)")
        stage = dict(stage)
        name = stage.pop("name")
        if name in by_name:
            raise ValueError(f"{file}: stage {name!r} is given twice: remove one")
        by_name[name] = stage
    return by_name
