"""The container of a step: module name, image and arguments -> `dsl.ContainerSpec`."""

import re
from pathlib import Path

import yaml
from kfp import dsl

IMAGES = Path(__file__).parents[1] / "images" / "digests.yaml"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")  # as a registry gives it


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


def check_digests() -> None:
    """Raises `ValueError` for a digest that no registry has given.

    Not in `image_reference`, which kfp calls while the components are imported: nobody could catch it there.
    """
    for name, image in yaml.safe_load(IMAGES.read_text(encoding="utf-8")).items():
        if image["digest"] and not DIGEST.fullmatch(str(image["digest"])):
            raise ValueError(
                f"images/digests.yaml: {name}.digest {image['digest']!r} is not sha256: and 64 hex digits; "
                "write what the registry gave when the image was pushed, or null before that"
            )
