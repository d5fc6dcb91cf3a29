"""Tests the seam between graph and image: what a component passes is what its module takes."""

import importlib
import runpy
import warnings

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


MODULES = sorted({container_of(component)["command"][-1] for component in COMPONENTS})
LEFT_OUT_BY_HAND = {"--overrides", "--executor-input", "--notes", "--status", "--best"}  # each has a default


def refused(module: str, *arguments: str, monkeypatch, capsys) -> str:
    """Runs `python -m module`, in this process, and returns what it says to arguments that are not enough."""
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with warnings.catch_warnings(), pytest.raises(SystemExit, match="^2$"):
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return capsys.readouterr().err


@pytest.mark.parametrize("module", MODULES)
def test_a_command_needs_every_flag_that_its_components_pass(module, monkeypatch, capsys):
    passed = [container_of(one)["args"][::2] for one in COMPONENTS if container_of(one)["command"][-1] == module]
    needed = set.intersection(*map(set, passed)) - LEFT_OUT_BY_HAND
    said = refused(module, monkeypatch=monkeypatch, capsys=capsys).partition("arguments are required: ")[2]
    assert set(said.strip().split(", ")) == needed


@pytest.mark.parametrize(
    ("module", "arguments", "needed"),
    [
        ("posttrain.nodes.launch", [], "--step"),
        (
            "posttrain.nodes.launch",
            ["--step", "train_sft"],
            "--storage-root, --base, --train, --eval, --adapter, --metrics",
        ),
        ("posttrain.verify", [], "published"),
        ("posttrain.promote", [], "name"),
        ("posttrain.promote", ["name"], "one of the arguments --storage-root --publish-root is required"),
        ("posttrain.registries.push", [], "published, address"),
        ("posttrain.compare", [], "RUN"),
    ],
)
def test_a_tool_says_what_it_needs(module, arguments, needed, monkeypatch, capsys):
    assert needed in refused(module, *arguments, monkeypatch=monkeypatch, capsys=capsys)


SECRET = "hf_" + "a1" * 17


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("posttrain.verify", [f"/nowhere/{SECRET}"]),
        ("posttrain.promote", ["name", "--storage-root", f"/nowhere/{SECRET}"]),
        ("posttrain.registries.push", [f"/nowhere/{SECRET}", "oci://registry.example.org/m:v1"]),
        ("posttrain.compare", ["run", "--storage-root", f"/nowhere/{SECRET}"]),
    ],
)
def test_a_tool_prints_no_secret(module, arguments, capsys):
    importlib.import_module(module).main(arguments)
    said = capsys.readouterr()
    assert "***" in said.out + said.err and SECRET not in said.out + said.err
