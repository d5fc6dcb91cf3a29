import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from posttrain import publish, storage
from posttrain.config import PublishStep
from posttrain.pages import card
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer, to_jsonl
from posttrain.step import digests, published, records
from posttrain.step.provenance import Source
from posttrain.storage import layout
from posttrain.verdict import at_least, at_most, holds
from posttrain.verify import verify
from posttrain.weights.folder import source_digest
from tests.posttrain.line import GATES, METRICS, Line
from tests.posttrain.publisher import NUM_WRITES

MODEL_FILES = {"config.json", "tokenizer.json", "model.safetensors"}
FILES = MODEL_FILES | {"README.md", "provenance.json", "SHA256SUMS", "manifest.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a line that has run to its end. Read only."""
    return Line(tmp_path_factory.mktemp("finished")).run().folder


@pytest.fixture
def line(finished: Path, tmp_path: Path) -> Line:
    """A copy of the finished line, which a test may change and judge again."""
    line = Line(shutil.copytree(finished, tmp_path / "line"))
    base, model = line.path("fetch_model", "model"), line.model
    line.taken["check_sft"] = {"base": base, "adapter": line.path("train_sft", "adapter")}
    line.taken["check_safety"] = {"before": base, "model": model, "red_team_prompts": line.prompts}
    return line


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "published")


def refused(line: Line, place: str, words: str, **settings) -> None:
    with pytest.raises(ValueError, match=words):
        line.publish(place, **settings)
    assert storage.list_files(place) == []


def test_published_folder_is_the_model_with_card_chain_sums_and_manifest(line, place):
    receipt = line.publish(place)
    folder, sha256 = Path(receipt["uri"]), digests.digest(line.model)
    assert folder == Path(place, "m", sha256[:12])
    assert (receipt["sha256"], receipt["run_id"]) == (sha256, "run-1")
    assert receipt["manifest_sha256"] == digests.digest(folder / "manifest.json")
    assert receipt["size_gb"] == round(sum(file.stat().st_size for file in line.model.iterdir()) / 1e9, 6)
    assert set(storage.list_files(folder)) == FILES
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: digests.digest(folder / name) for name in FILES - {"SHA256SUMS", "manifest.json"}
    }
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_the_chain_reaches_from_the_sources_to_the_model(line, place):
    chain = json.loads(Path(line.publish(place)["uri"], "provenance.json").read_text())
    links = {link["step"]: link for link in chain["links"]}
    assert list(links)[-1] == "publish_model"
    assert links.keys() == {
        "fetch_model", "prepare_sft_data", "check_data", "train_sft", "check_sft", "merge_sft", "check_safety",
        "publish_model",
    }  # fmt: skip
    assert links["fetch_model"]["source"] == {
        "address": "hf://acme/base", "commit": "c0ffee", "sha256": links["fetch_model"]["outputs"]["model"],
        "licence": "",
    }  # fmt: skip
    assert links["prepare_sft_data"]["source"]["sha256"] == digests.digest(line.data)
    assert links["train_sft"]["inputs"]["train"] == links["prepare_sft_data"]["outputs"]["train"]
    assert links["train_sft"]["config"]["epochs"] > 0
    assert links["train_sft"]["code"]["libraries"]["trl"] == "1.14.2"
    assert links["check_safety"]["verdict"]["passed"] is True
    assert chain["sha256"] == links["merge_sft"]["outputs"]["model"] == digests.digest(line.model)


def test_card_shows_sources_steps_and_what_each_gate_measured(line, place):
    card = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "| `fetch_model` | `hf://acme/base@c0ffee` |" in card
    assert "\nbase_model: acme/base\n" in card
    assert f"`{digests.digest(line.data)}`" in card
    assert f"`{digests.digest(line.model)}`" in card
    assert "### check_safety: passed" in card
    assert "| `loss` | 1 | ≤ 2 | 0.9 to 1.1 | a \\| b |" in card


def asked(number: int) -> AnsweredPrompt:
    model = ModelAnswer(text=f"answer {number} <b> | *", stopped=True, score=number % 2)
    prompt = [{"role": "user", "content": f"question {number}"}]
    return AnsweredPrompt(source="held-out prompt", prompt=prompt, references=[f"r{number}"], base=None, model=model)


