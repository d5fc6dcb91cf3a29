"""Settings of a sweep: configs/sweep_config.yaml -> `SweepConfig`, and the part of it that each of its steps gets."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.limits import Validation
from posttrain.config.metrics import check_known
from posttrain.config.parse import OVERRIDABLE, check_overrides, read_section
from posttrain.config.section import Count, Section
from posttrain.config.stages import DataConfig, Stages
from posttrain.config.steps import StepSection

MAX_TRIALS = 200

Number = int | float
Settings = dict[str, Any]  # `sft.learning_rate` -> its value in one trial


def nested(settings: Settings) -> dict[str, dict[str, Any]]:
    """Turns `{"sft.lora_r": 8}` into the overrides of a run: `{"sft": {"lora_r": 8}}`."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


class Range(Section):
    """Numbers from min to max, whole ones if both are whole."""

    min: Number  # smallest value
    max: Number  # largest value
    log: bool = False  # draw or space the values by their logarithm
    num: Annotated[int, Field(ge=2)] | None = None  # number of values in a grid, both ends included

    @model_validator(mode="after")
    def _is_a_range(self):
        if not self.min < self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}: swap them, or give a list of one value")
        if self.log and not self.min > 0:
            raise ValueError(f"log needs a min above 0, but it is {self.min}")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.min, int) and isinstance(self.max, int)

    def at(self, share: float) -> Number:
        """Returns the value at this share of the way from min to max."""
        if self.log:
            low, high = math.log(self.min), math.log(self.max)
            value = math.exp(low + share * (high - low))
        else:
            value = self.min + share * (self.max - self.min)
        value = min(max(value, self.min), self.max)  # exp and log round
        return round(value) if self.is_whole else float(f"{value:.4g}") if 0 < share < 1 else value

    def spaced(self) -> list[Number]:
        """Returns the values of a grid."""
        return list(dict.fromkeys(self.at(step / (self.num - 1)) for step in range(self.num)))


class Objective(Section):
    """The number by which trials are compared. A gate measures it: a training loss says little about answers."""

    # gate that measures the metric; a trial ends with it
    gate: Literal["check_sft", "check_safety", "check_alignment"] = "check_sft"
    metric: str = "held_out_loss"  # one of its checks, or of the other numbers in its verdict
    direction: Literal["minimize", "maximize"] = "minimize"  # whether a lower or a higher value is better

    @property
    def name(self) -> str:
        """The name of the measure, as a candidate has it."""
        return f"{self.gate}.{self.metric}"

    @property
    def sign(self) -> int:
        """The factor that makes smaller values better."""
        return 1 if self.direction == "minimize" else -1


class Constraint(Section):
    """A bound on a metric that a trial must keep, in addition to passing its gates."""

    gate: str = "check_sft"  # gate that measures the metric
    metric: str  # one of its checks, or of the other numbers in its verdict
    min: float | None = None  # lower bound
    max: float | None = None  # upper bound

    @model_validator(mode="after")
    def _bounds(self):
        if self.min is None and self.max is None:
            raise ValueError(f"{self.name} has no bound: give min, max or both")
        return self

    @property
    def name(self) -> str:
        """The name of the measure, as a candidate has it."""
        return f"{self.gate}.{self.metric}"

    @property
    def sentence(self) -> str:
        bounds = {"at least": self.min, "at most": self.max}
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        return f"{self.name} is not {' and '.join(words)}"


def default_objective(stages: Stages, validation: Validation) -> Objective:
    """Returns the objective of a sweep that sets none: right answers, where a matcher or a judge tells which are."""
    gate = "check_sft" if stages.sft.enabled else "check_alignment"
    if validation.answer_match != "none":
        return Objective(gate=gate, metric="answer_correct", direction="maximize")
    return Objective() if stages.sft.enabled else Objective(gate=gate, metric="preference_shift", direction="maximize")


