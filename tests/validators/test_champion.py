"""A published model is made current unless it is worse than the version that is, on the same held-out rows."""

import json
from pathlib import Path

import pytest

from examples.task_api.generate import DECLINE
from posttrain import make_current, promote, storage
from posttrain.config import RUN_ID_ENV, ChampionLimits, CheckChampionStep, PromoteStep
from posttrain.pages import answers
from posttrain.publish import Manifest
from posttrain.step import digests
from posttrain.step.provenance import Link, Provenance
from posttrain.storage import layout
from posttrain.verdict import Verdict
from validators import champion, content

LIMITS = {
    "answer_match": "exact", "num_generated_answers": 16, "max_new_tokens": 16, "max_drop_from_published": 0.3,
}  # fmt: skip


def publish(root: Path, model: Path, version: str) -> dict:
    """The files, the manifest and the receipt of a published version of `m`."""
    target = root / "published" / "m" / version
    files = storage.upload_folder(model, target)
    sha256 = digests.folder_digest(files)
    manifest = Manifest(
        model_name="m", version=version, sha256=sha256, run_id="r0", published_at="2026-01-01T00:00:00+00:00",
        files=files,
    )  # fmt: skip
    (target / "manifest.json").write_text(manifest.model_dump_json())
    bound = {"sha256": sha256, "manifest_sha256": digests.digest(target / "manifest.json")}
    return {"model_name": "m", "version": version, "uri": str(target)} | bound


def crown(root: Path, receipt: dict, number: int = 1, **changes) -> promote.Promotion:
    """Writes the promotion alone, without the checks."""
    promotion = promote.Promotion(
        number=number, model_name="m", version=receipt["version"], sha256=receipt["sha256"],
        promoted_at="2026-01-01T00:00:00+00:00", by="r0", reason="first",
    ).model_copy(update=changes)  # fmt: skip
    folder = str(root / "published" / "m")
    storage.write_bytes(layout.promotions(folder, f"{number:06}.json"), promotion.json_bytes)
    return promotion


@pytest.fixture
def judge(tmp_path, declining_rows, monkeypatch):
    """A function that publishes a challenger and gives the verdict of the gate on it."""
    monkeypatch.setenv(RUN_ID_ENV, "r1")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in declining_rows[:24]))

    def verdict_of(model: Path, **limits) -> Verdict:
        receipt = tmp_path / "receipt.json"
        receipt.write_text(json.dumps(publish(tmp_path, model, "challenger")))
        step = CheckChampionStep.model_validate({"validation": LIMITS | limits})
        outputs = ("verdict", "report", "summary", "answers", "metrics", "passed")
        champion.main(
            [
                "--step", "check_champion", "--storage-root", str(tmp_path), "--config", step.model_dump_json(),
                "--receipt", str(receipt), "--model", str(model), "--sft-eval", str(rows),
                *(part for name in outputs for part in (f"--{name}", str(tmp_path / name))),
            ]
        )  # fmt: skip
        return Verdict.read((tmp_path / "verdict").read_bytes())

    return verdict_of


