"""run_trial: one trial of a sweep; run_sft_trial and run_preference_trial for pipelines that train one stage.

judge_winner and its variants judge on other rows than they train with: a task cannot get one artifact under two names.
"""

from kfp.dsl import Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container


@container_component
def run_trial(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs the steps up to the objective's gate with the trial's settings; a failing step is a result, not an error."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def run_sft_trial(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs one trial of a pipeline without DPO."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def run_preference_trial(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs one trial of a pipeline without SFT."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def judge_winner(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    sft_judged: Input[Dataset],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    preference_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs a trial with the winner's settings, and judges it on rows that chose among no trials."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def judge_sft_winner(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    sft_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Judges the winner of a pipeline without DPO."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def judge_preference_winner(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    preference_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Judges the winner of a pipeline without SFT."""
    return container("posttrain.sweep.trial", "train", **locals())
