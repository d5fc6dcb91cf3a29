"""The part of the configuration that each step of the graph gets, as compiled into it.

`posttrain.config.line` says which step gets which; those without settings of their own get a `StepSection`.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from posttrain.config.evidence import Evidence
from posttrain.config.keyless import Keyless
from posttrain.config.limits import (
    AlignmentLimits,
    AnswerLimits,
    ChampionLimits,
    CheckTimeouts,
    DataLimits,
    Generating,
    HarmJudge,
    Judges,
    Matching,
    MergeLimits,
    PairsLimits,
    SamplingLimits,
    SftLimits,
)
from posttrain.config.section import Count, Positive, Section
from posttrain.config.servers import Servers
from posttrain.config.serving import Export
from posttrain.config.stages import (
    DataConfig,
    DpoConfig,
    LoraTraining,
    PairsConfig,
    SftConfig,
    Stages,
    check_dealt,
    check_whole,
)

RUN_ID_ENV = "KFP_RUN_ID"  # on a cluster from the pod's label pipeline/runid, locally from the runner
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a stage left before its end, and the next attempt continues from there
FRESH_ENV = "POSTTRAIN_FRESH"  # 1: nothing of earlier runs is reused
ATTEMPTS_ENV = "POSTTRAIN_ATTEMPTS"  # `Attempts` of a step, as text
STARTED_ENV = "POSTTRAIN_STARTED"  # time.monotonic() at the start of a stage's clock, which was before its process's
HALVINGS_ENV = "POSTTRAIN_HALVINGS"  # how often earlier attempts ran out of memory: the micro-batch is halved as often


class Attempts(NamedTuple):
    """The attempts that a step has in its container."""

    number: int = 1
    seconds: int = 0  # of one attempt, which is then ended; 0: no limit
    wait_seconds: int = 0  # before another attempt, where something outside the step was missing; doubled each time

    @classmethod
    def parse(cls, text: str) -> "Attempts":
        return cls(*map(int, text.split()))

    def __str__(self) -> str:
        return " ".join(map(str, self))


class Ranks(Section):
    """The number of processes that train together: with another one rows and dropout, and so the result, differ."""

    num_processes: Count = 1  # one per GPU


class Workers(Section):
    """The pods of a training on several nodes."""

    num_nodes: Count
    image: str  # reference of the image with torch
    runtime: str  # name of the TrainingRuntime
    placement: dict[str, Any]  # of each: a `posttrain.config.placement.Placement`, without its defaults
    deadline_minutes: Count  # from when all are admitted to when all are ended; more than the training's own limit
    queue_minutes: Count  # that they may wait until all their processes have met


class Selection(CheckTimeouts, Matching, Generating):
    """How the checkpoints of a training are judged, where the best is kept."""

    module: str  # started as `python -m <module>`


class Selected(Section):
    """Setting that a training needs to keep its best checkpoint."""

    selection: Selection | None = None  # null: the last checkpoint is kept


class SftTraining(SftConfig, Ranks, Selected):
    """The settings that decide the result of train_sft."""


class DpoTraining(DpoConfig, Ranks, Selected):
    """The settings that decide the result of train_dpo."""


class Training(Ranks):
    """Settings of a training stage that do not decide its result, except for the number of ranks."""

    checkpoint_every_n_steps: Count = 100
    checkpoint_every_n_minutes: Positive = 15
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    timeout_minutes: Count = 180  # minutes; the stage saves and leaves before that; its pod may run longer
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = []
    leave_at: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of its steps after which it saves and leaves

    def decisive_number(self, config: LoraTraining) -> int:
        """Returns the number of ranks that counts for the result; an elastic training may change it on the way."""
        return 1 if config.elastic else self.num_processes


class Sampling(PairsConfig, Matching, Generating, HarmJudge):
    """The settings that decide the result of sample_pairs."""


class StepSection(Section):
    """Settings of every step. Some steps have no others."""

    allowed_prefixes: list[str] = ["/", "hf://"]
    # Null: a step that was started by hand. Decides no result, so it is in neither record nor fingerprint.
    allowed_storage_roots: list[str] | None = Field(None, exclude=True)

    @property
    def decisive(self) -> Section:
        """The settings that decide the step's outputs, and so are a part of its fingerprint."""
        return self


class SigningStep(Section):
    """Facts of the run that publish_model signs with the model, and how it signs."""

    images: dict[str, str] = {}  # name of an image that the graph uses -> its reference
    # null: by the key that POSTTRAIN_SIGNING_KEY names; left out then, so that the step's fingerprint is as before
    keyless: Keyless | None = Field(None, exclude_if=lambda keyless: keyless is None)


class PreflightStep(StepSection):
    """Configuration of preflight."""

    stages: Stages = Stages()
    data: DataConfig = DataConfig()
    validation: Judges = Judges()
    publish_root: str | None = None
    upload_to_hub: bool = False
    hub_repo_id: str | None = None
    signing: SigningStep | None = None  # null: the model is not signed
    notify: bool | None = None  # true: a webhook is told of this run
    registries: Servers | None = None  # null: the published version is not registered
    num_gpus: dict[str, int] = {}  # step that can use a GPU -> number of GPUs in its placement
    sources: dict[str, str] = {}  # variable of its pod -> secret or config map that it comes from, of any step
    gpu_memory_gb: dict[str, float] = {}  # training -> gigabytes of one of its GPUs, if its placement says so
    gpu_memory_fraction: float = 1.0
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    pairs: PairsConfig | None = None  # null: the graph samples none
    evidence: Evidence = Evidence()  # what the gates need of the data
    # names of the TrainingRuntimes of trainings on several nodes; None: there are no such trainings
    training_runtimes: list[str] | None = None
    export: Export | None = None  # files in which the model is served

    @property
    def prefixes(self) -> list[str]:
        """Named as in `PipelineConfig`, for code that checks either."""
        return self.allowed_prefixes

    @property
    def storage_roots(self) -> list[str] | None:
        """Named as in `PipelineConfig`."""
        return self.allowed_storage_roots


