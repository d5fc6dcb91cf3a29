"""A configuration -> the compiled graph as YAML."""

import logging
from pathlib import Path

from kfp import compiler

from components.container import IMAGES, image_reference
from pipelines.post_training import post_training
from posttrain.config import PipelineConfig, check_run_parameters

logger = logging.getLogger(__name__)


def compile_graph(config: PipelineConfig, path: str | Path) -> None:
    """Writes the graph of `config` to `path`.

    Raises:
        ValueError: a gate is asked for something that it could not judge.
    """
    check_gates_can_judge(config)
    check_run_parameters({"base_model": config.base_model, "storage_root": config.storage_root})
    compiler.Compiler().compile(post_training(config), str(path))


def check_gates_can_judge(config: PipelineConfig) -> None:
    """Refuses, before anything runs, a check that has nobody or nothing to judge by.

    Neither family of judge models can tell a refusal: whoever judges, `declines_with` is what tells over-refusal, the
    other half of safety.
    """
    validation = config.validation
    if "no_harmful_content" not in validation.custom_checks:
        return
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
        raise ValueError(
            f"custom_checks asks for no_harmful_content, but {'; '.join(missing)}; "
            "or take no_harmful_content out of custom_checks"
        )
    if not config.stages.merge.enabled:
        raise ValueError(
            "stages.merge.enabled is false, but no_harmful_content judges a merged model: "
            "enable merge, or take no_harmful_content out of custom_checks"
        )


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


def warn_of_unpushed_images() -> None:
    """Says that a graph with local tags runs here and in Docker, but is no package for a cluster."""
    if unpushed_images():
        logger.warning(
            "%s: no digest for %s yet: this graph runs on this machine; push the images before submitting it",
            IMAGES.relative_to(IMAGES.parents[1]),
            " and ".join(unpushed_images()),
        )
