"""A configuration -> the compiled graph as YAML."""

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
from posttrain.config.sweep import SweepConfig


def compile_graph(config: PipelineConfig, path: str | Path) -> None:
    """Writes the graph of `config` to `path`. Images may have tags: who submits the graph to a cluster refuses them.

    Raises:
        ValueError: a gate is asked for something that it could not judge, or the graph breaks a rule of the platform;
            nothing is written.
    """
    check_gates_can_judge(config)
    _write(post_training(config), path)


def compile_sweep(config: PipelineConfig, settings: SweepConfig, path: str | Path) -> None:
    """The same of a sweep over the line of `config`."""
    check_gates_can_judge(config)
    _write(sweep(config, settings), path)


def _write(pipeline: Callable, path: str | Path) -> None:
    check_digests()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "graph.yaml"
        compiler.Compiler().compile(pipeline, str(package))
        lint.check(package, allow_tags=True, shown_as=path)
        shutil.copyfile(package, path)


def check_gates_can_judge(config: PipelineConfig) -> None:
    """Refuses, before anything runs, answers and checks that nobody or nothing is there to judge."""
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
    """Neither family of judge models can tell a refusal: whoever judges, `declines_with` is what tells over-refusal,
    the other half of safety.
    """
    validation = config.validation
    if "no_harmful_content" not in validation.custom_checks:
        return []
    needed = {
        "judge": (validation.judge, "closed_form, or model with a judge_model"),
        "judge_model": (
            validation.judge != "model" or validation.judge_model, "the address of a Llama Guard or ShieldGemma",
        ),
        "red_team_prompts": (validation.red_team_prompts, "the address of a file of prompts"),
        "output_format.declines_with": (
            validation.output_format.declines_with, "the sentence with which your training rows decline",
        ),
    }  # fmt: skip
    missing = [f"validation.{key} is empty: give {remedy}" for key, (value, remedy) in needed.items() if not value]
    if missing:
        return [
            f"custom_checks asks for no_harmful_content, but {'; '.join(missing)}; "
            "or take no_harmful_content out of custom_checks"
        ]
    if not config.stages.merge.enabled:
        return [
            "stages.merge.enabled is false, but no_harmful_content judges a merged model: "
            "enable merge, or take no_harmful_content out of custom_checks"
        ]
    return []


def unpushed_images() -> list[str]:
    """Images of the graph that have no digest yet, by the local tag that stands for them."""
    return [image for image in map(image_reference, ("cpu", "train")) if "@sha256:" not in image]


def check_images_are_pushed() -> None:
    """Refuses a graph for a cluster that names an image by a tag of this machine."""
    if unpushed_images():
        raise ValueError(
            f"{IMAGES.relative_to(IMAGES.parents[1])}: no digest for {' and '.join(unpushed_images())} yet, and a "
            "cluster cannot pull what is only here: push the images and write their digests into that file"
        )
