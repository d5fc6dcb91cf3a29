"""Tests that one history says which version is current, one promoter writes it at a time, and CURRENT agrees."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain import promote, storage
from posttrain.storage import layout
from tests.posttrain.line import Line

ROUNDS = 8


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    """A run that can publish. Read only."""
    return Line(tmp_path_factory.mktemp("finished")).run()


@pytest.fixture
def folder(line: Line, root: str) -> str:
    """Versions v1, v2 and v3 of the model `m`, in a folder of this machine or in a bucket; none is current."""
    for version in ("v1", "v2", "v3"):
        line.publish(root, version=version)
    return storage.join(root, "m")


def go(folder: str, version: str, follows: int) -> promote.Promotion:
    return promote.promote(folder, version, model_name="m", follows=follows, by="ann", reason="better")


def pointer(folder: str) -> dict:
    """Returns what a deployment reads."""
    return json.loads(storage.read_bytes(layout.current(folder)))


def test_the_first_promotion_makes_a_version_current(folder):
    assert promote.current(folder) is None
    go(folder, "v1", 0)
    manifest = json.loads(storage.read_bytes(storage.join(folder, "v1", "manifest.json")))
    told = pointer(folder)
    assert (told["number"], told["version"], told["previous"], told["by"]) == (1, "v1", None, "ann")
    assert told["sha256"] == manifest["sha256"]


def test_going_back_is_another_promotion(folder):
    for follows, version in enumerate(["v1", "v2", "v1"]):
        go(folder, version, follows)
    history = promote.read_history(folder)
    assert [(one.version, one.previous) for one in history] == [("v1", None), ("v2", "v1"), ("v1", "v2")]
    assert pointer(folder)["number"] == 3


@pytest.mark.parametrize("follows", [0, 1])
def test_what_is_current_is_not_promoted_again(folder, follows):
    """Nor by the next attempt of a promoter that was killed at its end, which follows what its first one followed."""
    first = go(folder, "v1", 0)
    storage.remove(layout.current(folder))
    assert go(folder, "v1", follows) == first
    assert len(promote.read_history(folder)) == 1
    assert pointer(folder)["version"] == "v1"


def test_a_decision_against_a_version_that_is_no_longer_current_is_refused(folder):
    go(folder, "v1", 0)
    go(folder, "v2", 1)
    with pytest.raises(ValueError, match="version v2 by promotion 2 of ann is current.* against promotion 1; compare"):
        go(folder, "v3", 1)
    assert pointer(folder)["version"] == "v2"


def test_of_two_at_the_same_moment_one_is_refused(folder, monkeypatch):
    """The other one comes between the look at the history and the write."""
    check, others = promote.check_published, iter(["v2"])

    def overtaken(*arguments, **words):
        for version in others:
            go(folder, version, 0)
        return check(*arguments, **words)

    monkeypatch.setattr(promote, "check_published", overtaken)
    with pytest.raises(ValueError, match="version v2 by promotion 1"):
        go(folder, "v1", 0)
    assert [one.version for one in promote.read_history(folder)] == ["v2"]
    assert pointer(folder)["version"] == "v2"


RACER = """
import sys, time
from pathlib import Path
from posttrain import promote
folder, version, flags = sys.argv[1], sys.argv[2], Path(sys.argv[3])
for number in range(int(sys.argv[4])):
    (flags / f"{version}-{number}").touch()
    while not (flags / str(number)).exists():
        time.sleep(0.0005)
    try:
        promote.promote(folder, f"{version}{number % 2}", model_name="m", follows=number, by=version, reason="race")
    except ValueError as error:
        print(error)
    else:
        print("promoted")
