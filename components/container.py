"""The container of a step: module name, image and arguments -> `dsl.ContainerSpec`."""

from pathlib import Path

import yaml
from kfp import dsl

IMAGES = Path(__file__).parents[1] / "images" / "digests.yaml"


def container(module: str, image: str, **arguments) -> dsl.ContainerSpec:
    """`python -m <module>` with one flag per argument, the flag being the argument's name with hyphens."""
    args = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", value)]
    return dsl.ContainerSpec(
        image=image_reference(image),
        command=["python", "-m", module],
        args=[*args, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


def image_reference(name: str) -> str:
    """`repository@sha256:...` of a pushed image, else a tag that says that the image is only on this machine."""
    image = yaml.safe_load(IMAGES.read_text(encoding="utf-8"))[name]
    return f"{image['repository']}@{image['digest']}" if image["digest"] else f"{image['repository']}:local"