NUMBERS = {"num_answers": 8.0, "answer_accuracy": 0.5, "base_answer_accuracy": 0.0}


def test_card_shows_the_first_five_answers_that_the_model_was_judged_by(line, place):
    line.judge("check_safety", answers=to_jsonl(map(asked, range(8))), claims={"numbers": NUMBERS})
    card = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "**50 % of 8 held-out answers are right; the base 0 %.**" in card
    assert "The first 5 of the 8 held-out prompts" in card
    assert "\n| prompt | counts as right | SFT |\n|---|---|---|\n| question 0 | r0 |" in card
    assert "| answer 0 &lt;b&gt; \\| \\*<br>_wrong_ |" in card
    assert "| question 4 |" in card and "question 5" not in card


def test_only_answers_to_held_out_prompts_are_on_the_card(line, place):
    """Those to red-team prompts are in the report, which is not published."""
    rows = [asked(0), asked(1).model_copy(update={"source": "red-team prompt"}), asked(2)]
    line.judge("check_safety", answers=to_jsonl(rows), claims={"numbers": NUMBERS})
    card = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "| question 0 |" in card and "| question 2 |" in card and "question 1" not in card


def test_answers_that_are_not_those_of_the_verdict_are_not_on_the_card(line, place):
    line.judge("check_safety", answers=to_jsonl(map(asked, range(8))), claims={"numbers": NUMBERS})
    (kept,) = Path(line.root).glob("results/check_safety/*/*/answers")
    kept.write_text(to_jsonl(map(asked, range(8, 16))))
    card = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "## Answers" not in card and "question" not in card


def test_the_card_says_which_checkpoint_was_kept_unless_its_metrics_were_changed(line, place):
    kept = Path(line.root, "kept", "metrics")
    kept.parent.mkdir()
    kept.write_text(METRICS)
    line.edit("train_sft", kept="kept")
    card = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "## Training\n\n- `train_sft` kept step 4 of 8: best of 2 checkpoints.\n\n## Sources" in card
    kept.write_text(METRICS.replace("4", "5"))
    assert "kept step" not in Path(line.publish(place, version="v2")["uri"], "README.md").read_text()


def test_answers_of_a_gate_that_judged_another_model_are_not_on_the_card(line, place):
    line.judge("check_sft", answers=to_jsonl(map(asked, range(8))), claims={"numbers": NUMBERS})
    assert "## Answers" not in Path(line.publish(place)["uri"], "README.md").read_text()


def test_card_names_the_limits_that_are_weaker_than_the_defaults(line, place):
    line.judge("check_safety", checks=(at_most("chosen_drop", 1.0, 5.0),))
    card = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "weaker than the defaults: `chosen_drop` ≤ 5 (default ≤ 0.5)." in card


def test_the_hub_reads_base_licence_data_sets_and_results_in_the_card(line, place):
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    told = {"source": "hf://acme/base", "commit": "c0ffee", "digest": source_digest(line.base)}
    line.edit("fetch_model", measured=told | {"licence": "cc-by-nc-4.0"})
    told = {"source": "hf://acme/calls", "commit": "", "digest": digests.digest(line.data)}
    line.edit("prepare_sft_data", measured=told)
    checks = (
        at_most("loss", 1.0, 2.0, interval=(0.9, 1.1)),
        at_most("size_deviation", 0.0, 0.02),  # of no rows
        at_least("no_harmful_content", 0.9, 0.5, interval=(0.8, 1.0)),
    )
    answers = to_jsonl(map(asked, range(8)))
    line.judge("check_safety", answers=answers, claims={"numbers": NUMBERS}, checks=checks)
    text = Path(line.publish(place)["uri"], "README.md").read_text()
    data = ModelCard(text).data
    assert model_index_to_eval_results(yaml.safe_load(text.split("---")[1])["model-index"])[0] == data.model_name == "m"
    assert (data.base_model, data.base_model_relation, data.license) == ("acme/base", "finetune", "cc-by-nc-4.0")
    assert (data.datasets, data.pipeline_tag, data.library_name) == (["acme/calls"], "text-generation", "transformers")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"right_answers": 0.5, "loss": 1.0, "no_harmful_content": 0.9}
    asked_of = {result.metric_type: result.dataset_name for result in data.eval_results}
    rows = "held-out rows, judged by check_safety"
    asked_harm = "red-team prompts, judged by check_safety"
    assert asked_of == {"right_answers": rows, "loss": rows, "no_harmful_content": asked_harm}
    assert "- 50 % of those answers were wrong." in text
    assert "- Its base model is under cc-by-nc-4.0, which forbids commercial use." in text
    assert "It was trained on no row longer than 2,048 tokens." in text


