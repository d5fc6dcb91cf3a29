"""The steps of the line and of a sweep: one row for each, which says what it is.

Whatever else has to know about a step asks this table: the graph, its placement, the report, the launcher. Some rows
stand for several steps of a graph, as many as its configuration asks for: trials, their comparisons, rejections.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from posttrain.config.stages import Stages
from posttrain.config.steps import (
    CheckAlignmentStep,
    CheckChampionStep,
    CheckDataStep,
    CheckExportStep,
    CheckMergeStep,
    CheckPairsStep,
    CheckSftStep,
    DpoStep,
    ExportStep,
    PreflightStep,
    PrepareStep,
    PromoteStep,
    PublishStep,
    RegisterStep,
    RejectStep,
    ReportStep,
    SamplePairsStep,
    SftStep,
    StepSection,
)
from posttrain.config.sweep import CompareStep, HoldOutStep, TrialStep

Kind = Literal["gate", "training", "merge", "trial", "rejection", "other"]
REJECTION = "reject_"  # comes before the name of the gate, in place of `check_`
GATE = "check_"
PREFLIGHT, PUBLISH, REPORT = "preflight", "publish_model", "report_run"
REGISTER = "register_model"
CHAMPION, PROMOTE = "check_champion", "promote_model"
EXPORT_GATE = "check_export"
SAMPLING, SAMPLING_GATE = "sample_pairs", "check_pairs"
JUDGE_WINNER, COMPARE_TRIALS, TRIALS = "judge_winner", "compare_trials", "trials"
LAUNCH = "posttrain.nodes.launch"  # the module of a training on several nodes, in place of its own
WORKER = "posttrain.nodes.worker"  # the module of each of its ranks
SELECTION = "validators.selection"  # the module that judges the checkpoints of a training which keeps the best
TRIAL_COMPONENTS = ("run_trials", "run_sft_trials", "run_preference_trials")
WINNER_COMPONENTS = ("judge_winner", "judge_sft_winner", "judge_preference_winner")


@dataclass(frozen=True)
class Step:
    """A row of the table."""

    name: str
    module: str  # started as `python -m <module>`
    section: type[StepSection]  # its part of the configuration
    kind: Kind = "other"
    stage: Literal["sft", "merge", "pairs", "dpo"] | None = None  # the stage that it belongs to, or that a gate judges
    needs: tuple[str, ...] = ()  # stages that are on in every graph with this step, or brought_pairs
    excludes: tuple[str, ...] = ()  # stages that are off in every graph with this step, or brought_pairs
    promotes: bool = False  # only in graphs that make the published model current
    section_set: str | None = None  # only in graphs whose configuration has this optional section
    pool: Literal["cpu", "gpu"] = "cpu"  # whose placement it has
    placed_like: str | None = None  # the step whose placement it has, instead of a pool's
    loads_model: bool = False  # has torch in its image: a GPU is of use to it
    reads: str | None = None  # the run's parameter that is the address of what it takes in from outside
    is_retried: bool = True  # off: another attempt would end as the first
    is_quick: bool = False  # its work takes seconds
    components: tuple[str, ...] = ()  # one for each shape of the line; empty: one of the step's name
    also: str = ""  # regular expression for the names of the steps that it stands for, beside its own

    def is_in(self, stages: Stages, *, promote: bool = True, sections: Collection[str] = ()) -> bool:
        """Tells whether the graph with these stages has the step.

        Args:
            promote: the graph makes its model current.
            sections: optional sections of the configuration that are set.
        """
        if (self.promotes and not promote) or (self.section_set and self.section_set not in sections):
            return False
        return all(map(stages.has, self.needs)) and not any(map(stages.has, self.excludes))

    def covers(self, name: str) -> bool:
        """Tells whether the row is that of the step with this name."""
        return name == self.name or bool(self.also and re.fullmatch(self.also, name))


# In the order of the graph. preflight must see what fetch_model will see: the same node, the same secrets.
LINE = (
    Step(PREFLIGHT, "posttrain.preflight", PreflightStep, placed_like="fetch_model", is_retried=False,
         is_quick=True),
    Step("fetch_model", "posttrain.model", StepSection, reads="base_model"),
    Step("prepare_sft_data", "posttrain.data", PrepareStep, needs=("sft",),
         reads="sft_dataset", components=("prepare_data", "prepare_data_with_references")),
    Step("prepare_preferences", "posttrain.data", PrepareStep, needs=("brought_pairs",),
         reads="preference_dataset", components=("prepare_data",)),
    Step("check_data", "validators.data", CheckDataStep, "gate", needs=("sft", "brought_pairs")),
    Step("check_sft_data", "validators.data", CheckDataStep, "gate", needs=("sft",), excludes=("brought_pairs",)),
    Step("check_preference_data", "validators.data", CheckDataStep, "gate", needs=("dpo",), excludes=("sft",)),
    Step("train_sft", "posttrain.sft", SftStep, "training", "sft", needs=("sft",), pool="gpu", loads_model=True),
    Step("check_sft", "validators.sft", CheckSftStep, "gate", "sft", needs=("sft",), pool="gpu", loads_model=True),
    Step("merge_sft", "posttrain.merge", StepSection, "merge", "merge", needs=("sft", "merge"),
         components=("merge_adapter",)),
    Step("check_sft_merge", "validators.merge", CheckMergeStep, "gate", "merge", needs=("sft", "merge"),
         loads_model=True, components=("check_merge",)),
    Step("check_safety", "validators.alignment", CheckAlignmentStep, "gate", "sft",
         needs=("sft", "merge"), excludes=("dpo",), pool="gpu", loads_model=True),
    Step(SAMPLING, "validators.sampling", SamplePairsStep, stage="pairs", needs=("pairs",), pool="gpu",
         loads_model=True, components=("sample_pairs", "sample_pairs_alone")),
    Step(SAMPLING_GATE, "validators.pairs", CheckPairsStep, "gate", "pairs", needs=("pairs",)),
    Step("train_dpo", "posttrain.dpo", DpoStep, "training", "dpo", needs=("dpo",), pool="gpu", loads_model=True),
    Step("merge_dpo", "posttrain.merge", StepSection, "merge", "merge", needs=("dpo",),
         components=("merge_adapter",)),
    Step("check_dpo_merge", "validators.merge", CheckMergeStep, "gate", "merge", needs=("dpo",),
         loads_model=True, components=("check_merge",)),
    Step("check_alignment", "validators.alignment", CheckAlignmentStep, "gate", "dpo", needs=("dpo",),
         pool="gpu", loads_model=True, components=("check_alignment", "check_preference_alignment")),
    Step("export_model", "posttrain.serving.export", ExportStep, section_set="export"),
    Step(EXPORT_GATE, "validators.export", CheckExportStep, "gate", section_set="export", pool="gpu", loads_model=True,
         components=("check_export", "check_sft_export", "check_preference_export")),
    Step(PUBLISH, "posttrain.publish", PublishStep, components=("publish_model", "publish_exported_model")),
    Step(REGISTER, "posttrain.registries.register_model", RegisterStep, section_set="registries"),
    Step(CHAMPION, "validators.champion", CheckChampionStep, "gate", promotes=True, pool="gpu",
         loads_model=True, components=(
             "check_champion", "check_sft_champion", "check_preference_champion", "check_adapter_champion")),
    Step(PROMOTE, "posttrain.make_current", PromoteStep, promotes=True),
)  # fmt: skip
# Those that a promoted run has not, or has whatever its end.
ENDS = (
    Step(
        "reject",
        "posttrain.reject",
        RejectStep,
        "rejection",
        is_retried=False,
        is_quick=True,
        also=f"{REJECTION}.+",
        components=("reject", "reject_and_tell"),
    ),
    Step(REPORT, "posttrain.report", ReportStep, is_retried=False, is_quick=True),  # a hook: kfp refuses to retry it
)
# Trials are placed like the last training that they run.
SWEEP = (
    Step("hold_out_sft", "posttrain.sweep.hold_out", HoldOutStep, needs=("sft",), components=("hold_out",)),
    Step("hold_out_preferences", "posttrain.sweep.hold_out", HoldOutStep, needs=("dpo",), components=("hold_out",)),
    Step(TRIALS, "posttrain.sweep.trial", TrialStep, "trial", pool="gpu", loads_model=True,
         components=TRIAL_COMPONENTS, also=r"trial_\d+|rung_\d+_(rank|worker)_\d+|trials_of_rung_\d+"),
    Step(COMPARE_TRIALS, "posttrain.sweep.compare", CompareStep, also=r"compare_rung_\d+"),
    Step(JUDGE_WINNER, "posttrain.sweep.trial", TrialStep, "trial", pool="gpu", loads_model=True,
         components=WINNER_COMPONENTS),
)  # fmt: skip
STEPS = {step.name: step for step in (*LINE, *ENDS, *SWEEP)}
TRAININGS = {step.name: step.stage for step in LINE if step.kind == "training"}  # step -> section of its settings


def find_step(name: str) -> Step | None:
    """Returns the row of the step with this name, if there is one."""
    return STEPS.get(name) or next((step for step in STEPS.values() if step.covers(name)), None)


def step_of(name: str) -> Step:
    """Returns the row of the step with this name.

    Raises:
        ValueError: there is none.
    """
    if step := find_step(name):
        return step
    raise ValueError(f"{name}: {no_such_step(name)}")


def no_such_step(name: str) -> str:
    """Says that a name is in no row, and which one is near."""
    near = get_close_matches(name, STEPS, n=1)
    return "no such step; " + (f"did you mean {near[0]}?" if near else f"known are: {', '.join(STEPS)}")


def is_gate(name: str) -> bool:
    """Tells whether the step with this name gives a verdict."""
    return (step := find_step(name)) is not None and step.kind == "gate"


def is_rejection(name: str) -> bool:
    """Tells whether the step with this name fails on purpose; the verdict before it says why."""
    return (step := find_step(name)) is not None and step.kind == "rejection"


def loads_model(name: str) -> bool:
    """Tells whether a GPU is of use to the step with this name."""
    return (step := find_step(name)) is not None and step.loads_model


def gate_of(rejection: str) -> str:
    """Returns the gate whose verdict makes this step fail."""
    return GATE + rejection.removeprefix(REJECTION)
