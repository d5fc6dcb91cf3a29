"""Pushing, with a client that only says what an engine would; tests/docker pushes to a registry."""

import shutil

import pytest
import yaml

from images import push

DIGEST = "sha256:" + "a" * 64
CLIENT = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$1 $2" in
"image inspect") [ "$5" = "{changed}" ] && echo sha256:other || echo sha256:ours ;;
push*) [ "$2" != "{refused}" ] || {{ echo "denied: no write access" >&2; exit 1; }} ;;
pull*) printf '{pulled}' ;;
esac
"""


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Makes the client: `refused` and `changed` are images that it cannot push, and that changed meanwhile."""
    digests = tmp_path / "digests.yaml"
    shutil.copyfile(push.DIGESTS, digests)
    monkeypatch.setattr(push, "DIGESTS", digests)
    monkeypatch.setenv("DOCKER", str(tmp_path / "docker"))

    def make(refused="", changed="", pulled=f"Digest: {DIGEST}\\n"):
        text = CLIENT.format(folder=tmp_path, refused=refused, changed=changed, pulled=pulled)
        (tmp_path / "docker").write_text(text)
        (tmp_path / "docker").chmod(0o755)
        return digests

    return make


def start() -> int:
    return push.main(["--registry", "registry.test/team/", "--version", "1.2.0"])


def test_digests_are_those_of_the_registry(client, tmp_path, capsys):
    digests = client()
    assert start() == 0
    assert yaml.safe_load(digests.read_text()) == {
        name: {"repository": f"registry.test/team/posttrain-{name}", "digest": DIGEST} for name in ("cpu", "train")
    }
    assert digests.read_text().startswith(push.HEAD)
    calls = (tmp_path / "calls").read_text()
    assert "tag posttrain-train:local registry.test/team/posttrain-train:1.2.0\n" in calls
    assert capsys.readouterr().out.splitlines()[-1] == f"registry.test/team/posttrain-train@{DIGEST}"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"refused": "registry.test/team/posttrain-train:1.2.0"}, "denied: no write access"),
        ({"changed": "registry.test/team/posttrain-train:1.2.0"}, "somebody else has pushed another image"),
        ({"pulled": "Status: Image is up to date\\n"}, "the registry gives no digest"),
    ],
)
def test_nothing_is_written_unless_both_images_are_there(client, capsys, trouble, words):
    digests = client(**trouble)
    before = digests.read_text()
    assert start() == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and words in error
    assert digests.read_text() == before


def test_the_committed_file_has_the_head_that_a_push_writes():
    assert push.DIGESTS.read_text().startswith(push.HEAD)
