"""The sweep: many trials of the line's training stages side by side, the best of them, and the line with its settings.

preflight -> fetch + data, the data gate -> a loop of trials -> compare -> the winner on unseen rows -> the line

A pipeline of its own, because a loop inside an exit handler fails when the run starts. The loop is over workers, as
many as may run at once, each of which takes the next trial until none is left: however many trials there are, the
Workflow that Argo keeps has the same size. A trial runs the line's own steps as child processes, so that whatever ends
one of them becomes a row of the table: a failed iteration would cancel its siblings. It chooses its settings when it
starts, by the results that the others have left in storage. With successive halving each rung is a loop.
"""

import math
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp.dsl.pipeline_channel import PipelineChannel

import components as do
from pipelines.package import Package, Task
from pipelines.post_training import Inputs, Rows, fetch_and_check, post_training, train_and_publish
from pipelines.steps import Steps, step_names
from posttrain.config import PipelineConfig
from posttrain.config.line import COMPARE_TRIALS, JUDGE_WINNER, SWEEP, TRIAL_COMPONENTS, WINNER_COMPONENTS, is_gate
from posttrain.config.metrics import check_measured
from posttrain.config.requirements import evidence_of_sweep
from posttrain.config.sweep import Command, CompareStep, HoldOutStep, Rung, SweepConfig, TrialStep


def sweep(config: PipelineConfig, settings: SweepConfig, *, by_trial: bool = False):
    """Returns the graph of a sweep over a line. `by_trial`: its loops have an iteration for each trial, not worker."""
    commands = trial_commands(config, until=settings.objective.gate)
    gates = [command.step for command in commands if command.is_gate]
    check_measured(config.stages, config.validation, settings, gates)

    limits = dsl.PipelineConfig()

    @dsl.pipeline(
        name="sweep",
        description=f"{config.pipeline_id}: trials, their table, the line with the best",
        pipeline_config=limits,
    )
    def sweep(
        base_model: str = config.base_model,
        sft_dataset: str = config.sft_dataset,
        preference_dataset: str = config.preference_dataset,
        storage_root: str = config.storage_root,
        model_name: str = config.model_name or config.pipeline_id,
        overrides: dict = {},  # noqa: B006 (a pipeline's default, compiled into the YAML)
    ):
        needed = evidence_of_sweep(config, settings)
        steps = Steps(config, evidence=needed, storage_root=storage_root, overrides=overrides)
        named = {"base_model": base_model, "sft_dataset": sft_dataset, "preference_dataset": preference_dataset}
        with ExitStack() as line:
            inputs = fetch_and_check(steps, line, **named, model_name=model_name)
            selection, unseen = split_held_out(steps, settings, inputs)
            trials = Trials(steps, settings, commands, by_trial)
            compared = None
            for rung in settings.rungs:
                rows = trials.loop(rung, selection, after=compared)
                compared = compare(steps, settings, rung, rows=rows, model_name=model_name, **named)
            best = compared.outputs["best"]
            judged = trials.run(JUDGE_WINNER, unseen, overrides=best)
            if settings.continue_with_best:
                going_on = steps.going_on(overrides=best)
                train_and_publish(going_on, line, unseen, model_name=model_name, after=(judged,))
        steps.finish()
        limits.active_deadline_seconds = steps.deadline_seconds

    return sweep


def sweep_steps(config: PipelineConfig, settings: SweepConfig) -> list[str]:
    """Returns the names of the steps of a sweep that finds a winner, in the order of the graph."""
    names = step_names(config)
    start, line = _parted(names, behind=_data_gate(names))
    parts = [step.name for step in SWEEP if step.section is HoldOutStep and step.is_in(config.stages)]
    rungs = [name for rung in settings.rungs for name in (*settings.slots(rung), _compare_name(settings, rung))]
    return [*start, *parts, *rungs, JUDGE_WINNER, *(line if settings.continue_with_best else [])]


def trial_commands(config: PipelineConfig, *, until: str) -> list[Command]:
    """Returns the line's steps between the data gate and this gate, as its own graph has them.

    Raises:
        ValueError: the line has no such gate.
    """
    names = step_names(config)
    if until not in names:
        gates = ", ".join(filter(is_gate, _parted(names, behind=_data_gate(names))[1]))
        raise ValueError(f"objective.gate {until} is not in this line: give one of {gates}")
    wanted = _parted(_parted(names, behind=_data_gate(names))[1], behind=until)[0]
    with tempfile.TemporaryDirectory() as folder:
        compiler.Compiler().compile(post_training(config), str(Path(folder, "line.yaml")))
        package = Package.read(Path(folder, "line.yaml"))
    steps = {step.name: step for step in package.steps}
    made_by = {
        f"{step.key}-{output}": f"{step.name}.{output}"
        for step in steps.values()
        for output in step.declared("outputs", "artifacts")
    }
    return [_command(steps[name], package.settings_of(steps[name]), made_by) for name in wanted]


def _command(step: Task, config: dict[str, Any], made_by: dict[str, str]) -> Command:
    """Returns a step of the graph as a trial runs it."""
    inputs = {}
    for name, origin in step.given("artifacts").items():
        if "taskOutputArtifact" in origin:
            source = origin["taskOutputArtifact"]
            inputs[name] = made_by[f"{source['producerTask']}-{source['outputArtifactKey']}"]
        else:
            inputs[name] = made_by[origin["componentInputArtifact"].removeprefix("pipelinechannel--")]
    outputs = [*step.declared("outputs", "artifacts"), *step.declared("outputs", "parameters")]
    module = step.container["command"][-1]
    return Command(step=step.name, module=module, config=config, inputs=inputs, outputs=sorted(outputs))


