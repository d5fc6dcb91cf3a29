"""Wheels for a machine without a network, from an index that is a folder of small wheels."""

import random
import zipfile
from pathlib import Path

import pytest

from images import wheels

MACHINE = "torch==2.11.0\nnumpy\ntyping-extensions==4.12.0\n"


def write_wheel(folder: Path, name: str, version: str, *needs: str, files: tuple[str, ...] = ("code.py",)) -> Path:
    """Writes a wheel with a file of 1 MiB that does not compress for each of `files`."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for file in files:
            archive.writestr(f"{name}/{file}", random.Random(file).randbytes(1 << 20))
        names = [*archive.namelist(), f"{info}/RECORD"]
        archive.writestr(f"{info}/RECORD", "".join(f"{entry},,\n" for entry in names))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(
        folder, "trainer", "1.0", "loader>=2", "torch<3", "mac_only; sys_platform == 'darwin'", "x; extra == 'x'"
    )
    write_wheel(folder, "loader", "2.1", "numpy", "typing-extensions>=4.16")
    write_wheel(folder, "typing_extensions", "4.16.0")
    write_wheel(folder, "patcher", "3.0", "nowhere>=1", "torch>=2.12", files=("code.py", "lib_cuda12.so"))
    (tmp_path / "machine.txt").write_text(MACHINE)
    (tmp_path / "alone.txt").write_text("patcher==3.0  # its own needs stay behind\n")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def gather(folder: Path, *more: str) -> int:
    return wheels.main(["--machine", str(folder / "machine.txt"), "--output", str(folder / "out"), *more])


def gathered(folder: Path) -> dict[str, list[str]]:
    places = sorted((folder / "out").glob("*"))
    return {place.name: sorted(path.name.partition("-")[0] for path in place.iterdir()) for place in places}


def test_what_the_machine_has_is_not_brought(index, tmp_path, capsys):
    assert gather(tmp_path, "--", "trainer==1.0") == 0
    assert gathered(tmp_path) == {"1": ["loader", "trainer"]}
    written = capsys.readouterr()
    assert written.err == "warning: loader asks for typing-extensions>=4.16, and 4.12.0 is there\n"
    assert "trainer-1.0-py3-none-any.whl" in written.out


def test_a_newer_one_is_brought_where_it_is_named(index, tmp_path, capsys):
    assert gather(tmp_path, "--newer", "typing_extensions", "--", "trainer==1.0") == 0
    assert gathered(tmp_path) == {"1": ["loader", "trainer", "typing_extensions"]}
    assert capsys.readouterr().err == ""


def test_what_comes_alone_says_what_it_lacks(index, tmp_path, capsys):
    assert gather(tmp_path, "--alone", str(tmp_path / "alone.txt"), "--newer", "typing_extensions", "--", "loader") == 0
    assert gathered(tmp_path) == {"1": ["loader", "patcher", "typing_extensions"]}
    lacking = ["patcher asks for nowhere>=1, which is nowhere", "patcher asks for torch>=2.12, and 2.11.0 is there"]
    assert capsys.readouterr().err == "".join(f"warning: {line}\n" for line in lacking)


def test_no_folder_is_larger_than_its_limit_unless_one_wheel_is(index, tmp_path):
    alone = ["--alone", str(tmp_path / "alone.txt"), "--limit", "1"]
    assert gather(tmp_path, *alone, "--", "trainer==1.0") == 0
    assert gathered(tmp_path) == {"1": ["loader"], "2": ["patcher"], "3": ["trainer"]}


def test_files_that_are_left_out_leave_the_record_too(index, tmp_path):
    alone = ["--alone", str(tmp_path / "alone.txt"), "--without", "patcher/*_cuda1?.so"]
    assert gather(tmp_path, *alone, "--", "loader") == 0
    (wheel,) = (tmp_path / "out").glob("*/patcher-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read("patcher-3.0.dist-info/RECORD").decode()
    assert "patcher/code.py" in names and "patcher/lib_cuda12.so" not in names
    assert sorted(line.partition(",")[0] for line in record.splitlines()) == sorted(names)


def test_a_package_that_no_index_has_is_an_error(index, tmp_path, capsys):
    assert gather(tmp_path, "--", "unheard_of==1.0") == 1
    assert "error: pip download: ERROR: No matching distribution found for unheard_of==1.0" in capsys.readouterr().err
