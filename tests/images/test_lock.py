import re
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from images import lock

LINE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")
LOCKS = sorted(Path("images").glob("*.lock"))


def locked(*names: str) -> dict[str, str]:
    """Package -> version, of these lock files."""
    lines = [line for name in names for line in Path(f"images/{name}.lock").read_text().splitlines()[1:]]
    return dict(LINE.fullmatch(line).groups() for line in lines)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_line_is_a_version_with_its_digest(path):
    head, *lines = path.read_text().splitlines()
    assert head.startswith("#") and lines
    assert all(LINE.fullmatch(line) for line in lines)


@pytest.mark.parametrize(("extra", "names"), [("cpu", ["cpu"]), ("train", ["train", "torch-cpu"])])
def test_what_the_project_pins_is_what_an_image_gets(extra, names):
    packages = locked(*names)
    for pin in lock.requirements(extra):
        name, _, version = pin.partition("==")
        assert packages[canonicalize_name(name)].partition("+")[0] == version


def test_an_image_with_unsloth_gets_what_was_tested_with_it():
    pinned = dict(pin.split("==") for pin in lock.pins(lock.UNSLOTH))
    tested = {canonicalize_name(name): version for name, version in pinned.items()}
    assert tested.pop("triton") == locked("torch-cuda")["triton"]
    assert tested == locked("unsloth")


def test_the_images_get_what_was_tested_together():
    lines = Path("images/constraints.txt").read_text().splitlines()[1:]
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    packages = locked("cpu", "train", "torch-cpu", "build")
    assert {name: version.partition("+")[0] for name, version in packages.items()}.items() <= tested.items()


def test_both_builds_of_torch_have_the_same_version():
    cpu, cuda = locked("torch-cpu"), locked("torch-cuda")
    assert cpu == {"torch": f"{cuda['torch']}+cpu"}
    assert {"triton", "nvidia-cudnn-cu13"} < cuda.keys()
    assert not cuda.keys() & locked("train").keys()


def test_the_cpu_image_is_part_of_the_train_image():
    assert locked("cpu").items() <= locked("train").items()
    assert not {"torch", "transformers", "matplotlib", "statsmodels", "kfp"} & locked("cpu").keys()


def test_an_extra_brings_what_it_names():
    assert set(lock.requirements("cpu")) < set(lock.requirements("train"))
    assert not [pin for pin in lock.requirements("train") if pin.startswith("posttrain")]


def test_what_pip_does_not_find_is_one_error(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ValueError, match="pip finds no set of wheels: .*nothing-of-that-name.*is an index missing"):
        lock.resolve(["nothing-of-that-name"])
