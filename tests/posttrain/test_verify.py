"""Whatever is changed about a published model is found and named, and one that is whole is verified."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain import storage, verify
from posttrain.step import digests, provenance
from posttrain.step.published import Manifest
from posttrain.verdict import at_most
from tests.posttrain.line import Line

OTHER = "c" * 64


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Line:
    """A run that has published, with its receipt. Read only."""
    return published_by(Line(tmp_path_factory.mktemp("finished")).run())


@pytest.fixture
def folder(finished: Line, tmp_path: Path) -> Path:
    """A copy of the published folder, to be changed."""
    return shutil.copytree(published(finished), tmp_path / "published")


def published_by(line: Line) -> Line:
    receipt = line.publish(str(line.folder / "published"))
    line.step("publish_model", {"model": line.model}, ["receipt"], measured=receipt)
    return line


def published(line: Line) -> Path:
    (manifest,) = (line.folder / "published").rglob("manifest.json")
    return manifest.parent


def faults(folder: Path | str, **more) -> list[str]:
    return verify.verify(str(folder), **more).faults


def edit(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    """Changes one of the JSON files there."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content, indent=2))


def link(chain: dict, step: str) -> dict:
    return next(link for link in chain["links"] if link["step"] == step)


def forge(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes the chain, and then the manifest and SHA256SUMS so that they fit it."""
    edit(folder, "provenance.json", change)
    sha256 = digests.digest(folder / "provenance.json")
    edit(folder, "manifest.json", lambda manifest: manifest["files"].update({"provenance.json": sha256}))
    (folder / "SHA256SUMS").write_text(Manifest.model_validate_json((folder / "manifest.json").read_bytes()).sums)


def test_a_whole_one_is_verified(finished, folder):
    more = {"storage_root": finished.root, "base": str(finished.base), "data": (str(finished.data),)}
    assert faults(folder) == faults(folder, **more) == []


def test_it_is_verified_wherever_it_lies(finished, root):
    storage.upload_folder(published(finished), root)
    assert faults(root, storage_root=finished.root) == []
    storage.write_bytes(storage.join(root, "config.json"), b"{}")
    assert [fault.partition(":")[0] for fault in faults(root)] == ["config.json"]


def test_the_command_prints_the_chain_and_verified(finished, folder, capsys):
    assert verify.main([str(folder), "--storage-root", finished.root, "--data", str(finished.data)]) == 0
    first, *links, last = capsys.readouterr().out.splitlines()
    digest = {name: digests.digest(finished.path(*name)) for name in (("train_sft", "adapter"), ("merge_sft", "model"))}
    assert first.endswith(f"SHA-256 {digest['merge_sft', 'model']}, run run-1")
    assert [line.split()[0] for line in links] == [
        "fetch_model", "prepare_sft_data", "check_data", "train_sft", "check_sft", "merge_sft", "check_safety",
        "publish_model",
    ]  # fmt: skip
    assert links[0].startswith("fetch_model       hf://acme/base@c0ffee ")
    assert links[3].endswith(f" -> adapter {digest['train_sft', 'adapter'][:8]}")
    assert links[6].endswith(" -> passed, 2 of 2 checks")
    assert last == f"verified: 5 files, 8 links, 3 gates passed; the run record in {finished.root} agrees"
    assert verify.main([str(folder)]) == 0
    assert capsys.readouterr().out.endswith("3 gates passed; not compared with a run record\n")


def test_the_command_prints_what_is_wrong_and_exits_1(folder, capsys):
    (folder / "model.safetensors").write_bytes(b"tampered")
    (folder / "modeling.py").write_text("import os")
    assert verify.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "verified" not in out
    wrong = [line for line in out.splitlines() if line.startswith("wrong: ")]
    assert [line.split(": ")[1] for line in wrong] == ["model.safetensors", "modeling.py"]


def test_what_is_no_published_model_is_said(tmp_path, capsys):
    assert verify.main([str(tmp_path / "nowhere")]) == 1
    why = f"is missing: {tmp_path / 'nowhere'} is not a published model, or its publishing is not complete"
    assert capsys.readouterr().out == f"wrong: manifest.json: {why}\n"
    command = [sys.executable, "-m", "posttrain.verify", str(tmp_path / "nowhere")]
    assert subprocess.run(command, capture_output=True).returncode == 1


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def twice(folder: Path, key: str) -> None:
    """Another value of the key first, which a reader may take that stops there."""
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("{", f'{{\n  "{key}": "v0",', 1))


def reverse(file: Path) -> None:
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


def swap_sums(folder: Path) -> None:
    text = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(OTHER + text[64:])


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (flip_byte, ["model.safetensors: was changed"]),
        (lambda folder: (folder / "modeling.py").write_text(""), ["modeling.py: was added"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json: is missing"]),
        (lambda folder: (folder / "README.md").write_text("# Better"), ["README.md: was changed"]),
        (swap_sums, ["SHA256SUMS: lacks the line", f"SHA256SUMS: has the line '{OTHER}  README.md'"]),
        (lambda folder: (folder / "SHA256SUMS").unlink(), ["SHA256SUMS: is missing"]),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found.update(sha256=OTHER)),
            ["manifest.json: was changed: the model's files make", f"provenance.json: sha256 is .*, in .* {OTHER}"],
        ),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found["files"].update({"config.json": OTHER})),
            ["config.json: was changed: its SHA-256 is .*, not c{64}", "manifest.json: was changed"],
        ),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found.update(run_id="run-2")),
            ["provenance.json: run_id is run-1, in manifest.json run-2"],
        ),
        (lambda folder: (folder / "manifest.json").write_text("{"), ["manifest.json: is invalid: Invalid JSON"]),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found.pop("files")),
            ["manifest.json: is invalid: files: Field required"],
        ),
        (
            lambda folder: edit(folder, "provenance.json", lambda found: found.update(links=[])),
            ["provenance.json: was changed", "provenance.json: is invalid: links"],
        ),
        (lambda folder: (folder / "provenance.json").unlink(), ["provenance.json: is missing"]),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found.update(version="v999")),
            ["provenance.json: version is .*, in manifest.json v999"],
        ),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found.update(model_name="evil")),
            ["provenance.json: model_name is m, in manifest.json evil"],
        ),
        (
            lambda folder: edit(folder, "manifest.json", lambda found: found.update(published_at="1999")),
            ["provenance.json: published_at is .*, in manifest.json 1999"],
        ),
        (lambda folder: twice(folder, "version"), ["manifest.json: was changed: it is not written as publishing"]),
        (lambda folder: reverse(folder / "SHA256SUMS"), ["SHA256SUMS: was changed: its lines are in another order"]),
        (lambda folder: (folder / "templates").symlink_to("/tmp"), ["templates: was added: it leads out"]),
        (lambda folder: (folder / "model-2.safetensors").symlink_to("gone"), ["model-2.safetensors: was added: it le"]),
        (
            lambda folder: (folder / "PUBLISHING.json").write_text("{}"),
            ["PUBLISHING.json: was added: .* publish again"],
        ),
    ],
)
def test_a_file_that_was_changed_is_named(tamper, words, folder):
    tamper(folder)
    found = faults(folder)
    for expected in words:
        assert any(re.search(expected, fault) for fault in found), (expected, found)


def fold(folder: Path) -> None:
    """Two files of the model become one, whose name stands for both in the list that is hashed."""
    content = json.loads((folder / "manifest.json").read_text())
    files = content["files"]
    name = f"config.json {files.pop('config.json')}\nmodel.safetensors"
    files[name] = files.pop("model.safetensors")
    (folder / "model.safetensors").rename(folder / name)
    (folder / "config.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(content, indent=2))
    (folder / "SHA256SUMS").write_text("".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items())))


def test_two_files_under_one_name_with_a_line_feed_are_refused(folder):
    fold(folder)
    (named,) = faults(folder)
    assert re.match(r"manifest.json: is invalid: files: .*has a control character or broken UTF-8 in its name", named)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1bb", "a\x85b", "a\u2028b", "a\udcffb"])
def test_a_digest_of_a_folder_with_a_name_that_means_two_things_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="control character or broken UTF-8"):
        digests.folder_digest({name: OTHER})
    with pytest.raises(ValueError, match="control character or broken UTF-8"):
        storage.join(tmp_path, name)
    assert storage.join("gs://b", "LICENSE mit ünïcode 🙂.txt")


def set_check(chain: dict, step: str, **values) -> None:
    link(chain, step)["verdict"]["checks"][0].update(values)


CHAIN = {
    "an input": (
        lambda chain: link(chain, "train_sft")["inputs"].update(train=OTHER),
        ["train_sft: its train c{64} is not an output", "train_sft: its fingerprint does not"],
    ),
    "an output": (
        lambda chain: link(chain, "train_sft")["outputs"].update(adapter=OTHER),
        ["check_sft: its adapter [0-9a-f]{64} is not an output", "merge_sft: its adapter"],
    ),
    "the order": (
        lambda chain: chain["links"].insert(1, chain["links"].pop(5)),
        ["merge_sft: its adapter [0-9a-f]{64} is not an output"],
    ),
    "a link taken out": (
        lambda chain: chain["links"].remove(link(chain, "merge_sft")),
        ["check_safety: its model [0-9a-f]{64} is not an output", "publish_model: its model"],
    ),
    "the configuration": (
        lambda chain: link(chain, "train_sft")["config"].update(epochs=99),
        ["train_sft: its fingerprint does not match its configuration, inputs and code"],
    ),
    "the code": (
        lambda chain: link(chain, "train_sft")["code"]["libraries"].update(trl="9.9"),
        ["train_sft: its fingerprint does not match its configuration, inputs and code"],
    ),
    "a limit that a gate was judged against": (
        lambda chain: set_check(chain, "check_sft", limit=9.0),
        ["gate check_sft: its verdict was changed after it was written"],
    ),
    "the verdict of another model": (
        lambda chain: link(chain, "check_safety")["verdict"]["subject"].update(model=OTHER),
        ["gate check_safety: its verdict is not about the gate's inputs", "gate check_safety: judged model c{64}, not"],
    ),
    "the verdict of another gate": (
        lambda chain: link(chain, "check_sft").update(verdict=link(chain, "check_data")["verdict"]),
        ["gate check_sft: its verdict is that of check_data", "gate check_sft: its verdict was changed"],
    ),
    "a gate taken out": (
        lambda chain: chain["links"].remove(link(chain, "check_safety")),
        ["gate check_safety: no verdict in this run"],
    ),
    "a gate no longer required": (
        lambda chain: (
            chain["links"].remove(link(chain, "check_data")),
            link(chain, "publish_model")["config"]["required_gates"].remove("check_data"),
        ),
        ["publish_model: its fingerprint does not match its configuration"],
    ),
    "gates that are no list": (
        lambda chain: link(chain, "publish_model")["config"].update(required_gates=1),
        ["publish_model: does not say which gates it requires", "publish_model: its fingerprint"],
    ),
    "a source taken out": (
        lambda chain: link(chain, "prepare_sft_data").update(source=None),
        ["prepare_sft_data: has no inputs and names no source"],
    ),
    "the published model": (
        lambda chain: link(chain, "publish_model").update(inputs={"model": OTHER}),
        ["publish_model: took c{64}, not the model", "publish_model: its model c{64} is not an output"],
    ),
    "something else that was published": (
        lambda chain: link(chain, "publish_model")["inputs"].update(extra=link(chain, "train_sft")["inputs"]["train"]),
        ["publish_model: took [0-9a-f]{64}, not the model"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHAIN)
def test_a_forged_chain_is_found_even_where_all_digests_fit(change, folder):
    tamper, words = CHAIN[change]
    forge(folder, tamper)
    named = faults(folder)
    assert not any(re.search("was changed:|SHA256SUMS", fault) for fault in named)
    for expected in words:
        assert any(re.search(expected, fault) for fault in named), (expected, named)


def test_a_verdict_that_was_made_to_pass_is_found(tmp_path, monkeypatch):
    line = Line(tmp_path).run()
    line.judge("check_sft", checks=(at_most("loss", 3.0, 2.0),))
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "faults", lambda chain: [])  # somebody's own publisher
        published_by(line)
    folder = published(line)
    assert faults(folder) == ["gate check_sft: did not pass: loss: 3, not <= 2"]
    forge(folder, lambda chain: link(chain, "check_sft")["verdict"].update(passed=True, outcome="passed"))
    changed = "gate check_sft: its verdict was changed after it was written; run the gate again"
    assert faults(folder) == ["gate check_sft: did not pass: loss: 3, not <= 2", changed]
    forge(folder, lambda chain: set_check(chain, "check_sft", status="passed"))
    assert any("loss: (3.0,) is not <= 2.0, so it has not passed" in fault for fault in faults(folder))


def test_only_the_run_record_knows_of_a_chain_that_is_forged_throughout(finished, folder):
    def elsewhere(chain: dict) -> None:
        link(chain, "fetch_model")["source"]["address"] = "hf://other/base"

    forge(folder, elsewhere)
    assert faults(folder) == []
    source, receipt = faults(folder, storage_root=finished.root)
    assert source == "fetch_model: source in provenance.json differs from the run record"
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert receipt == f"manifest.json: no receipt in {finished.root} names its SHA-256, {sha256}"


def test_a_run_without_a_record_is_said(folder, tmp_path):
    named = faults(folder, storage_root=str(tmp_path / "elsewhere"))
    assert f"train_sft: run run-1 has no record of it in {tmp_path / 'elsewhere'}" in named


def test_a_damaged_record_is_an_error(finished, folder, tmp_path):
    """It may be that of a gate which stopped the run."""
    root = shutil.copytree(finished.root, tmp_path / "root")
    (root / "runs" / "run-1" / "check_sft.2.json").write_text("")
    with pytest.raises(ValueError, match=r"check_sft\.2\.json: is not a record: is empty"):
        faults(folder, storage_root=str(root))


def test_the_receipt_of_another_run_that_finished_the_work_counts(tmp_path):
    line = Line(tmp_path).run()
    receipt = line.publish(str(tmp_path / "published"))
    assert len(faults(receipt["uri"], storage_root=line.root)) == 1
    line.run_id = "run-2"
    line.step("promote_model", {}, ["receipt"], measured=receipt)
    Path(line.root, "runs", "run-2", "report.html").write_text("of a run")
    assert len(faults(receipt["uri"], storage_root=line.root)) == 1
    line.step("publish_model", {}, ["receipt"], measured=receipt)
    assert faults(receipt["uri"], storage_root=line.root) == []


def test_another_base_or_data_set_than_the_run_read_is_said(finished, folder, tmp_path):
    base = shutil.copytree(finished.base, tmp_path / "base")
    (base / "notes.txt").write_text("which nobody fetches")
    assert faults(folder, base=str(base)) == []
    (base / "config.json").write_text("{}")
    (tmp_path / "sft.jsonl").write_text("{}")
    first, second = faults(folder, base=str(base), data=(str(tmp_path / "sft.jsonl"),))
    assert first.startswith(f"{base}: the chain did not begin with it: its SHA-256 is ")
    assert first.endswith(f"; fetch_model read {digests.digest(finished.path('fetch_model', 'model'))}")
    assert second.endswith(f"; prepare_sft_data read {digests.digest(finished.data)}")


def test_a_base_that_is_no_model_is_an_error_on_one_line(folder, tmp_path, capsys):
    assert verify.main([str(folder), "--base", str(tmp_path)]) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path}: no model.safetensors and no model.safetensors.index.json; "
        "save the model with save_pretrained (safetensors)"
    ]


def test_what_the_hub_adds_is_no_fault(folder):
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert faults(folder) == []


def test_text_of_a_forger_reaches_the_terminal_as_text(folder, capsys):
    forge(folder, lambda chain: link(chain, "fetch_model")["source"].update(address="\x1b[2Jverified"))
    verify.main([str(folder)])
    assert "\x1b" not in capsys.readouterr().out


def test_a_copy_of_one_of_several_data_sets_is_known(finished, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("rows")
    parts = tuple(
        provenance.Weighted(address=str(number), sha256=sha256, weight=1.0)
        for number, sha256 in enumerate((OTHER, digests.digest(file)))
    )
    mixed = provenance.Mixture(address="two", sha256="d" * 64, parts=parts)
    chain = provenance.Provenance.model_validate_json((published(finished) / "provenance.json").read_bytes())
    links = [one.model_copy(update={"source": mixed}) if one.step == "prepare_sft_data" else one for one in chain.links]
    chain = chain.model_copy(update={"links": tuple(links)})
    assert verify.source_faults(chain, base=None, data=(str(file),)) == []
    file.write_text("others")
    (fault,) = verify.source_faults(chain, base=None, data=(str(file),))
    named = {"prepare_sft_data": "d" * 64, "prepare_sft_data: 1": OTHER, "prepare_sft_data: 2": parts[1].sha256}
    assert all(f"{name} read {sha256}" in fault for name, sha256 in named.items())
    assert "fetch_model" not in fault  # which read no data
