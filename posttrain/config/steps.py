"""What each step of the graph is given of the configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.limits import AlignmentLimits, DataLimits, Judging, MergeLimits, SftLimits
from posttrain.config.section import Count, Positive, Section
from posttrain.config.stages import DataConfig, DpoConfig, SftConfig, Stages, check_dealt

RUN_ID_ENV = "KFP_RUN_ID"  # on a cluster from the pod's label pipeline/runid, locally set by the runner
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a stage left before its end, and the next attempt goes on from there
FRESH_ENV = "POSTTRAIN_FRESH"  # 1: nothing of earlier runs is taken over


class Processes(Section):
    """How many train together; another number deals rows and dropout otherwise, and gives another result."""

    num_processes: Count = 1  # one per GPU


class SftTraining(SftConfig, Processes):
    """What decides the result of train_sft."""


class DpoTraining(DpoConfig, Processes):
    """What decides the result of train_dpo."""


class Training(Processes):
    """What a training stage needs beside its own settings."""

    checkpoint_every_n_steps: Count = 100
    checkpoint_every_n_minutes: Positive = 15
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    timeout_minutes: Count = 180  # the stage saves and leaves before that; its pod is given longer
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = []
    leave_at: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of its steps, after which it does the same


class StepSection(Section):
    """What every step is given."""

    allowed_prefixes: list[str] = ["/", "hf://"]

    @property
    def decisive(self) -> Section:
        """What of it decides what the step gives: part of the fingerprint."""
        return self


class PreflightStep(StepSection):
    """Configuration that preflight is given."""

    stages: Stages = Stages()
    data: DataConfig = DataConfig()
    validation: Judging = Judging()
    publish_root: str | None = None
    upload_to_hub: bool = False
    hub_repo_id: str | None = None
    num_gpus: dict[str, int] = {}  # step that can use a GPU -> those that its placement asks for

    @property
    def prefixes(self) -> list[str]:
        """As in `PipelineConfig`, which is looked at by the same code."""
        return self.allowed_prefixes


class FetchStep(StepSection):
    """Configuration that fetch_model is given."""


class PrepareStep(StepSection):
    """Configuration that prepare_data is given."""

    data: DataConfig = DataConfig()


class SftStep(StepSection):
    """Configuration that train_sft is given."""

    sft: SftConfig = SftConfig()
    training: Training = Training()

    @model_validator(mode="after")
    def _micro_batches_are_dealt(self):
        check_dealt(self.sft, self.training.num_processes, section="sft")
        return self

    @property
    def decisive(self) -> Section:
        return SftTraining(**self.sft.model_dump(), num_processes=self.training.num_processes)


class MergeStep(StepSection):
    """Configuration that merge_adapter is given."""


class DpoStep(StepSection):
    """Configuration that train_dpo is given."""

    dpo: DpoConfig = DpoConfig()
    training: Training = Training()

    @model_validator(mode="after")
    def _micro_batches_are_dealt(self):
        check_dealt(self.dpo, self.training.num_processes, section="dpo")
        return self

    @property
    def decisive(self) -> Section:
        return DpoTraining(**self.dpo.model_dump(), num_processes=self.training.num_processes)


class CheckDataStep(StepSection):
    """Configuration that the data gates are given; `sft` and `dpo` say what was asked of the stages."""

    validation: DataLimits = DataLimits()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()


class CheckSftStep(StepSection):
    """Configuration that check_sft is given."""

    validation: SftLimits = SftLimits()
    sft: SftConfig = SftConfig()


class CheckMergeStep(StepSection):
    """Configuration that the merge gates are given."""

    validation: MergeLimits = MergeLimits()


class CheckAlignmentStep(StepSection):
    """Configuration that check_alignment and check_safety are given."""

    validation: AlignmentLimits = AlignmentLimits()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()


class PublishStep(StepSection):
    """Configuration that publish_model is given."""

    publish_root: str | None = None  # null: <storage_root>/published
    required_gates: list[str] = []  # step names; each must have passed in this run
    judged_gates: list[str] = []  # those among them whose subject["model"] is the published model
    save_intermediate: bool = True
    upload_to_hub: bool = False
    hub_repo_id: str | None = None


class RejectStep(StepSection):
    """Configuration that reject is given."""


class ReportStep(StepSection):
    """Configuration that report_run is given."""

    pipeline_id: str = "task-api-v1.0"
    steps: list[str] = []  # in the order of the graph


STEP_SECTIONS: dict[str, type[StepSection]] = {
    "preflight": PreflightStep,
    "fetch_model": FetchStep,
    "prepare_data": PrepareStep,
    "check_data": CheckDataStep,
    "check_sft_data": CheckDataStep,
    "check_preference_data": CheckDataStep,
    "train_sft": SftStep,
    "check_sft": CheckSftStep,
    "merge_adapter": MergeStep,
    "check_merge": CheckMergeStep,
    "train_dpo": DpoStep,
    "check_alignment": CheckAlignmentStep,
    "check_preference_alignment": CheckAlignmentStep,
    "check_safety": CheckAlignmentStep,
    "publish_model": PublishStep,
    "reject": RejectStep,
    "report_run": ReportStep,
}
