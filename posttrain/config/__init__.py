"""Typed configuration: YAML files and `--set` values -> one `PipelineConfig`, and the section that each step gets.

The graph (which has no torch) and the images (which have no kfp) both import this room and nothing else of each other:
pydantic and YAML, nothing heavier. Every default stands here once. Bad input is one `ValueError` that names file, key,
value and remedy.
"""

from posttrain.config.limits import (
    BUILT_IN_CHECKS,
    CUSTOM_CHECK,
    AlignmentLimits,
    AnswerLimits,
    DataLimits,
    Judging,
    Limits,
    MergeLimits,
    OutputFormat,
    PromptFiles,
    SftLimits,
    Validation,
)
from posttrain.config.load import (
    MAX_RUN_PARAMETERS_BYTES,
    OTHER_NAMES,
    OVERRIDABLE,
    check_overrides,
    check_run_parameters,
    load_config,
    merged,
    parse_step,
    read_section,
)
from posttrain.config.pipeline import PipelineConfig
from posttrain.config.section import Section
from posttrain.config.stages import (
    DataConfig,
    DpoConfig,
    DpoStage,
    LoraTraining,
    MergeStage,
    SftConfig,
    SftStage,
    Stage,
    Stages,
    check_dealt,
)
from posttrain.config.steps import (
    EXIT_AGAIN,
    FRESH_ENV,
    RUN_ID_ENV,
    STEP_SECTIONS,
    CheckAlignmentStep,
    CheckDataStep,
    CheckMergeStep,
    CheckSftStep,
    DpoStep,
    DpoTraining,
    FetchStep,
    MergeStep,
    PreflightStep,
    PrepareStep,
    Processes,
    PublishStep,
    RejectStep,
    ReportStep,
    SftStep,
    SftTraining,
    StepSection,
    Training,
)

__all__ = [
    "AlignmentLimits", "AnswerLimits", "BUILT_IN_CHECKS", "CUSTOM_CHECK", "CheckAlignmentStep", "CheckDataStep",
    "CheckMergeStep", "CheckSftStep", "DataConfig", "DataLimits", "DpoConfig", "DpoStage", "DpoStep", "DpoTraining",
    "EXIT_AGAIN", "FRESH_ENV", "FetchStep", "Judging", "Limits", "LoraTraining", "MAX_RUN_PARAMETERS_BYTES",
    "MergeLimits", "MergeStage", "MergeStep", "OTHER_NAMES", "OVERRIDABLE", "OutputFormat", "PipelineConfig",
    "PreflightStep", "PrepareStep", "Processes", "PromptFiles", "PublishStep", "RUN_ID_ENV", "RejectStep",
    "ReportStep", "STEP_SECTIONS", "Section", "SftConfig", "SftLimits", "SftStage", "SftStep", "SftTraining", "Stage",
    "Stages", "StepSection", "Training", "Validation", "check_dealt", "check_overrides", "check_run_parameters",
    "load_config", "merged", "parse_step", "read_section",
]  # fmt: skip
