import re
from pathlib import Path

import pytest

from posttrain.storage import address


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("gs://bucket/", "a", "b/c"), "gs://bucket/a/b/c"),
        (("gs://bucket",), "gs://bucket"),
        (("/", "a"), "/a"),
        (("runs/", "a"), "runs/a"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert address.join(*parts) == joined


@pytest.mark.parametrize("part", ["", "..", "a/../b", "/etc/passwd", "a//b", "a/", ".", "a\0b"])
def test_join_refuses(part: str) -> None:
    with pytest.raises(ValueError, match="is not a relative file name|has a control character"):
        address.join("gs://bucket/root", part)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("gs://bucket/model", "gs"),
        ("s3://bucket/model", "s3"),
        ("hf://org/name", "hub"),
        ("hf://org/name@refs/pr/1", "hub"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub"),
        ("org/name@main", "hub"),
        ("there/model", "local"),
        ("./org/name", "local"),
        ("/org/name", "local"),
        ("org/name/more", "local"),
        ("org/a..b", "local"),
        ("name", "local"),
        ("file:///org/name", "local"),
    ],
)
def test_kind(uri: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "model").mkdir(parents=True)
    assert address.kind(uri) == kind


@pytest.mark.parametrize("uri", ["", "http://host/x", "hf://name", "hf://org/na me", "hf://org/../x"])
def test_kind_refuses(uri: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(uri))):
        address.kind(uri)


def test_hub_id() -> None:
    assert address.hub_id("hf://org/name") == ("org/name", None)
    assert address.hub_id("org/name@v1.0") == ("org/name", "v1.0")


def test_local_path() -> None:
    assert address.local_path("file:///a%20b/c") == Path("/a b/c")
    assert address.local_path("a/b") == Path("a/b")
    assert not address.is_remote("file:///a")
    assert address.is_remote("gs://bucket/a")
    with pytest.raises(ValueError, match="is not a local path"):
        address.local_path("gs://bucket/a")


ALLOWED = [
    ("gs://bucket/a/b", "gs://bucket"),
    ("gs://bucket", "gs://bucket/"),
    ("gs://any/thing", "gs://"),
    ("s3://bucket/a/b", "s3://bucket/a"),
    ("/any/path", "/"),
    ("file:///any/path", "/any"),
    ("runs/../data/x.jsonl", "data"),
    ("org/name", "hf://"),
    ("org/name@v1", "hf://org/name"),
    ("hf://org/name@v1", "hf://org/name@v1"),
    ("hf://org/name", "hf://org"),
]
REFUSED = [
    ("gs://bucket-evil/a", "gs://bucket"),
    ("gs://bucket/ab", "gs://bucket/a"),
    ("gs://bucket", "gs://bucket/a"),
    ("gs://bucket/a/../b", "gs://bucket/a"),
    ("gs://bucket//a", "gs://bucket"),
    ("s3://bucket/a", "gs://bucket"),
    ("/allowed/../etc", "/allowed"),
    ("file:///allowed/%2e%2e/etc", "/allowed"),
    ("/allowed-evil", "/allowed"),
    ("gs://bucket/a", "/"),
    ("org/name", "/"),
    ("org/name", "hf://org/name@v1"),
    ("hf://org/name-2", "hf://org/name"),
    ("http://host/a", "/"),
    ("", "/"),
]


@pytest.mark.parametrize(("uri", "prefix"), ALLOWED)
def test_allowed(uri: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    address.check_allowed(uri, ["gs://other", prefix], name="base_model")


@pytest.mark.parametrize(("uri", "prefix"), REFUSED)
def test_refused(uri: str, prefix: str) -> None:
    with pytest.raises(ValueError, match="^base_model") as error:
        address.check_allowed(uri, [prefix], name="base_model")
    assert repr(uri) in str(error.value)
    assert "\n" not in str(error.value)


def test_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link").symlink_to("/etc")
    with pytest.raises(ValueError, match="allowed prefixes"):
        address.check_allowed(str(tmp_path / "allowed" / "link" / "x"), [str(tmp_path / "allowed")], name="sft_dataset")


ROOTS = [
    ("gs://models/line", "gs://models/line", True),
    ("gs://models/line/", "gs://models/line", True),
    ("gs://models/line/mine", "gs://models/line", False),
    ("gs://models/data", "gs://models/line", False),
    ("gs://models/line/mine", "gs://models/line/", True),
    ("gs://models/line-2", "gs://models/line/", False),
    ("/tmp/line/../line", "/tmp/line", True),
    ("/tmp/line/mine", "/tmp/line", False),
    ("/tmp/line/mine", "/", True),
]


@pytest.mark.parametrize(("uri", "root", "is_allowed"), ROOTS)
def test_a_storage_root_is_exactly_one_of_the_list_unless_that_ends_with_a_slash(uri, root, is_allowed) -> None:
    if is_allowed:
        address.check_storage_root(uri, ["s3://other", root], name="storage_root")
        return
    with pytest.raises(ValueError, match=r"^storage_root=.* add it to allowed_storage_roots and compile again"):
        address.check_storage_root(uri, ["s3://other", root], name="storage_root")


def test_refusal_names_the_prefixes_and_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"reads as a Hub id; for a folder write \./out/run.*\(gs://a, gs://b\); use one"
    ):
        address.check_allowed("out/run", ["gs://a", "gs://b"], name="storage_root")
    with pytest.raises(ValueError, match="there are none"):
        address.check_allowed("gs://a", [], name="storage_root")
