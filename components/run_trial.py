"""run_trials: trials of a sweep, one after another; judge_winner: the best of them once more, on unseen rows.

Each has variants for pipelines that train one stage. judge_winner judges on other rows than it trains with: a task
cannot get one artifact under two names.
"""

from kfp.dsl import Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container, without


@container_component
def run_trials(
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
    rows: OutputPath(list),
):
    """Runs one trial after another, each up to the objective's gate; a step that fails is a result, not an error."""
    return container("posttrain.sweep.trial", "train", **locals())


@without(run_trials, "preference_train", "preference_eval")
def run_sft_trials():
    """Runs trials of a pipeline without DPO."""


@without(run_trials, "sft_train", "sft_eval")
def run_preference_trials():
    """Runs trials of a pipeline without SFT."""


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


@without(judge_winner, "preference_train", "preference_eval", "preference_judged")
def judge_sft_winner():
    """Judges the winner of a pipeline without DPO."""


@without(judge_winner, "sft_train", "sft_eval", "sft_judged")
def judge_preference_winner():
    """Judges the winner of a pipeline without SFT."""