@pytest.mark.parametrize(("kind", "question"), [("transformers", "question 0"), ("peft", "Hello")])
def test_the_snippet_is_python_and_names_the_prompt(kind, question, line, place):
    if kind == "peft":
        (line.model / "adapter_config.json").write_text("{}")
        line.step("merge_sft", {"base": line.path("fetch_model", "model")}, ["model"])
        line.judge("check_safety")
    else:
        line.judge("check_safety", answers=to_jsonl(map(asked, range(8))), claims={"numbers": NUMBERS})
    text = Path(line.publish(place)["uri"], "README.md").read_text()
    snippet = text.partition("```python\n")[2].partition("```")[0]
    compile(snippet, "snippet", "exec")
    assert f'"content": "{question}"' in snippet and f"from {kind} import" in snippet
    assert '"."' in snippet


def test_a_base_of_unknown_licence_is_named_and_its_text_carried(line, place):
    (line.model / "LICENSE").write_text("terms")
    line.step("merge_sft", {"base": line.path("fetch_model", "model")}, ["model"])
    line.judge("check_safety")
    text = Path(line.publish(place)["uri"], "README.md").read_text()
    assert "license: other\nlicense_name: of-the-base-model\nlicense_link: LICENSE\n" in text
    assert "names no licence that is known here" in text and "Its text: `LICENSE`." in text


def test_an_adapter_is_called_one(line, place):
    (line.model / "adapter_config.json").write_text("{}")
    line.step("merge_sft", {"base": line.path("fetch_model", "model")}, ["model"])
    line.judge("check_safety")
    assert "library_name: peft\n" in Path(line.publish(place)["uri"], "README.md").read_text()


def test_same_model_again_is_fine(line, place):
    first = line.publish(place)
    assert line.publish(place) == first


def flip(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "model.safetensors: was changed"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: is missing"),
        (lambda folder: (folder / "modeling_x.py").write_text("import os"), "modeling_x.py: was added"),
        (lambda folder: (folder / "chat").symlink_to(folder.parent), "chat: was added: it leads out"),
        (lambda folder: (folder / "README.md").write_text("# Better"), "README.md: was changed"),
        (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json: is empty; remove the folder"),
    ],
)
def test_a_published_version_that_is_not_what_was_published_gets_no_receipt(damage, words, line, place):
    damage(Path(line.publish(place, version="v1")["uri"]))
    with pytest.raises(ValueError, match=words):
        line.publish(place, version="v1")


def test_a_version_that_lies_under_another_name_gets_no_receipt(line, place):
    shutil.copytree(line.publish(place, version="v1")["uri"], Path(place, "m/v2"))
    with pytest.raises(ValueError, match=r"m/v2: is not what was published there: .*version is 'v1', not 'v2'"):
        line.publish(place, version="v2")


def test_a_file_added_to_what_a_killed_publisher_left_gets_no_receipt(line, place, publisher):
    publisher(line, place, "--die-after", 3).communicate()
    Path(place, "m/v0/modeling_x.py").write_text("import os")
    with pytest.raises(ValueError, match=r"modeling_x\.py: was added"):
        line.publish(place, version="v0")


def test_a_claim_that_is_empty_is_an_error_with_its_file_and_a_remedy(line, place):
    storage.write_bytes(storage.join(place, "m/v1/PUBLISHING.json"), b"")
    with pytest.raises(ValueError, match=r"m/v1/PUBLISHING\.json: is empty; remove the folder of this version"):
        line.publish(place, version="v1")