class Halving(Section):
    """Successive halving (arXiv:1502.07943): all trials train a little, the best go on, and so forth."""

    # one trial in this many goes on, and trains this many times longer
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    num_rungs: Annotated[int, Field(ge=2)] = 2  # number of rungs; the last is the whole training


class Rung(Section):
    """One round of a sweep."""

    number: Annotated[int, Field(ge=0)]
    share: Annotated[float, Field(gt=0, le=1)]  # share of the optimizer steps of a trial's last training
    num_trials: Count


class SweepConfig(Section):
    """The settings of a sweep."""

    space: dict[str, Range | list[Any]]  # setting of sft or dpo -> the values to try
    # how values are chosen; tpe learns from earlier trials (optuna)
    sampler: Literal["grid", "random", "tpe"] = "grid"
    # number of trials; null: every combination of a grid
    num_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0  # seed of the sampler; a training's own is sft.seed or dpo.seed
    parallelism: Count = 1  # trials that run at once
    # unless set: answer_correct where answers are compared with references, else held_out_loss or preference_shift
    objective: Objective = Objective()
    constraints: list[Constraint] = []  # bounds that a trial must keep, in addition to passing its gates
    halving: Halving | None = None  # null: every trial trains to its end
    unseen_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5  # share of held-out prompts kept to judge the winner
    continue_with_best: bool = True  # run the rest of the pipeline with the winner's settings

    @classmethod
    def read(cls, path: str | Path) -> "SweepConfig":
        """Reads the settings from a YAML file.

        Raises:
            ValueError: on one line that names file, key, value and remedy.
        """
        return read_section(cls, path)

    @field_validator("space")
    @classmethod
    def _settings_exist(cls, space):
        if not space:
            raise ValueError("is empty: give settings such as sft.learning_rate: [1.0e-4, 2.0e-4]")
        for name, values in space.items():
            section, _, key = name.partition(".")
            if section not in OVERRIDABLE or key not in OVERRIDABLE[section].model_fields:
                raise ValueError(f"{name!r} is not a setting of {' or '.join(OVERRIDABLE)}: give one like sft.lora_r")
            if values == []:
                raise ValueError(f"{name} has no values: give at least one")
            for value in [values.min, values.max] if isinstance(values, Range) else values:
                check_overrides({section: {key: value}})
        return space

    @model_validator(mode="after")
    def _metrics_exist(self):
        check_known(self.objective.gate, self.objective.metric, key="objective")
        for at, constraint in enumerate(self.constraints):
            check_known(constraint.gate, constraint.metric, key=f"constraints[{at}]")
        return self

    @model_validator(mode="after")
    def _objective_compares(self):
        if "dpo.beta" in self.space and self.objective.metric == "reward_margin":
            raise ValueError(
                "objective reward_margin is beta times a shift, so that a larger dpo.beta always wins: "
                "use preference_shift or reward_accuracy"
            )
        return self

    @model_validator(mode="after")
    def _trials_can_be_chosen(self):
        if self.sampler == "grid":
            spaceless = [name for name, values in self.space.items() if isinstance(values, Range) and not values.num]
            if spaceless:
                raise ValueError(f"sampler grid: {spaceless[0]} is a range: give num, the number of its values")
            size = math.prod(len(values) for values in self.choices.values())
            if self.num_trials not in (None, size) or size > MAX_TRIALS:
                raise ValueError(
                    f"sampler grid: the space has {size} trials, num_trials is {self.num_trials} and at most "
                    f"{MAX_TRIALS}: remove num_trials and shorten the lists, or use sampler random"
                )
        elif self.num_trials is None:
            raise ValueError(f"sampler {self.sampler} needs num_trials")
        if self.rungs[-1].num_trials < 1:
            number = len(self.trials)
            raise ValueError(f"halving leaves none of {number} trials for its last rung: fewer rungs, or more trials")
        return self

    def for_line(self, stages: Stages, validation: Validation) -> "SweepConfig":
        """Returns the sweep with the objective that suits a line, if none was set."""
        if "objective" in self.model_fields_set:
            return self
        return self.model_copy(update={"objective": default_objective(stages, validation)})

    @property
    def choices(self) -> dict[str, list[Any]]:
        """The values of a grid."""
        return {name: values.spaced() if isinstance(values, Range) else values for name, values in self.space.items()}

    @property
    def trials(self) -> list[str]:
        """The names of the trials, which are those of their steps."""
        number = self.num_trials or math.prod(len(values) for values in self.choices.values())
        return [f"trial_{at:0{len(str(number))}}" for at in range(1, number + 1)]

    @property
    def rungs(self) -> list[Rung]:
        """The rounds of the sweep; without halving there is one."""
        factor, number = (self.halving.reduction_factor, self.halving.num_rungs) if self.halving else (1, 1)
        return [
            Rung.model_construct(
                number=at, share=factor ** -(number - 1 - at), num_trials=len(self.trials) // factor**at
            )
            for at in range(number)
        ]

    @property
    def all_slots(self) -> list[str]:
        """The names of all steps that are trials in a loop."""
        return [slot for rung in self.rungs for slot in self.slots(rung)]

    def slots(self, rung: Rung) -> list[str]:
        """Returns the names of a rung's steps: on the first rung the trials, later their ranks on the rung before."""
        if rung.number == 0:
            return self.trials
        return [f"rung_{rung.number + 1}_rank_{rank}" for rank in range(1, rung.num_trials + 1)]

    def workers(self, rung: Rung) -> list[str]:
        """Returns the names of the steps that share the slots of a rung on a cluster, as many as may run at once."""
        number = min(self.parallelism, rung.num_trials)
        return [f"rung_{rung.number + 1}_worker_{at}" for at in range(1, number + 1)]

    def shared_slots(self, step: str) -> list[str]:
        """Returns the slots of a rung if this step is one of its workers."""
        return next((self.slots(rung) for rung in self.rungs if step in self.workers(rung)), [])

    def rung_of(self, slot: str) -> Rung | None:
        """Returns the rung that a step belongs to; None for judge_winner."""
        return next((rung for rung in self.rungs if slot in self.slots(rung)), None)


