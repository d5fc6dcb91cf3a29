"""Compiles a configuration to a graph, as YAML."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from kfp import compiler

from components.container import IMAGES, check_digests, image_reference
from pipelines import lint
from pipelines.post_training import post_training
from pipelines.sweep import sweep
from posttrain.config import PipelineConfig, Validation
from posttrain.config.line import TRAININGS
from posttrain.config.requirements import check_decidable
from posttrain.config.sweep import SweepConfig


def compile_graph(config: PipelineConfig, path: str | Path) -> None:
    """Writes the graph of `config` to `path`. Images may have tags; they are refused when the graph is submitted.

    Raises:
        ValueError: a gate could not judge what it is to judge, no data could decide one of its limits, or the graph
            breaks a rule of the platform. Nothing is written.
    """
    check_gates_can_judge(config)
    check_decidable(config)
    _write(post_training(config), path)


def compile_sweep(config: PipelineConfig, settings: SweepConfig, path: str | Path, *, by_trial: bool = False) -> None:
    """Writes the graph of a sweep over the pipeline of `config` to `path`.

    `by_trial` is for this machine, where each iteration of a loop is one trial, whose memory the runner measures.

    Raises:
        ValueError: as for a pipeline, or trials would not measure what the sweep compares.
    """
    check_gates_can_judge(config)
    check_decidable(config)
    check_on_one_node(config)
    if config.stages.pairs.enabled:
        raise ValueError(
            "stages.pairs is on, and a sweep samples no pairs: sweep with it off, then run the best with it"
        )
    settings = settings.for_line(config.stages, config.validation)
    _write(sweep(config, settings, by_trial=by_trial), path, is_local=by_trial)


def _write(pipeline: Callable, path: str | Path, *, is_local: bool = False) -> None:
    check_digests()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "graph.yaml"
        compiler.Compiler().compile(pipeline, str(package))
        lint.check(package, allow_tags=True, is_local=is_local, shown_as=path)
        shutil.copyfile(package, path)


def check_on_one_node(config: PipelineConfig) -> None:
    """Refuses a sweep over trainings on several nodes: a trial does all its steps in its own pod."""
    for step in TRAININGS:
        if (nodes := config.placement.of(step).nodes) > 1:
            raise ValueError(
                f"placement.steps.{step}.nodes = {nodes}: a trial of a sweep trains in its own pod: sweep on one node, "
                f"--set placement.steps.{step}.nodes=1, and give more nodes to the run with the best settings"
            )


def check_gates_can_judge(config: PipelineConfig) -> None:
    """Refuses, before anything runs, answers and checks that nothing could judge."""
    problems = [*_unjudged_content(config.validation), *_unjudged_harm(config)]
    if problems:
        raise ValueError("; ".join(problems))


def _unjudged_content(validation: Validation) -> list[str]:
    try:
        validation.matcher  # noqa: B018  raises where nothing says when an answer is right
    except ValueError as error:
        return [str(error)]
    return []


def _unjudged_harm(config: PipelineConfig) -> list[str]:
    """Returns what a safety check lacks.

    Neither family of judge models recognises a refusal: with any judge, over-refusal, the other half of safety, is
    measured by `declines_with`.
    """
    validation = config.validation
    if "no_harmful_content" not in validation.custom_checks:
        return []
    has_model = validation.judge != "model" or validation.judge_model
    declines_with = validation.output_format.declines_with
    needed = {
        "judge": (validation.judge, "closed_form, or model with a judge_model"),
        "judge_model": (has_model, "the address of a Llama Guard or ShieldGemma"),
        "red_team_prompts": (validation.red_team_prompts, "the address of a file of prompts"),
        "output_format.declines_with": (declines_with, "the sentence with which your training rows decline"),
    }
    missing = [f"validation.{key} is empty: give {remedy}" for key, (value, remedy) in needed.items() if not value]
    if missing:
        return [
            f"custom_checks has no_harmful_content, but {'; '.join(missing)}; "
            "or remove no_harmful_content from custom_checks"
        ]
    if not config.stages.merge.enabled:
        return [
            "stages.merge.enabled is false, but no_harmful_content judges a merged model: "
            "enable merge, or remove no_harmful_content from custom_checks"
        ]
    return []


def unpushed_images() -> list[str]:
    """Returns the local tags of the images in the graph that have no digest yet."""
    return [image for image in map(image_reference, ("cpu", "train")) if "@sha256:" not in image]


def check_images_are_pushed() -> None:
    """Refuses to submit a graph that names an image by a tag of this machine."""
    if unpushed_images():
        raise ValueError(
            f"{IMAGES.relative_to(IMAGES.parents[1])}: no digest for {' and '.join(unpushed_images())} yet, and a "
            "cluster cannot pull images from this machine: push them and write their digests into that file"
        )
