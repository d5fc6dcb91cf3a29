"""Tests the seam between graph and image: what a component passes is what its module takes."""

import importlib

import pytest
from google.protobuf import json_format

import components
from components.container import ATTEMPTS_MODULE

COMPONENTS = [getattr(components, name) for name in components.__all__]


def container_of(component) -> dict:
    """The compiled container: image, command and args with Kubeflow's placeholders in them."""
    spec = json_format.MessageToDict(component.pipeline_spec)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    return executor["container"]


@pytest.mark.parametrize("component", COMPONENTS, ids=components.__all__)
def test_args_parse_under_the_modules_own_parser(component):
    container = container_of(component)
    *attempts, module = container["command"]
    assert attempts == ["python", "-m", ATTEMPTS_MODULE]
    parser, args = importlib.import_module(module).build_parser(), container["args"]
    for action in parser._actions:
        if action.choices:  # the placeholder stands for one of them
            args[args.index(action.option_strings[0]) + 1] = next(iter(action.choices))
    parser.parse_args([arg if arg != "{{$}}" else "{}" for arg in args])


@pytest.mark.parametrize("component", COMPONENTS, ids=components.__all__)
def test_every_declared_input_and_output_is_passed(component):
    args = " ".join(container_of(component)["args"])
    spec = component.component_spec
    for name in {*(spec.inputs or {}), *(spec.outputs or {})} - {"config"}:  # of the executor input
        assert f"'{name}'" in args, f"{name} is declared but never passed to the container"


@pytest.mark.parametrize("component", COMPONENTS, ids=components.__all__)
def test_a_flag_is_the_name_of_its_argument(component):
    args = container_of(component)["args"]
    for flag, placeholder in zip(args[::2], args[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        assert f"'{name}'" in placeholder or (flag, placeholder) == ("--executor-input", "{{$}}")