class Command(Section):
    """A step of the line as a trial runs it: `python -m <module>`, with a flag for each input and output."""

    step: str
    module: str
    config: dict[str, Any]
    inputs: dict[str, str]  # flag -> `<step>.<output>` that it takes
    outputs: list[str]
    seconds: Annotated[int, Field(ge=0)] = 0  # after which it is ended; 0: no limit

    @property
    def is_gate(self) -> bool:
        return "passed" in self.outputs

    @property
    def is_training(self) -> bool:
        return "training" in self.config


class HoldOutStep(StepSection):
    """Configuration of hold_out."""

    data: DataConfig = DataConfig()
    unseen_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5


class TrialStep(StepSection):
    """Configuration of a trial. All trials of a sweep have the same, and find each other by its fingerprint."""

    sweep: SweepConfig
    commands: list[Command]
    num_gpus: Annotated[int, Field(ge=0)] = 0  # GPUs of a trial
    overrides: dict[str, Any] = {}  # of the run; a trial's settings come on top

    @property
    def decisive(self) -> Section:
        """All but the number of trials at once, their time limits and what follows them."""
        defaults = {name: SweepConfig.model_fields[name].default for name in ("parallelism", "continue_with_best")}
        commands = [command.model_copy(update={"seconds": 0}) for command in self.commands]
        sweep = self.sweep.model_copy(update=defaults)
        return self.model_copy(update={"sweep": sweep, "commands": commands, "num_gpus": 0})


class CompareStep(StepSection):
    """Configuration of compare_trials."""

    sweep: SweepConfig
    pipeline: dict[str, Any]  # the resolved configuration of the line
    rung: Annotated[int, Field(ge=0)] = 0