def split_held_out(steps: Steps, settings: SweepConfig, inputs: Inputs) -> tuple[Inputs, Inputs]:
    """Returns the inputs of the trials and of the line behind them, which differ in the rows that gates judge on."""

    def split(kind: str, rows: Rows | None) -> tuple[Rows | None, Rows | None]:
        if rows is None:
            return None, None
        config = HoldOutStep(
            allowed_prefixes=steps.config.prefixes, data=steps.config.data, unseen_fraction=settings.unseen_fraction
        ).model_dump(mode="json", exclude_none=True)
        parts = steps.run(do.hold_out, f"hold_out_{kind}", config=config, eval=rows.eval).outputs
        selection = replace(rows, eval=parts["selection"], judged=parts["selection"])
        return selection, replace(selection, judged=parts["unseen"])

    (sft, unseen_sft), (pairs, unseen_pairs) = split("sft", inputs.sft), split("preferences", inputs.preferences)
    return replace(inputs, sft=sft, preferences=pairs), replace(inputs, sft=unseen_sft, preferences=unseen_pairs)


class Trials:
    """Adds the trials of a sweep to its graph while it is written."""

    def __init__(self, steps: Steps, settings: SweepConfig, commands: list[Command], by_trial: bool):
        self.steps, self.settings, self.commands, self.by_trial = steps, settings, commands, by_trial
        self.trainings = [command.step for command in commands if command.is_training]
        if not by_trial:  # a step that hangs must not take the time of the other trials
            limits = {command.step: steps.attempt_minutes(command.step) * 60 for command in commands}
            self.commands = [one.model_copy(update={"seconds": limits[one.step]}) for one in commands]

    def loop(self, rung: Rung, inputs: Inputs, *, after: dsl.PipelineTask | None) -> dsl.Collected:
        """Adds the trials of a rung, after the comparison of the rung before; returns URIs of results."""
        steps = self.settings.slots(rung) if self.by_trial else self.settings.workers(rung)
        # A worker takes another trial at most until all of them have been taken, and perhaps that of one that was lost.
        num_trials = 1 if self.by_trial else math.ceil(rung.num_trials / len(steps)) + 2
        with dsl.ParallelFor(steps, name=f"rung-{rung.number + 1}", parallelism=self.settings.parallelism) as step:
            trials = self.run(f"trials_of_rung_{rung.number + 1}", inputs, step=step, num_trials=num_trials)
            if after:
                trials.after(after)
        return dsl.Collected(trials.outputs["rows"])

    def run(self, name: str, inputs: Inputs, *, num_trials: int = 1, **arguments) -> dsl.PipelineTask:
        """Adds trials, placed like their last training, with the time of all its steps, unless it says otherwise."""
        placements, training = self.steps.config.placement, self.trainings[-1]
        placement, own = placements.of(name, like=training), placements.own(name)
        section = TrialStep(
            allowed_prefixes=self.steps.config.prefixes,
            sweep=self.settings,
            commands=self.commands,
            num_gpus=placement.accelerator_count,
        )
        rows = {"sft": inputs.sft, "preference": inputs.preferences}
        files = {
            f"{kind}_{part}": getattr(data_set, part)
            for kind, data_set in rows.items()
            if data_set
            for part in ("train", "eval", *(["judged"] if name == JUDGE_WINNER else []))
        }
        config = section.model_dump(mode="json", exclude_none=True)
        trial = self.steps.add(self._component(name), name, config=config, base=inputs.model, **files, **arguments)
        minutes = own.timeout_minutes or sum(self.steps.attempt_minutes(command.step) for command in self.commands)
        retries = self.steps.retry_count(training) if own.retry_count is None else own.retry_count
        self.steps.place(trial, placement, minutes * num_trials, retries)
        return trial

    def _component(self, name: str):
        both, sft_only, dpo_only = WINNER_COMPONENTS if name == JUDGE_WINNER else TRIAL_COMPONENTS
        sft, dpo = self.steps.has("sft", "dpo")
        return getattr(do, both if sft and dpo else sft_only if sft else dpo_only)


def compare(
    steps: Steps, settings: SweepConfig, rung: Rung, *, rows: dsl.Collected, **named: PipelineChannel
) -> dsl.PipelineTask:
    """Adds the comparison of a rung's trials."""
    pipeline = steps.config.model_dump(mode="json", exclude_none=True)
    for stage in pipeline["stages"].values():
        stage.pop("config_path", None)  # its settings stand here
    pipeline["validation"]["output_format"].pop("schema_path", None)
    section = CompareStep(
        allowed_prefixes=steps.config.prefixes, sweep=settings, pipeline=pipeline, rung=rung.number
    ).model_dump(mode="json", exclude_none=True)
    return steps.run(do.compare_trials, _compare_name(settings, rung), config=section, rows=rows, **named)


def _compare_name(settings: SweepConfig, rung: Rung) -> str:
    return COMPARE_TRIALS if rung.share == 1 else f"compare_rung_{rung.number + 1}"


def _data_gate(names: list[str]) -> str:
    return next(filter(is_gate, names))


def _parted(names: list[str], *, behind: str) -> tuple[list[str], list[str]]:
    """Splits a list behind a name."""
    at = names.index(behind) + 1
    return names[:at], names[at:]