"""


def test_of_racing_processes_one_wins_each_round(line, tmp_path):
    for version in ("a0", "a1", "b0", "b1"):  # in turns: what is current already, nobody would write
        line.publish(str(tmp_path), version=version)
    folder, flags = str(tmp_path / "m"), tmp_path / "flags"
    flags.mkdir()
    racing = [
        subprocess.Popen([sys.executable, "-c", RACER, folder, version, flags, str(ROUNDS)], stdout=subprocess.PIPE)
        for version in ("a", "b")
    ]
    for number in range(ROUNDS):
        wait_for(flags / f"a-{number}", flags / f"b-{number}")
        (flags / str(number)).touch()
    outcomes = list(zip(*(racer.communicate()[0].decode().splitlines() for racer in racing), strict=True))
    assert [pair.count("promoted") for pair in outcomes] == [1] * ROUNDS
    history = promote.read_history(folder)
    assert [one.by for one in history] == ["ab"[pair.index("promoted")] for pair in outcomes]
    assert pointer(folder) == json.loads(history[-1].model_dump_json())


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def killed_before_the_pointer(folder: str, version: str, follows: int) -> None:
    """A promoter that dies between the history and CURRENT."""
    child = os.fork()
    if child == 0:
        promote.repair = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        go(folder, version, follows)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_the_next_reader_repairs_what_a_killed_promoter_left(line, tmp_path, capsys):
    for version in ("v1", "v2"):
        line.publish(str(tmp_path), version=version)
    folder = str(tmp_path / "m")
    go(folder, "v1", 0)
    killed_before_the_pointer(folder, "v2", 1)
    assert pointer(folder)["version"] == "v1"
    assert promote.current(folder).version == "v2"
    assert promote.main(["m", "--publish-root", str(tmp_path)]) == 0
    assert pointer(folder)["version"] == "v2"
    assert "CURRENT: was stale, and is rewritten" in capsys.readouterr().out


def test_the_next_promoter_goes_on_after_a_killed_one(line, tmp_path):
    for version in ("v1", "v2"):
        line.publish(str(tmp_path), version=version)
    folder = str(tmp_path / "m")
    killed_before_the_pointer(folder, "v1", 0)
    go(folder, "v2", 1)
    assert pointer(folder)["number"] == 2


def test_a_slower_promoter_leaves_no_older_version_in_the_pointer(folder, monkeypatch):
    write, others = storage.write_bytes, iter(["v2"])

    def overtaken(uri, data, **words):
        if uri == layout.current(folder):
            for version in others:
                go(folder, version, 1)
        write(uri, data, **words)

    monkeypatch.setattr(storage, "write_bytes", overtaken)
    go(folder, "v1", 0)
    assert pointer(folder)["version"] == "v2"


@pytest.mark.parametrize("kept", [0, 1])
def test_a_promotion_that_current_names_and_that_is_gone_is_no_older_history(folder, kept):
    for follows, version in enumerate(["v1", "v2", "v3"]):
        go(folder, version, follows)
    for number in range(kept + 1, 4):
        storage.remove(layout.promotions(folder, f"{number:06}.json"))
    with pytest.raises(ValueError, match=rf"00000{kept + 1}\.json: is missing, though .*CURRENT names promotion 3"):
        promote.current(folder)
    with pytest.raises(ValueError, match="is missing"):
        go(folder, "v1", kept)
    assert pointer(folder)["version"] == "v3"


def tamper(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "v2", "model.safetensors"), b"tampered")


def unpublish(folder: str) -> None:
    storage.remove(storage.join(folder, "v2", "manifest.json"))


def copy_over(folder: str) -> None:
    """The files of another version, which are in order by themselves."""
    for name in storage.list_files(storage.join(folder, "v1")):
        content = storage.read_bytes(storage.join(folder, "v1", name))
        storage.write_bytes(storage.join(folder, "v2", name), content)


@pytest.mark.parametrize(
    "change, words",
    [
        (tamper, "v2: cannot be made current: model.safetensors: was changed"),
        (unpublish, "v2: cannot be made current: manifest.json: is missing"),
        (copy_over, "v2: version in manifest.json is 'v1', not 'v2'"),
    ],
)
def test_a_version_that_is_not_what_was_published_is_refused(folder, change: Callable, words):
    go(folder, "v1", 0)
    change(folder)
    with pytest.raises(ValueError, match=re.escape(words)):
        go(folder, "v2", 1)
    assert pointer(folder)["version"] == "v1"
    assert len(promote.read_history(folder)) == 1


def test_a_file_that_only_begins_as_a_promotion_is_none(line, tmp_path):
    line.publish(str(tmp_path), version="v1")
    first = go(str(tmp_path / "m"), "v1", 0)
    (tmp_path / "m" / "promotions" / "000002.json.bak").write_text("{}")
    assert promote.read_history(str(tmp_path / "m")) == [first]


def test_a_history_with_a_gap_is_refused(folder):
    go(folder, "v1", 0)
    go(folder, "v2", 1)
    storage.remove(layout.promotions(folder, "000001.json"))
    with pytest.raises(ValueError, match="000001.json: is missing, though later promotions are there"):
        promote.current(folder)


def test_the_command_rolls_back_and_prints_the_history(folder, root, capsys):
    go(folder, "v1", 0)
    go(folder, "v2", 1)
    back = ["m", "v1", "--publish-root", root, "--by", "bea"]
    assert promote.main([*back, "--reason", "wrong refunds"]) == 0
    *_, third, last = capsys.readouterr().out.splitlines()
    assert third.endswith("v2 -> v1 by bea: wrong refunds")
    assert last == f"current: v1, SHA-256 {pointer(folder)['sha256']}"


def test_the_command_says_what_is_wrong_and_exits_1(folder, root, capsys):
    assert promote.main(["m", "v9", "--publish-root", root, "--by", "bea", "--reason", "typo"]) == 1
    assert "v9 is not a published model" in capsys.readouterr().err
    assert promote.main(["m", "--publish-root", root]) == 0
    assert capsys.readouterr().out == f"{folder}: no version is current\n"


def test_the_command_needs_a_reason(folder, root):
    with pytest.raises(SystemExit):
        promote.main(["m", "v1", "--publish-root", root, "--by", "bea"])
    assert promote.current(folder) is None


@pytest.mark.parametrize("version", ["CURRENT", "promotions"])
def test_no_version_has_the_name_of_a_file_beside_the_versions(line, tmp_path, version):
    with pytest.raises(ValueError, match="is the name of a file beside the versions"):
        line.publish(str(tmp_path), version=version)