@pytest.fixture
def nothing_loads(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was asked for")

    monkeypatch.setattr(champion, "compare", refuse)


def test_the_first_version_passes_without_a_comparison(judge, untaught, nothing_loads):
    verdict = judge(untaught)
    assert verdict.passed
    assert [check.detail for check in verdict.checks] == ["no version of this name was current before"]
    assert verdict.numbers[make_current.FOLLOWS] == 0


def test_the_same_model_passes_without_a_comparison(judge, tmp_path, untaught, nothing_loads):
    crown(tmp_path, publish(tmp_path, untaught, "v1"))
    verdict = judge(untaught)
    assert verdict.passed
    assert [check.detail for check in verdict.checks] == ["the current version, v1, is this very model"]


def test_a_run_does_not_undo_that_somebody_rolled_back(judge, tmp_path, untaught, declining_model, nothing_loads):
    first, second = publish(tmp_path, untaught, "v1"), publish(tmp_path, declining_model, "v2")
    for number, receipt in enumerate([first, second, first], start=1):
        crown(tmp_path, receipt, number, by="ann", reason="v2 is rude")
    (check,) = judge(declining_model).checks
    assert (check.name, check.status) == ("never_current_before", "failed")
    assert check.detail.endswith("by promotion 2, until ann made v1 current: v2 is rude")


@pytest.mark.parametrize(
    ("matcher", "name"), [("exact", "drop_from_published"), ("none", "loss_above_published")]
)  # fmt: skip
def test_a_worse_challenger_fails_and_a_better_one_passes(
    judge, tmp_path, untaught, declining_model, matcher, name
):  # fmt: skip
    """Neither v0, which was current before, nor the newest version, v3, is compared."""
    crown(tmp_path, {"version": "v0", "sha256": "e" * 64})
    crown(tmp_path, publish(tmp_path, declining_model, "v1"), number=2)
    publish(tmp_path, untaught, "v3")
    worse = judge(untaught, answer_match=matcher)
    assert [(check.name, check.status) for check in worse.checks] == [(name, "failed")]
    assert "above version v1" in worse.checks[0].detail or "below version v1" in worse.checks[0].detail
    assert worse.content_is_unjudged is (matcher == "none")
    crown(tmp_path, publish(tmp_path, untaught, "v1"), number=2)
    better = judge(declining_model, answer_match=matcher)
    assert better.passed
    assert better.numbers[make_current.FOLLOWS] == 2
    rows = answers.read((tmp_path / "answers").read_bytes())
    assert len(rows) == better.numbers["num_answers"] == 16
    assert all(row.before.text != row.model.text and row.base is None for row in rows)
    page = (tmp_path / "report").read_text()
    assert "Current" in page and "New" in page and "Aligned" not in page


def _alter(version: Path) -> None:
    (version / "config.json").write_text("{}")


def _lose(version: Path) -> None:
    (version / "config.json").unlink()


def _link_away(version: Path) -> None:
    """Transformers reads chat templates from a folder, wherever it lies."""
    (version / "templates").symlink_to(version.parent)


def _lose_manifest(version: Path) -> None:
    (version / "manifest.json").unlink()


def _garble_manifest(version: Path) -> None:
    (version / "manifest.json").write_text("{}")


def _alter_consistently(version: Path) -> None:
    """Files and manifest agree, and are of another model than the one that was made current."""
    manifest = Manifest.model_validate_json((version / "manifest.json").read_text())
    (version / "config.json").write_text("{}")
    files = manifest.files | {"config.json": digests.digest(version / "config.json")}
    changes = {"files": files, "sha256": digests.folder_digest(files)}
    (version / "manifest.json").write_text(manifest.model_copy(update=changes).model_dump_json())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_alter, ": is not the version that was made current: config.json: was changed: .*"),
        (_lose, ": is not the version that was made current: config.json: is missing, though in manifest.json"),
        (_link_away, ": is not the version that was made current: templates: was added: it leads out of the folder.*"),
        (_lose_manifest, "/manifest.json: is missing, though the version is current"),
        (_garble_manifest, "/manifest.json: is not a manifest, though the version is current"),
        (_alter_consistently, "/manifest.json: names model [0-9a-f]{64}, but [0-9a-f]{64} was made current"),
    ],
)
def test_a_champion_that_is_gone_or_changed_is_not_beaten(
    judge, tmp_path, untaught, declining_model, nothing_loads, change, words
):
    receipt = publish(tmp_path, untaught, "v1")
    crown(tmp_path, receipt)
    change(Path(receipt["uri"]))
    remedy = "; restore it, or make another version current with `python -m posttrain.promote`"
    with pytest.raises(ValueError, match=f"v1{words}{remedy}$"):
        judge(declining_model)
    assert not (tmp_path / "passed").exists()
    with pytest.raises(ValueError, match="check_champion: has no verdict in run r1"):
        make_current.make_current(receipt, storage_root=str(tmp_path), settings=PromoteStep())


@pytest.mark.parametrize(("base", "is_refused"), [("b" * 64, False), ("c" * 64, True), (None, True)])
def test_an_adapter_is_compared_on_its_own_base_alone(tmp_path, base, is_refused):
    words = {"fingerprint": "", "code": None, "config": {}}
    link = Link(step="train_sft", inputs={"base": "b" * 64}, outputs={"a": "a"}, **words)
    other = Link(step="import", inputs={"base": "d" * 64}, outputs={"b": "b"}, **words)  # a step of another model
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "provenance.json").write_text(
        Provenance(run_id="r0", sha256="a", links=(link, other)).model_dump_json()
    )  # fmt: skip
    if is_refused:
        with pytest.raises(ValueError, match="is an adapter for another base than this run's"):
            champion.check_base(tmp_path, base)
    else:
        champion.check_base(tmp_path, base)


