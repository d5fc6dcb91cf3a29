"""Builds the container of a step: module name, image and arguments -> `dsl.ContainerSpec`."""

import inspect
import re
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path

import yaml
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from posttrain.config.parse import read_yaml

ATTEMPTS_MODULE = "posttrain.step.attempts"  # starts a step in its container: `python -m <this> <module> <flags>`
IMAGES = Path(__file__).parents[1] / "images" / "digests.yaml"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")  # as a registry gives it


def container(module: str, image: str, **arguments) -> dsl.ContainerSpec:
    """Runs `<module>`, in attempts, with one flag for each argument of the component, under its name with hyphens.

    A component passes its `**locals()`, so that no flag can drift from its argument. An artifact is given by its path.
    The configuration has no flag: a step takes it from the executor input, which has all parameters anyway. None stands
    for an argument that a component is `without`, and has no flag either.
    """
    passed = {name: value for name, value in arguments.items() if name != "config" and value is not None}
    flags = {f"--{name.replace('_', '-')}": getattr(value, "path", value) for name, value in passed.items()}
    args = [part for flag in flags.items() for part in flag]
    return dsl.ContainerSpec(
        image=image_reference(image),
        command=["python", "-m", ATTEMPTS_MODULE, module],
        args=[*args, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


def without(component: BaseComponent, *arguments: str) -> Callable[[Callable], BaseComponent]:
    """Makes a component for another shape of the graph: like `component`, without some of its arguments.

    It decorates an empty function, which gives it a name and a docstring.
    """
    whole = component.pipeline_func
    parameters = inspect.signature(whole).parameters
    assert parameters.keys() >= set(arguments), f"{whole.__name__} has no such argument: {arguments}"
    kept = [parameter for name, parameter in parameters.items() if name not in arguments]

    def narrow(named: Callable) -> BaseComponent:
        def build(*values) -> dsl.ContainerSpec:
            by_name = dict(zip((parameter.name for parameter in kept), values, strict=True))
            return whole(**dict.fromkeys(arguments), **by_name)

        update_wrapper(build, named).__signature__ = inspect.Signature(kept)
        return dsl.container_component(build)

    return narrow


def image_reference(name: str) -> str:
    """Returns `repository@sha256:...` for a pushed image, else a tag that only this machine knows."""
    image = yaml.safe_load(IMAGES.read_text(encoding="utf-8"))[name]
    return f"{image['repository']}@{image['digest']}" if image["digest"] else f"{image['repository']}:local"


def check_digests() -> None:
    """Raises `ValueError` for a digest that no registry can have given.

    `image_reference` does not check: kfp calls it while the components are imported, where nobody could catch an error.
    """
    for name, image in read_yaml(IMAGES).items():
        if image["digest"] and not DIGEST.fullmatch(str(image["digest"])):
            raise ValueError(
                f"images/digests.yaml: {name}.digest {image['digest']!r} is not sha256: and 64 hex digits; "
                "write the digest that the registry gave when the image was pushed, or null before that"
            )