def test_only_what_was_not_just_written_is_read_again(line, place, monkeypatch):
    monkeypatch.setattr(published, "_digest", lambda uri: pytest.fail(f"{uri}: was read"))
    line.publish(place)


def test_another_model_under_the_same_version_is_refused(line, place, tmp_path):
    receipt = line.publish(place, version="v1")
    with pytest.raises(ValueError, match="m/v1: is another model"):
        Line(tmp_path / "other", seed="other").run().publish(place, version="v1")
    assert (line.publish(place, version="v1"), verify(receipt["uri"]).faults) == (receipt, [])


def test_a_folder_with_files_of_nobody_is_refused(line, place):
    stranger = Path(place, "m/v1/model-00001-of-00002.safetensors")
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"x")
    with pytest.raises(ValueError, match="contains model-00001-of-00002.safetensors, not part of this model"):
        line.publish(place, version="v1")
    assert storage.list_files(place) == ["m/v1/model-00001-of-00002.safetensors"]


@pytest.mark.parametrize("name", ["README.md", "manifest.json", "PUBLISHING.json"])
def test_a_model_with_a_file_that_publishing_writes_is_refused(line, place, name):
    (line.model / name).write_text("{}")
    refused(line, place, f"{name}: publishing writes a file of this name itself")


@pytest.mark.parametrize("name", ["check_sft.2.json", "check_more.1.json"])
def test_a_damaged_record_of_the_run_is_refused(name, line, place):
    """It may be that of a gate which stopped the run."""
    Path(line.root, "runs", "run-1", name).write_text("")
    refused(line, place, rf"{name}: is not a record: is empty; remove it, and run again what it recorded")


def test_missing_gate_is_refused(line, place):
    words = "gate check_sft_merge: no verdict in this run; publishing needs it"
    refused(line, place, words, required_gates=[*GATES, "check_sft_merge"])


LOSS = {"detail": "a | b", "remedy": "Train longer."}


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (at_most("loss", 3.0, 2.0, **LOSS), r"did not pass: loss: 3, not <= 2 \(a \| b\)\. Train longer\."),
        (at_most("loss", None, 2.0, **LOSS), r"did not pass: loss: no number, not <= 2"),
        (at_most("loss", float("nan"), 2.0, **LOSS), r"did not pass: loss: .* \(measured nan; a \| b\)"),
        (
            at_most("loss", 1.9, 2.0, interval=(1.5, 2.5), more_rows=40),
            "is undecided: loss: 1.9, limit <= 2: the interval 1.5 to 2.5 crosses",
        ),
    ],
)
def test_a_gate_that_did_not_pass_is_refused_with_its_check(check, words, line, place):
    line.judge("check_sft", checks=(check, holds("finite", True)))
    refused(line, place, f"^gate check_sft: {words}")


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"passed": True}, "did not pass: loss: 3"),
        ({"passed": True, "outcome": "passed"}, "did not pass: loss: 3"),
        ({"passed": True, "outcome": "passed", "checks": []}, "cannot be read: .*checks"),
        ({"passed": True, "checks": [{"name": "loss", "status": "PASS"}]}, "cannot be read: .*checks"),
    ],
)
def test_what_a_verdict_claims_does_not_count(claim, words, line, place):
    line.judge("check_sft", checks=(at_most("loss", 3.0, 2.0),), claims=claim)
    refused(line, place, f"^gate check_sft: its verdict {words}" if "read" in words else f"^gate check_sft: {words}")


def test_the_verdict_of_another_gate_is_refused(line, place):
    line.judge("check_sft", claims={"gate": "check_data"})
    refused(line, place, "gate check_sft: its verdict is that of check_data")


def test_a_verdict_on_what_this_run_did_not_make_is_refused(line, place, tmp_path):
    (tmp_path / "adapter").write_text("of another run")
    line.judge("check_sft", {"adapter": tmp_path / "adapter"})
    refused(line, place, "check_sft: its adapter [0-9a-f]{64} is not an output")


@pytest.mark.parametrize("subject", [{}, {"adapter": "c" * 64}])
def test_a_verdict_on_something_else_than_the_gate_took_is_refused(subject, line, place):
    line.judge("check_sft", claims={"subject": subject})
    refused(line, place, "gate check_sft: its verdict is not about the gate's inputs")