def test_the_base_of_a_champion_is_looked_at(judge, tmp_path, declining_model, declining_adapter, nothing_loads):
    target = Path(publish(tmp_path, declining_adapter, "v1")["uri"])
    link = Link(step="train_sft", inputs={"base": "b" * 64}, outputs={"a": "a"}, fingerprint="", code=None, config={})
    (target / "provenance.json").write_text(Provenance(run_id="r0", sha256="a", links=(link,)).model_dump_json())
    manifest = Manifest.model_validate_json((target / "manifest.json").read_text())
    manifest.files["provenance.json"] = digests.digest(target / "provenance.json")
    sha256 = digests.folder_digest(manifest.model_files)
    (target / "manifest.json").write_text(manifest.model_copy(update={"sha256": sha256}).model_dump_json())
    promotion = crown(tmp_path, {"version": "v1", "sha256": sha256})
    assert champion.fetch(promotion, str(target), tmp_path / "elsewhere") == target  # what lies here is not copied
    with pytest.raises(ValueError, match="is an adapter for another base than this run's"):
        judge(declining_model)


def test_an_adapter_answers_on_the_base_of_this_run(untaught, declining_adapter, declining_rows):
    step = CheckChampionStep.model_validate({"validation": LIMITS | {"num_generated_answers": 2}})
    folders = {"base": untaught, "champion": declining_adapter, "model": untaught}
    measurer = champion.Measurer(folders, step, {"sft_eval": declining_rows[:2], "preference_eval": []})
    said = {}
    for name in ("champion", "model"):
        measurer.load(name)
        said |= measurer.answers(name)
    assert [one.answer.text for one in said["champion_answers"]] == [DECLINE] * 2
    assert DECLINE not in [one.answer.text for one in said["model_answers"]]


def test_either_preferences_or_sft_rows(tmp_path, capsys):
    outputs = ("verdict", "report", "summary", "answers", "metrics", "passed")
    flags = ("step", "storage-root", "receipt", "model", *outputs)
    with pytest.raises(SystemExit):
        champion.main([part for name in flags for part in (f"--{name}", str(tmp_path / name))])
    assert "pass --preference-eval, --sft-eval or both" in capsys.readouterr().err


def test_model_and_receipt_are_required(capsys):
    with pytest.raises(SystemExit):
        champion.build_parser().parse_args([])
    assert "--receipt, --model" in capsys.readouterr().err


def test_losses_are_compared_on_the_rows_that_fit_both_models():
    ours = {f"sft_eval {at}": (-30.0, 10) for at in range(12)}
    theirs = {f"sft_eval {at}": (-10.0, 10) for at in range(8, 20)}
    limits = ChampionLimits(answer_match="none", max_loss_above_published=1.0)
    check = champion.loss_check(theirs, ours, limits, version="v1")
    assert (check.value, check.status) == (2.0, "undecided")  # of 4 rows
    assert champion.loss_check(theirs, {"sft_eval 1": (-1.0, 1)}, limits, version="v1").status == "not run"


def test_a_judge_that_cannot_tell_right_from_wrong_decides_nothing():
    limits = ChampionLimits.model_validate({"answer_match": "judge", "match_options": {"judge_model": "/judge"}})
    same = {"before": [0.5] * 64, "model": [0.5] * 64}
    answered = content.Content(references=[[]] * 64, model=None, scores=same, scores_of_wrong=[0.5] * 64)
    drop, discerning = champion.judge(champion.Numbers(), answered, limits, version="v1")
    assert (drop.status, discerning.status) == ("passed", "failed")


def test_promoting_follows_the_verdict_alone(judge, tmp_path, untaught, declining_model):
    """No verdict, one on another model, one that was overtaken, and a failed one."""
    receipt, settings = publish(tmp_path, untaught, "challenger"), PromoteStep()

    def refused(words: str, **changes) -> None:
        with pytest.raises(ValueError, match=words):
            make_current.make_current(receipt | changes, storage_root=str(tmp_path), settings=settings)

    refused("has no verdict in run r1")
    judge(untaught)
    refused("judged model", sha256="c" * 64)
    crown(tmp_path, publish(tmp_path, declining_model, "v1"))
    refused("version v1 by promotion 1 of r0 is current, but the decision was made against promotion 0")
    judge(untaught)
    refused("did not pass in run r1")
    assert promote.current(str(tmp_path / "published" / "m")).version == "v1"


def test_a_signed_champion_and_one_beside_which_a_copy_was_cut_off_are_compared(tmp_path, untaught):
    """The signature is of the version; the part was left by a publisher that was killed, and nothing loads it."""
    folder = Path(publish(tmp_path, untaught, "v1")["uri"])
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    signed = manifest.model_copy(update={"signed_with": "a" * 64})
    (folder / "manifest.json").write_bytes(signed.json_bytes)
    for name in ("attestations.jsonl", "model.sig", f".{'0' * 32}.part"):
        (folder / name).write_text("{}")
    champion_of = crown(tmp_path, {"version": "v1", "sha256": manifest.sha256})
    assert champion.fetch(champion_of, str(folder), tmp_path / "copy") == folder
