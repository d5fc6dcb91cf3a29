"""run_trial: one trial of a sweep; run_sft_trial and run_preference_trial: the same in a line of one stage."""

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
    sft_judged: Input[Dataset],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    preference_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs the steps of the line with the trial's settings, as far as the objective's gate; never fails by them."""
    return container(
        "posttrain.sweep.trial",
        "train",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        base=base.path,
        sft_train=sft_train.path,
        sft_eval=sft_eval.path,
        sft_judged=sft_judged.path,
        preference_train=preference_train.path,
        preference_eval=preference_eval.path,
        preference_judged=preference_judged.path,
        summary=summary.path,
        metrics=metrics.path,
        row=row,
    )


@container_component
def run_sft_trial(
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
    """The same in a line without DPO."""
    return container(
        "posttrain.sweep.trial",
        "train",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        base=base.path,
        sft_train=sft_train.path,
        sft_eval=sft_eval.path,
        sft_judged=sft_judged.path,
        summary=summary.path,
        metrics=metrics.path,
        row=row,
    )


@container_component
def run_preference_trial(
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
    """The same in a line without SFT."""
    return container(
        "posttrain.sweep.trial",
        "train",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        base=base.path,
        preference_train=preference_train.path,
        preference_eval=preference_eval.path,
        preference_judged=preference_judged.path,
        summary=summary.path,
        metrics=metrics.path,
        row=row,
    )