def test_a_gate_that_judged_another_model_of_the_run_is_refused(line, place):
    base = line.path("fetch_model", "model")
    line.judge("check_safety", {"model": base})
    refused(line, place, f"gate check_safety: judged model {digests.digest(base)}, not")


def test_model_changed_after_the_verdict_is_refused(line, place):
    (line.model / "model.safetensors").write_bytes(b"tampered")
    refused(line, place, r"publish_model: its model .* is not an output .* \| gate check_safety: judged model")


@pytest.mark.parametrize(
    ("step", "changes", "words"),
    [
        ("train_sft", {"config": {"epochs": 9}}, "train_sft: its fingerprint does not match its configuration"),
        ("train_sft", {"code": None}, "train_sft: its record does not say which code ran"),
        ("prepare_sft_data", {"measured": {}}, "prepare_sft_data: has no inputs and names no source"),
        ("prepare_sft_data", {"status": "failed"}, "train_sft: its train [0-9a-f]{64} is not an output"),
        ("merge_sft", {"outputs": {}}, "check_safety: its model [0-9a-f]{64} is not an output"),
        ("check_data", {"outputs": {"verdict": "0" * 64}}, "gate check_data: its verdict was changed"),
    ],
)
def test_a_broken_chain_is_refused(step, changes, words, line, place):
    line.edit(step, **changes)
    refused(line, place, words)


@pytest.mark.parametrize("gates", [{"required_gates": [], "judged_gates": []}, {"judged_gates": ["check_other"]}])
def test_publishing_without_a_gate_on_the_model_is_refused(gates, line, place):
    refused(line, place, "judged_gates", **gates)


def test_names_cannot_leave_the_publish_root(line, place):
    refused(line, place, "version: '../x' is not a name", version="../x")


@pytest.mark.parametrize("version", ["v1/x", "v1\n", "v1 ", ".v1", "a" * 97])
def test_a_version_is_a_name_from_its_first_sign_to_its_last(version, line, place):
    refused(line, place, r"^version: '.*' is not a name", version=version)