class PrepareStep(StepSection):
    """Configuration of the steps that prepare data."""

    data: DataConfig = DataConfig()


def check_selected(config: LoraTraining, step: Selected, *, section: str) -> None:
    """Refuses to keep the best checkpoint where nothing was compiled in to judge by, or no rank has the whole model.

    Raises:
        ValueError: naming section, key and remedy.
    """
    if config.keep_best and step.selection is None:
        raise ValueError(
            f"{section}.keep_best is on, but the graph was compiled without it: set it in the configuration"
        )
    if config.keep_best and step.training.num_processes > 1:
        check_whole(config, section=section)


class SftStep(StepSection, Selected):
    """Configuration of train_sft."""

    sft: SftConfig = SftConfig()
    training: Training = Training()
    workers: Workers | None = None  # None: it trains in its own pod

    @model_validator(mode="after")
    def _micro_batches_are_dealt(self):
        check_dealt(self.sft, self.training.num_processes, section="sft")
        check_selected(self.sft, self, section="sft")
        return self

    @property
    def decisive(self) -> Section:
        ranks = {"num_processes": self.training.decisive_number(self.sft)}
        return SftTraining(**self.sft.model_dump(), **ranks, selection=self.selection if self.sft.keep_best else None)


class DpoStep(StepSection, Selected):
    """Configuration of train_dpo."""

    dpo: DpoConfig = DpoConfig()
    training: Training = Training()
    workers: Workers | None = None  # None: it trains in its own pod

    @model_validator(mode="after")
    def _micro_batches_are_dealt(self):
        check_dealt(self.dpo, self.training.num_processes, section="dpo")
        check_selected(self.dpo, self, section="dpo")
        return self

    @property
    def decisive(self) -> Section:
        ranks = {"num_processes": self.training.decisive_number(self.dpo)}
        return DpoTraining(**self.dpo.model_dump(), **ranks, selection=self.selection if self.dpo.keep_best else None)


class CheckDataStep(StepSection):
    """Configuration of the data gates: `sft` and `dpo` say how long rows may be."""

    validation: DataLimits = DataLimits()
    evidence: Evidence = Evidence()  # what the later gates need of the data
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()


class CheckSftStep(StepSection):
    """Configuration of check_sft."""

    validation: SftLimits = SftLimits()
    sft: SftConfig = SftConfig()


class CheckMergeStep(StepSection):
    """Configuration of the merge gates."""

    validation: MergeLimits = MergeLimits()


class SamplePairsStep(StepSection):
    """Configuration of sample_pairs."""

    pairs: PairsConfig = PairsConfig()
    data: DataConfig = DataConfig()  # how `pairs.prompts` is read
    validation: SamplingLimits = SamplingLimits()

    @property
    def decisive(self) -> Section:
        answering = self.validation.model_dump(include=set(Sampling.model_fields))
        return Sampling(**self.pairs.model_dump(), **answering)


class CheckPairsStep(StepSection):
    """Configuration of check_pairs."""

    validation: PairsLimits = PairsLimits()
    evidence: Evidence = Evidence()  # what the later gates need of the pairs
    pairs: PairsConfig = PairsConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()


class CheckAlignmentStep(StepSection):
    """Configuration of check_alignment and check_safety."""

    validation: AlignmentLimits = AlignmentLimits()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()


class ExportStep(StepSection):
    """Configuration of export_model."""

    export: Export = Export(formats=["q8_0"])


class CheckExportStep(StepSection):
    """Configuration of check_export."""

    validation: AnswerLimits = AnswerLimits()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    export: Export = Export(formats=["q8_0"])


class PublishStep(StepSection):
    """Configuration of publish_model."""

    publish_root: str | None = None  # null: <storage_root>/published
    required_gates: list[str] = []  # step names; each must have passed in this run
    judged_gates: list[str] = []  # those of them whose subject["model"] is the published model
    save_intermediate: bool = True
    promote: bool = True  # promote_model follows, and removes the run's checkpoints if they are not to be kept
    upload_to_hub: bool = False
    hub_repo_id: str | None = None
    signing: SigningStep | None = None  # null: the model is not signed


class RegisterStep(StepSection):
    """Configuration of register_model."""

    registries: Servers  # to be asked, one after the other


class CheckChampionStep(StepSection):
    """Configuration of check_champion."""

    validation: ChampionLimits = ChampionLimits()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    publish_root: str | None = None  # null: <storage_root>/published


class PromoteStep(StepSection):
    """Configuration of promote_model."""

    publish_root: str | None = None  # null: <storage_root>/published
    save_intermediate: bool = True


class RejectStep(StepSection):
    """Configuration of the steps that fail a run for its gates."""

    pipeline_id: str | None = None
    notify: bool | None = None  # true: a webhook is told


class ReportStep(StepSection):
    """Configuration of report_run."""

    pipeline_id: str = "task-api-v1.0"
    steps: list[str] = []  # in the order of the graph
    notify: bool | None = None  # true: a webhook is told
