"""check_alignment: the gate before publishing; check_safety: its part that needs no preferences."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, OutputPath, container_component

from components.container import container


@container_component
def check_alignment(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    before: Input[Model],
    model: Input[Model],
    eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges the aligned model against the model before: held-out preferences, generated answers, red-team prompts."""
    return container(
        "validators.alignment",
        "train",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        before=before.path,
        model=model.path,
        preference_eval=eval.path,
        verdict=verdict.path,
        report=report.path,
        metrics=metrics.path,
        passed=passed,
    )


@container_component
def check_safety(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    before: Input[Model],
    model: Input[Model],
    eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges an SFT model against its base on generated answers and red-team prompts."""
    return container(
        "validators.alignment",
        "train",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        before=before.path,
        model=model.path,
        sft_eval=eval.path,
        verdict=verdict.path,
        report=report.path,
        metrics=metrics.path,
        passed=passed,
    )