def test_hub_upload_without_token_is_refused_before_anything_is_published(line, place, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    refused(line, place, "HF_TOKEN", upload_to_hub=True, hub_repo_id="o/m")


@pytest.fixture
def publisher() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a publisher in a process of its own."""
    with ExitStack() as running:

        def start(line: Line, root: str, *flags: str | Path | int) -> subprocess.Popen:
            command = [sys.executable, "-m", "tests.posttrain.publisher", line.folder, line.run_id, root, *flags]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = running.enter_context(subprocess.Popen(list(map(str, command)), **pipes))
            running.callback(process.kill)
            return process

        yield start


def whole(target: str) -> bool:
    """Tells whether a reader finds a manifest there; it must be with all its files, and all as they should be."""
    if not storage.exists(storage.join(target, "manifest.json")):
        return False
    assert [fault for fault in verify(target).faults if not fault.startswith("PUBLISHING.json: was added")] == []
    return True


KILLED = [("local", number) for number in range(1, NUM_WRITES + 1)] + [("gs", number) for number in (1, 3, 8)]


@pytest.mark.parametrize(("root", "num_writes"), KILLED, indirect=["root"])
def test_a_second_publisher_finishes_what_a_killed_one_began(root, num_writes, line, publisher):
    killed = publisher(line, root, "--die-after", num_writes)
    assert (killed.communicate()[0], killed.returncode) == ("", -9)
    target = storage.join(root, "m", "v0")
    assert whole(target) is (num_writes >= NUM_WRITES - 1)
    if num_writes == NUM_WRITES - 1:
        assert any("PUBLISHING.json: was added" in fault for fault in verify(target).faults)
    line.publish(root, version="v0")
    assert (verify(target).faults, set(storage.list_files(target))) == ([], FILES)


def test_a_file_that_changes_while_it_is_published_is_not_published(line, place, monkeypatch):
    claim = publish._claim

    def meanwhile(*arguments) -> publish.Claim:
        (line.model / "model.safetensors").write_text("other weights")
        return claim(*arguments)

    monkeypatch.setattr(publish, "_claim", meanwhile)
    with pytest.raises(ValueError, match=r"model\.safetensors: is not the file that was judged"):
        line.publish(place, version="v0")
    assert publish.read_manifest(storage.join(place, "m", "v0")) is None


def test_a_file_that_goes_while_it_is_published_is_not_published(line, place, monkeypatch):
    claim = publish._claim

    def meanwhile(*arguments) -> publish.Claim:
        (line.model / "tokenizer.json").unlink()
        return claim(*arguments)

    monkeypatch.setattr(publish, "_claim", meanwhile)
    with pytest.raises(ValueError, match=r"tokenizer\.json: is not the file that was judged"):
        line.publish(place, version="v0")
    assert publish.read_manifest(storage.join(place, "m", "v0")) is None


def test_a_killed_publisher_keeps_its_version_from_another_model(line, place, publisher, tmp_path):
    publisher(line, place, "--die-after", 3).communicate()
    with pytest.raises(ValueError, match=r"another model \([0-9a-f]{64}\) is being published there, or was"):
        Line(tmp_path / "other", seed="other").run().publish(place, version="v0")
    line.publish(place, version="v0")
    assert whole(storage.join(place, "m", "v0"))


def test_a_killed_publisher_keeps_its_version_from_other_exported_files(line, place, publisher):
    """They are of the same model, and its manifest names none of them."""
    publisher(line, place, "--die-after", 3).communicate()
    line.export()
    with pytest.raises(ValueError, match="another model .* is being published there"):
        line.publish(place, version="v0", **WITH_EXPORT)


def test_another_publisher_of_the_same_model_may_be_faster(line, place, monkeypatch, caplog):
    """Both write the same manifest: the claim has fixed it."""
    write = storage.write_bytes

    def second(uri: str, content: bytes, **how: bool) -> None:
        if uri.endswith("manifest.json"):
            write(uri, content)
        write(uri, content, **how)

    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", second)
        receipt = line.publish(place)
    assert f"{receipt['uri']}: another publisher of the same model was faster" in caplog.text
    assert verify(receipt["uri"]).faults == []


def test_the_claim_of_another_publisher_of_the_same_model_is_no_fault(line, place, monkeypatch):
    """It claims the version that is just done, and removes its claim at once."""
    check = publish._check_same

    def meanwhile(target: str, *arguments) -> None:
        storage.write_bytes(storage.join(target, "PUBLISHING.json"), b"{}")
        check(target, *arguments)

    monkeypatch.setattr(publish, "_check_same", meanwhile)
    assert line.publish(place)["sha256"] == digests.digest(line.model)


NUM_ROUNDS = 8


def race(lines: list[Line], root: str, start: Callable[..., subprocess.Popen], go: Path) -> list[list[str]]:
    """Lets the runs publish round after round at the same moment, version by version, while a reader looks on.

    Gives what came to each: `published`, or the error, by round.
    """
    go.mkdir()
    racing = [start(line, root, "--go", go, "--rounds", NUM_ROUNDS) for line in lines]
    for number in range(NUM_ROUNDS):
        wait_for(lambda n=number: all((go / f"{line.run_id}-{n}").exists() for line in lines), racing)
        (go / str(number)).touch()
        wait_for(lambda n=number: whole(storage.join(root, "m", f"v{n}")), racing)
    outputs = [process.communicate() for process in racing]
    assert [process.returncode for process in racing] == [0, 0], outputs
    return [output.splitlines() for output, _ in outputs]


def wait_for(condition: Callable[[], bool], racing: list[subprocess.Popen]) -> None:
    is_racing = True
    while not condition():
        assert is_racing, [process.communicate() for process in racing]
        codes = [process.poll() for process in racing]
        assert not any(codes), [process.communicate() for process in racing if process.poll()]
        is_racing = None in codes


def test_two_publishers_of_the_same_model_both_succeed(root, publisher, tmp_path):
    lines = [Line(tmp_path / run_id, run_id=run_id).run() for run_id in ("run-1", "run-2")]
    assert race(lines, root, publisher, tmp_path / "go") == [["published"] * NUM_ROUNDS] * 2
    for number in range(NUM_ROUNDS):
        target = storage.join(root, "m", f"v{number}")
        assert (verify(target).faults, set(storage.list_files(target))) == ([], FILES)


def test_of_two_publishers_of_different_models_one_is_refused(root, publisher, tmp_path):
    lines = [Line(tmp_path / run_id, run_id=run_id, seed=run_id).run() for run_id in ("run-1", "run-2")]
    outcomes = race(lines, root, publisher, tmp_path / "go")
    for number, told in enumerate(zip(*outcomes, strict=True)):
        target = storage.join(root, "m", f"v{number}")
        verified = verify(target)
        assert (verified.faults, set(storage.list_files(target))) == ([], FILES)
        (winner,) = (line for line, outcome in zip(lines, told, strict=True) if outcome == "published")
        assert verified.manifest.sha256 == digests.digest(winner.model)
        assert sum("another model" in outcome for outcome in told) == 1


class Hub(BaseHTTPRequestHandler):
    """The answers of the Hub that an upload of small files needs."""

    requests: list[tuple[str, list[dict]]] = []
    has_repository = False
    files = [".gitattributes"]  # in the repository

    def do_GET(self):
        files = [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in self.files]
        self.answer(files, status=200 if self.path.startswith("/api/models/org/m/tree/main") else 404)

    def do_POST(self):
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        body = [json.loads(line) for line in lines]
        self.requests.append((self.path, body))
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/org/m", "name": "org/m"}
        elif self.path.startswith("/api/models/org/m/preupload/"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in body[0]["files"]
            ]
            answer = {"files": files}
        else:
            answer = {"commitUrl": f"http://{self.headers['Host']}/org/m/commit/c0ffee", "commitOid": "c0ffee"}
        self.answer(answer, status=409 if self.has_repository and self.path == "/api/repos/create" else 200)

    def answer(self, answer: dict | list, *, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_gets_one_commit_in_a_private_repository(line, place, hub):
    receipt = line.publish(place, upload_to_hub=True, hub_repo_id="org/m")
    assert receipt["hub"] == {"repo_id": "org/m", "commit": "c0ffee"}
    created = next(body[0] for path, body in hub.requests if path == "/api/repos/create")
    assert created["visibility"] == "private"
    (commit,) = [body for path, body in hub.requests if "/commit/" in path]
    assert {line["value"]["path"] for line in commit if line["key"] == "file"} == FILES


def test_a_repository_that_exists_holds_nothing_else_after_the_commit(line, place, hub, monkeypatch):
    """Shards of a larger model, and code, that an earlier version or somebody else left there."""
    left = ["chat_templates/tool_use.jinja", "model-00001-of-00002.safetensors", "modeling_x.py"]
    monkeypatch.setattr(hub, "has_repository", True)
    monkeypatch.setattr(hub, "files", [".gitattributes", "config.json", *left])
    assert line.publish(place, upload_to_hub=True, hub_repo_id="org/m")["hub"]["commit"] == "c0ffee"
    (commit,) = [body for path, body in hub.requests if "/commit/" in path]
    assert [line["value"]["path"] for line in commit if line["key"] == "deletedFile"] == left
    assert {line["value"]["path"] for line in commit if line["key"] == "file"} == FILES


def test_a_hub_that_is_away_loses_nothing_and_a_second_run_uploads(line, place, monkeypatch, caplog, hub):
    endpoint = os.environ["HF_ENDPOINT"]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", away)
    receipt = line.publish(place, upload_to_hub=True, hub_repo_id="org/m")
    assert verify(receipt["uri"]).faults == []
    assert "not uploaded to the Hub: hub_repo_id: 'org/m': the Hub does not answer" in receipt["hub"]["error"]
    assert receipt["hub"]["error"] in caplog.text and "hf_secret" not in caplog.text
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    again = line.publish(place, upload_to_hub=True, hub_repo_id="org/m")
    assert (again["hub"]["commit"], again["manifest_sha256"]) == ("c0ffee", receipt["manifest_sha256"])


@pytest.fixture
def command(line, place, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Publishes by the command, and gives the receipt's file."""
    monkeypatch.setenv("KFP_RUN_ID", "run-1")

    def command(**values) -> Path:
        receipt = tmp_path / "out/receipt.json"
        settings = PublishStep(publish_root=place, required_gates=GATES, judged_gates=["check_safety"], **values)
        publish.main([
            "--step", "publish_model", "--storage-root", line.root, "--config", settings.model_dump_json(),
            "--model", str(line.model), "--model-name", "m", "--receipt", str(receipt),
        ])  # fmt: skip
        return receipt

    return command


def test_command_writes_receipt_and_record_each_time(line, command):
    for _ in range(2):  # it looks at what is published, and reuses no record of it
        assert json.loads(command().read_text())["sha256"] == digests.digest(line.model)
    assert [done.status for done in records.read_records(line.root, "run-1")][-2:] == ["succeeded", "succeeded"]


@pytest.mark.parametrize(
    ("settings", "is_kept"),
    [
        ({"save_intermediate": False, "promote": False}, False),
        ({"save_intermediate": False, "promote": True}, True),  # until the version is current
        ({"save_intermediate": True, "promote": False}, True),
    ],
)
def test_the_last_step_of_a_run_removes_its_checkpoints_if_asked(settings, is_kept, line, command):
    checkpoint = Path(
        layout.checkpoints(line.root, "train_sft", "f", "step-00000001", "run-1-0123abcd", "COMPLETE.json")
    )
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    command(**settings)
    assert checkpoint.exists() is is_kept


def test_what_the_command_must_be_told(capsys):
    with pytest.raises(SystemExit):
        publish.build_parser().parse_args([])
    (needed,) = capsys.readouterr().err.partition("arguments are required: ")[2].splitlines()
    assert {"--model", "--model-name", "--receipt"} <= set(needed.split(", ")) and "--version" not in needed


@pytest.mark.parametrize(("length", "is_cut"), [(300, False), (301, True)])
def test_long_texts_are_cut_on_the_card(length, is_cut):
    assert (card._brief("a" * length) != "a" * length) is is_cut


@pytest.mark.parametrize("address", ["gs://b/x` [click](https://evil.example)", "` gs://b/x", "gs://b/x\ny"])
def test_an_address_that_would_break_out_of_code_is_escaped(address):
    assert not card._address(Source(address=address, sha256="")).startswith("`")
    assert card._address(Source(address="gs://b/x", sha256="")) == "`gs://b/x`"


WITH_EXPORT = {"required_gates": [*GATES, "check_export"]}


def test_exported_files_are_published_beside_the_model(line, place):
    export = line.export()
    receipt = line.publish(place, **WITH_EXPORT)
    folder = Path(receipt["uri"])
    assert folder.name == f"{digests.digest(line.model)[:12]}-{digests.digest(export)[:6]}"
    assert {name for name in storage.list_files(folder) if "/" in name} == {f"export/{name}" for name in MODEL_FILES}
    assert verify(str(folder)).faults == []
    (folder / "export" / "config.json").write_text("other")
    assert any("export/config.json: was changed" in fault for fault in verify(str(folder)).faults)


def test_a_manifest_that_names_other_exported_files_is_seen(line, place):
    line.export()
    folder = Path(line.publish(place, **WITH_EXPORT)["uri"])
    (folder / "export" / "config.json").write_text("other")
    manifest = published.read_manifest(str(folder))
    files = manifest.files | {"export/config.json": digests.digest(folder / "export" / "config.json")}
    forged = manifest.model_copy(update={"files": files})
    (folder / "manifest.json").write_bytes(forged.json_bytes)
    (folder / "SHA256SUMS").write_text(forged.sums)
    (fault,) = verify(str(folder)).faults
    assert "its files below export/ are not those of provenance.json" in fault


def test_exported_files_without_a_verdict_on_them_are_not_published(line, place):
    line.export()
    refused(line, place, "gate check_export: no verdict on the exported files")


def test_a_verdict_on_other_exported_files_publishes_nothing(line, place):
    export = line.export()
    other = shutil.copytree(line.base, export.parent / "other")
    line.judge("check_export", {"model": line.model, "export": other})
    refused(line, place, "judged other files than those that are published", **WITH_EXPORT)
