"""The configuration of a pipeline, key for key as in its YAML file."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from posttrain.config.evidence import Evidence
from posttrain.config.limits import DataLimits, PairsLimits, Validation
from posttrain.config.line import PREFLIGHT, PUBLISH, REGISTER, REPORT, TRAININGS, is_rejection
from posttrain.config.mixture import DataSets
from posttrain.config.notify import Notify
from posttrain.config.parse import check_name
from posttrain.config.placement import OwnSecret, Placements, SecretEnv
from posttrain.config.registries import Registries
from posttrain.config.requirements import evidence_of
from posttrain.config.section import Count, Positive, Section
from posttrain.config.serving import Export
from posttrain.config.signing import Signing
from posttrain.config.stages import DataConfig, DpoConfig, PairsConfig, SftConfig, Stages, check_dealt, check_whole

OPTIONAL = ("export", "registries")  # sections that are null where their steps are not in the graph


class PipelineConfig(Section):
    """The resolved configuration: with all files, settings and defaults."""

    # name of the pipeline
    pipeline_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "task-api-v1.0"
    # model to start from: Hub id[@revision], gs://, s3:// or folder
    base_model: str = "unsloth/Qwen2.5-3B-Instruct-bnb-4bit"
    model_name: str | None = None  # name to publish under; null: pipeline_id
    # SFT rows: path, gs://, s3:// or Hub id; or a list of {uri, weight}
    sft_dataset: DataSets = ""
    # preference pairs: path, gs://, s3:// or Hub id; or a list of {uri, weight}
    preference_dataset: DataSets = ""
    storage_root: str = "runs"  # keeps records, results, checkpoints and published models: gs://, s3:// or folder
    publish_root: str | None = None  # where models are published; null: <storage_root>/published
    # make the published model the current version of its name, if it is not worse than the present one
    promote: bool = True
    # every URI of a run starts with one of these; empty: storage_root's bucket (or any path) and the Hub
    allowed_prefixes: list[str] = []
    # a run's storage_root is one of these, or lies below one that ends with "/"; empty: exactly storage_root
    allowed_storage_roots: list[str] = []
    stages: Stages = Stages()
    sft: SftConfig = SftConfig()
    pairs: PairsConfig = PairsConfig()
    dpo: DpoConfig = DpoConfig()
    data: DataConfig = DataConfig()
    validation: Validation = Validation()
    placement: Placements = Placements()
    # minutes in all that a run may wait for nodes; added to its steps' time limits, it is the limit of the run
    max_wait_minutes: Count = 1440
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9  # share of the GPU's memory for one process
    checkpoint_every_n_steps: Count = 100  # optimizer steps; upper bound for every stage's save_steps
    checkpoint_every_n_minutes: Positive = 15  # minutes between checkpoints where steps are slow
    # trackers that training metrics are streamed to; their own environment variables name the servers
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = []
    save_intermediate: bool = True  # keep the run's checkpoints after promotion
    upload_to_hub: bool = False  # also publish to a Hub repository, private unless it already is public
    hub_repo_id: str | None = None  # Hub repository, org/name
    signing: Signing | None = None  # the key or identity that signs published models; null: not signed
    notify: Notify | None = None  # webhook for a message when a gate stops a run and when a run ends; null: none
    # registries in which each published version is registered, with what its gates measured; null: none
    registries: Registries | None = None
    # files for serving engines, judged and published beside the model; null: none
    export: Export | None = None

    @model_validator(mode="after")
    def _hub_upload_has_a_repo(self):
        if self.upload_to_hub and not self.hub_repo_id:
            raise ValueError("upload_to_hub is on, but hub_repo_id is empty: give org/name")
        return self

    @model_validator(mode="after")
    def _a_whole_model_is_exported(self):
        if self.export and not self.stages.merge.enabled:
            raise ValueError("export is set, but stages.merge is off: an adapter is not a model to serve; enable merge")
        return self

    @model_validator(mode="after")
    def _model_name_is_a_name(self):
        check_name(self.model_name or self.pipeline_id, key="model_name" if self.model_name else "pipeline_id")
        return self

    @model_validator(mode="after")
    def _micro_batches_are_dealt_to_the_gpus(self):
        for step, stage in TRAININGS.items():
            if getattr(self.stages, stage).enabled:
                check_dealt(getattr(self, stage), self.placement.num_ranks(step), section=stage)
        return self

    @model_validator(mode="after")
    def _pairs_can_be_told_apart(self):
        if not self.stages.pairs.enabled:
            return self
        matcher, reward_model = self.validation.answer_match, self.pairs.reward_model
        if matcher == "none" and self.validation.judge != "model" and not reward_model:
            raise ValueError(
                "stages.pairs is on, but nothing tells a better answer from a worse one: validation.answer_match is "
                "none, validation.judge is not model, and there is no pairs.reward_model; set one of them, or disable "
                "stages.pairs"
            )
        if reward_model and matcher not in ("none", None):
            raise ValueError(
                f"pairs.reward_model is set, but validation.answer_match is {matcher}, which tells right answers from "
                "wrong ones: remove one of them"
            )
        if self.stages.pairs.alone and self.preference_dataset:
            raise ValueError(
                "stages.pairs.alone is on, but preference_dataset is given: remove it, or set alone to false to train "
                "on both"
            )
        return self

    @model_validator(mode="after")
    def _a_matcher_keeps_the_best(self):
        for step, stage in TRAININGS.items():
            if not (getattr(self.stages, stage).enabled and getattr(self, stage).keep_best):
                continue
            if self.validation.answer_match in ("none", "judge"):
                raise ValueError(
                    f"{stage}.keep_best is on, but validation.answer_match is {self.validation.answer_match}: give a "
                    "matcher or your own function, or set keep_best to null"
                )
            if self.placement.num_ranks(step) > 1:
                check_whole(getattr(self, stage), section=stage)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the settings of pairs where none are sampled: a graph without them is the same with any."""
        config = dump(self)
        if not self.stages.pairs.enabled:
            config.pop("pairs", None)
            for key in PairsLimits.model_fields.keys() - DataLimits.model_fields.keys():
                config.get("validation", {}).pop(key, None)
        return config

    @property
    def sections(self) -> list[str]:
        """Names of the optional sections that are set."""
        return [name for name in OPTIONAL if getattr(self, name) is not None]

    @property
    def evidence(self) -> Evidence:
        """The evidence that the gates of the line need."""
        return evidence_of(self)

    def secrets_of(self, step: str) -> list[SecretEnv]:
        """Returns the secrets of a step: those of its placement, and those that other sections name for it."""
        named = [secret for section in self._sections_for(step) for secret in section.secrets]
        return [*self.placement.of(step).secrets, *named]

    def variables_of(self, step: str) -> list[str]:
        """Returns the variables of a step that have or name a secret, also where no Kubernetes secret gives them."""
        named = [section.env for section in self._sections_for(step)]
        return [*(secret.env for secret in self.placement.of(step).secrets), *named]

    def _sections_for(self, step: str) -> list[OwnSecret]:
        """Returns the sections whose secret a step gets; preflight looks at all of them."""
        at = self.notify.at if self.notify else []
        signs, registers = step in (PREFLIGHT, PUBLISH), step in (PREFLIGHT, REGISTER)
        tells = step == PREFLIGHT or (step == REPORT and "end" in at) or (is_rejection(step) and "stop" in at)
        wanted = [(self.signing, signs), (self.notify, tells)]
        wanted += [(registry, registers) for registry in (self.registries.all.values() if self.registries else ())]
        return [section for section, is_for in wanted if section and is_for]

    def unplaced(self) -> "PipelineConfig":
        """Returns the configuration for a machine without a cluster's nodes and secrets."""
        update = {"placement": Placements(), "signing": self.signing and Signing(keyless=self.signing.keyless)}
        update |= {"registries": self.registries and self.registries.unplaced()}
        return self.model_copy(update=update | {"notify": self.notify and Notify(at=self.notify.at)})

    @property
    def storage_roots(self) -> list[str]:
        """Storage roots; every run must use one of them."""
        return self.allowed_storage_roots or [self.storage_root.rstrip("/") or "/"]

    @property
    def prefixes(self) -> list[str]:
        """Prefixes; every URI of a run must have one of them."""
        if self.allowed_prefixes:
            return self.allowed_prefixes
        bucket = re.match(r"(gs|s3)://[^/]+/?", self.storage_root)
        return [bucket[0] if bucket else "/", "hf://"]
