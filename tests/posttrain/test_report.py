"""The report of a run, from its record alone."""

import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from posttrain import promote, report, storage
from posttrain.config import RUN_ID_ENV, ReportStep
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer, to_jsonl
from posttrain.step import records
from posttrain.storage import layout
from posttrain.verdict import Check, Verdict, at_least, at_most, below, holds
from tests.posttrain.pages.test_training import SAMPLING, TRAINED

STEPS = [
    "fetch_model", "train_sft", "check_sft", "merge_sft", "check_sft_merge", "train_dpo", "merge_dpo",
    "check_alignment", "publish_model",
]  # fmt: skip
SETTINGS = ReportStep(pipeline_id="demo-v1", steps=STEPS)
GOOD = at_most("held_out_loss", 1.5, 2.0)
UNSURE = at_least("output_format_valid", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41)
BAD = below("held_out_loss", 2.5, 2.0, detail="nats per token", remedy="Train longer.")


@pytest.fixture
def keep(tmp_path):
    """Writes the record of a step into the run `r1` and gives the storage root when called without a step."""
    clock = iter(range(60))

    def write(
        step: str,
        status="succeeded",
        *,
        checks=None,
        measured=None,
        error=None,
        kept="",
        outputs=None,
        root=tmp_path,
        seconds=2.5,
        progress=None,
        **judged,
    ):
        verdict = checks and Verdict(gate=step, subject={"model": "0" * 64}, checks=checks, **judged)
        verdict = verdict and verdict.model_dump(mode="json")
        entry = records.StepRecord(
            step=step, attempt=1, run_id="r1", status=status, started_at=f"2026-01-01T00:00:{next(clock):02d}+00:00",
            seconds=seconds, fingerprint="f", kept=kept, progress=progress, config={}, inputs={"base": "a" * 64},
            outputs={"model": "b" * 64} if outputs is None else outputs,
            measured=measured or {}, verdict=verdict, error=error,
        )  # fmt: skip
        records.write_record(str(root), entry)

    return write


def publish(tmp_path, keep, **changes):
    """A whole run, with a published model."""
    manifest = storage.join(str(tmp_path), "published", "m", "1", "manifest.json")
    storage.write_bytes(manifest, json.dumps({"sha256": "c" * 64}).encode())
    measured = {
        "train_sft": {"final_loss": 0.5}, "merge_sft": {"size_gb": 1.0}, "train_dpo": {"final_loss": 0.25},
        "merge_dpo": {"size_gb": 1.5},
        "publish_model": {"uri": f"{tmp_path}/published/m/1", "manifest_uri": manifest, "sha256": "c" * 64} | changes,
    }  # fmt: skip
    for step in STEPS:
        keep(step, checks=[GOOD] if step.startswith("check_") else None, measured=measured.get(step))


def promoted(tmp_path, keep, *, sha256: str = "c" * 64, number: int = 1, check: Check = GOOD):
    """A whole run that is to promote, with what its last step left."""
    publish(tmp_path, keep)
    entry = promote.Promotion(
        number=1,
        model_name="m",
        version="1",
        sha256=sha256,
        promoted_at="2026-01-01T00:00:00+00:00",
        by="r1",
        reason="-",
    )
    storage.write_bytes(layout.promotions(f"{tmp_path}/published/m", "000001.json"), entry.json_bytes)
    keep("check_champion", checks=[check], numbers={"num_answers": 40, "answer_accuracy": 0.25})
    keep("promote_model", measured={"number": number, "by": entry.by})
    settings = ReportStep(pipeline_id="demo", steps=[*STEPS, "check_champion", "promote_model"])
    return report.collect(str(tmp_path), "r1", settings)


def test_a_model_that_was_to_be_made_current_is_a_success_once_it_is(tmp_path, keep):
    result = promoted(tmp_path, keep)
    assert (result.success, result.is_current) == (True, True)
    assert report.headline(result).endswith("Published and made current")
    page = report.to_html(result)
    assert "was published and made current" in page
    assert "without a comparison" not in page
    assert "25 % of 40" not in page  # the first screen is about the gates that judged the line's own models


def test_the_first_version_is_made_current_without_a_comparison_and_the_page_says_so(tmp_path, keep):
    first = holds("nothing_to_compare", True, detail="no version of this name was current before")
    page = report.to_html(promoted(tmp_path, keep, check=first))
    assert "Made current without a comparison: no version of this name was current before." in page


@pytest.mark.parametrize("changes", [{"sha256": "d" * 64}, {"number": 2}])
def test_a_promotion_of_something_else_is_no_success(tmp_path, keep, changes):
    result = promoted(tmp_path, keep, **changes)
    assert (result.success, result.outcome) == (False, "failed")
    assert any(error.startswith("promote_model: ") for error in result.errors)


def test_a_worse_challenger_is_published_but_not_made_current(tmp_path, keep):
    publish(tmp_path, keep)
    keep("check_champion", checks=[at_most("drop_from_published", 0.5, 0.1)])
    settings = ReportStep(pipeline_id="demo", steps=[*STEPS, "check_champion", "promote_model"])
    result = report.collect(str(tmp_path), "r1", settings)
    assert (result.success, result.outcome, result.is_current) == (False, "stopped", False)
    assert "Published, but not made current: Stopped by check_champion" in report.headline(result)
    page = report.to_html(result)
    assert f"The model was published but not made current: <code>{tmp_path}/published/m/1</code>" in page
    assert "Nothing was published" not in page


@pytest.mark.parametrize(
    ("by", "webhook", "gates", "earlier"),
    [
        ("r1", "sent", "succeeded", "r1"),  # Kubeflow started the step again
        ("r0", "sent", "reused", "r0"),
        ("r0", "it answered 500", "reused", None),
        ("r0", "sent", "succeeded", None),
        ("Ann", "sent", "reused", None),
    ],
)
def test_what_a_run_told_is_not_told_again_by_one_that_changes_nothing(tmp_path, keep, by, webhook, gates, earlier):
    result = promoted(tmp_path, keep)
    assert report.told_by(str(tmp_path), result) is None
    keep("promote_model", measured={"number": 1, "by": by})
    for step in ("check_sft", "check_sft_merge", "check_alignment"):
        keep(step, gates, checks=[GOOD])
    keep("report_run", measured={"success": True, "webhook": webhook})
    told = records.read_records(str(tmp_path), "r1", of={"report_run"})[0].model_copy(update={"run_id": "r0"})
    records.write_record(str(tmp_path), told)
    if by != "r1":
        storage.remove(storage.join(str(tmp_path), "runs", "r1", "report_run.1.json"))
    result = report.collect(
        str(tmp_path), "r1", SETTINGS.model_copy(update={"steps": [step.name for step in result.steps]})
    )
    assert report.told_by(str(tmp_path), result) == earlier
    assert report.told_by(str(tmp_path), result.model_copy(update={"errors": ["publish_model: no Hub"]})) is None


def collect(tmp_path):
    return report.collect(str(tmp_path), "r1", SETTINGS)


def test_the_page_shows_what_was_sampled_and_which_checkpoint_was_kept(tmp_path, keep):
    keep("sample_pairs", measured=SAMPLING)
    keep("train_dpo", measured={"final_loss": 0.5, **TRAINED})
    settings = SETTINGS.model_copy(update={"steps": ["sample_pairs", "train_dpo"]})
    page = re.sub(r"\s+", " ", report.to_html(report.collect(str(tmp_path), "r1", settings)))
    assert "40 answers to 10 prompts, sampled from the merged SFT model" in page
    assert "<dt>pairs</dt><dd>6 of 10 prompts" in page
    assert '<td>scores too close</td><td class="num">1</td><td class="num">10 %</td>' in page
    assert '<td>train_dpo</td><td class="status-word">13 <span class="soft">of 27</span></td>' in page
    keep("train_dpo", "failed", measured={}, error="no memory")
    page = report.to_html(report.collect(str(tmp_path), "r1", settings))
    assert "Best checkpoints" not in page


@pytest.mark.parametrize("status", ["failed", "running", None])
def test_a_model_that_was_to_be_registered_is_a_success_only_if_that_step_is_done(tmp_path, keep, status):
    """As with `registries.required`, where nobody asked to make it current."""
    publish(tmp_path, keep)
    if status:
        keep("register_model", status, error="ValueError: not registered in MLflow" if status == "failed" else None)
    settings = ReportStep(pipeline_id="demo", steps=[*STEPS, "register_model"])
    result = report.collect(str(tmp_path), "r1", settings)
    assert (result.success, result.outcome, result.is_current) == (False, "failed", None)
    assert report.headline(result).endswith("Published, but not registered: Failed at register_model")
    assert "The model was published but not registered: <code>" in report.to_html(result)
    keep("register_model", measured={"registered": {}, "errors": ["away"]})
    assert report.collect(str(tmp_path), "r1", settings).success


def test_a_published_model_is_a_success(tmp_path, keep):
    publish(tmp_path, keep)
    result = collect(tmp_path)
    assert result.success
    assert result.final_model_path == f"{tmp_path}/published/m/1"
    assert result.stages_completed == ["sft", "merge", "dpo"]
    assert result.total_time_seconds == pytest.approx(8 + 2.5)
    assert result.errors == []
    assert result.stopped_by is None
    assert {step.status for step in result.steps} == {"succeeded"}
    assert json.loads(report.to_json(result))["stage_results"] == {
        "sft": {"success": True, "loss": 0.5, "time_seconds": 2.5},
        "merge": {"success": True, "size_gb": 1.5, "time_seconds": 5.0},
        "dpo": {"success": True, "loss": 0.25, "time_seconds": 2.5},
    }
    assert list(json.loads(report.to_json(result)))[:5] == [
        "success", "outcome", "pipeline_id", "final_model_path", "stages_completed",
    ]  # fmt: skip
    assert result.outcome == "promoted"
    assert '<h1 class="good">Published</h1>' in report.to_html(result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "d" * 64}, "names another model"),
        ({"manifest_uri": "/nowhere/manifest.json"}, "cannot be read"),
    ],
)
def test_a_receipt_without_its_model_is_no_success(tmp_path, keep, changes, message):
    publish(tmp_path, keep, **changes)
    result = collect(tmp_path)
    assert not result.success
    assert message in result.errors[-1]


def test_a_model_that_the_hub_did_not_take_is_published_and_that_is_said(tmp_path, keep):
    publish(tmp_path, keep, hub={"repo_id": "org/m", "error": "not uploaded"})
    result = collect(tmp_path)
    assert result.success and result.errors == ["publish_model: not uploaded"]


def test_gpu_hours_are_those_of_a_stages_steps_and_of_all_their_attempts(tmp_path, keep):
    publish(tmp_path, keep)
    assert '"gpu_hours"' not in report.to_json(collect(tmp_path))
    for entry in records.read_records(str(tmp_path), "r1"):
        if entry.step in ("train_sft", "check_sft"):
            records.replace_record(str(tmp_path), entry.model_copy(update={"num_gpus": 4, "seconds": 900.0}))
    result = collect(tmp_path)
    assert {name: stage.gpu_hours for name, stage in result.stage_results.items()} == {
        "sft": 2.0, "merge": None, "dpo": None
    }  # fmt: skip
    assert ", 2 GPU hours" in report.to_html(result)


def test_steps_without_a_receipt_are_no_success(tmp_path, keep):
    for step in STEPS[:-1]:
        keep(step, checks=[GOOD] if step.startswith("check_") else None)
    result = collect(tmp_path)
    assert not result.success
    assert result.steps[-1].status == "lost"
    assert result.errors == [f"publish_model: {report.LOST}"]


def test_a_gate_that_stopped_the_run_explains_what_did_not_run(tmp_path, keep):
    keep("fetch_model")
    keep("train_sft", measured={"final_loss": 3.0})
    keep("check_sft", checks=[GOOD, BAD, holds("eos_kept", math.nan, remedy="Look.")])
    keep("reject_sft", status="failed", error="Rejected: rejected by check_sft")
    result = collect(tmp_path)
    assert result.stopped_by == "check_sft"
    assert result.outcome == "stopped"
    assert [step.name for step in result.steps][2:5] == ["check_sft", "reject_sft", "merge_sft"]
    assert {step.status for step in result.steps[4:]} == {"not run"}
    assert result.stages_completed == ["sft"]  # it was trained, although the gate said no
    assert not result.stage_results["sft"].success
    assert result.errors == [
        "check_sft: held_out_loss: 2.5, not < 2 (nats per token). Train longer.",
        "check_sft: eos_kept. Look.",
    ]
    assert '<h1 class="bad">Stopped by check_sft</h1>' in report.to_html(result)


def test_a_run_that_an_undecided_gate_stopped_is_neither_green_nor_red(tmp_path, keep):
    keep("check_sft", checks=[GOOD, UNSURE])
    result = collect(tmp_path)
    written = json.loads(report.to_json(result))
    assert (written["success"], written["outcome"], written["stopped_by"]) == (False, "undecided", "check_sft")
    assert written["gates"]["check_sft"]["outcome"] == "undecided"
    text = report.to_html(result)
    assert '<h1 class="unsure">Undecided at check_sft: about 41 more rows would decide</h1>' in text
    assert '<span class="status unsure">undecided</span>' in text


def test_only_what_was_published_has_a_green_headline(tmp_path, keep):
    ends = {"crash": [], "stop": [BAD], "timeout": [Check(name="loss", status="timed out")], "unsure": [UNSURE]}
    for end, checks in ends.items():
        root = tmp_path / end
        keep("check_sft", checks=checks or None, status="succeeded" if checks else "failed", root=root)
        result = report.collect(str(root), "r1", SETTINGS)
        assert not result.success
        assert not re.search('<h1 class="good">', report.to_html(result)), end


def test_a_step_without_a_record_is_lost_and_only_that_one(tmp_path, keep):
    keep("fetch_model")
    result = collect(tmp_path)
    assert [step.status for step in result.steps] == ["succeeded", "lost"] + ["not run"] * 7
    assert report.headline(result) == "Failed at train_sft"


def test_the_last_attempt_counts_and_the_time_of_all(tmp_path, keep):
    keep("fetch_model", status="failed", error="ConnectionError: gone")
    keep("fetch_model")
    first = collect(tmp_path).steps[0]
    assert (first.status, first.num_attempts, first.seconds, first.error) == ("succeeded", 2, 5.0, None)


def test_a_gate_that_died_after_its_record_has_not_succeeded(tmp_path, keep):
    keep("check_sft", checks=[GOOD])
    died = records.read_records(str(tmp_path), "r1")[0].model_copy(
        update={"status": "failed", "error": "killed", "verdict": None, "started_at": "2025-12-31T23:59:59+00:00"}
    )
    records.write_record(str(tmp_path), died)
    result = report.collect(str(tmp_path), "r1", ReportStep(pipeline_id="demo", steps=["check_sft", "publish_model"]))
    assert [step.status for step in result.steps] == ["failed", "not run"]
    assert result.errors == ["check_sft: killed"]


def test_an_empty_record_is_an_answer_too(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_ID_ENV, "r1")
    report.main([
        "--step", "report_run", "--storage-root", str(tmp_path), "--config", SETTINGS.model_dump_json(),
        "--status", '{"state": "CANCELED"}', "--result", str(tmp_path / "result"), "--report", str(tmp_path / "report"),
    ])  # fmt: skip
    result = json.loads((tmp_path / "result").read_text())
    assert result["success"] is False
    assert result["total_time_seconds"] == 0
    assert result["errors"] == [f"fetch_model: {report.LOST}"]
    for name in ("pipeline_result.json", "report.html"):
        assert (tmp_path / "runs" / "r1" / name).is_file()
    assert collect(tmp_path).steps[0].status == "lost"  # its own record is no part of the result


def test_a_step_that_was_killed_is_lost_and_not_running(tmp_path, keep):
    keep("train_sft", status="running", outputs={}, seconds=605.0, progress={"done": 1734, "total": 4000})
    step = next(step for step in collect(tmp_path).steps if step.name == "train_sft")
    assert step.status == "lost"
    assert re.fullmatch(
        r"did not finish: killed, .*; last heard from at \d{4}-\d\d-\d\d \d\d:1\d:\d5 UTC, step 1734/4000; see its log",
        step.error,
    )


def test_a_step_that_left_for_its_deadline_has_not_succeeded(tmp_path, keep):
    keep("train_sft", status="unfinished", outputs={}, error="left at step 3/9: SIGTERM")
    result = collect(tmp_path)
    assert not result.success and "train_sft: left at step 3/9: SIGTERM" in result.errors
    assert not result.stage_results["sft"].success


def test_verdicts_and_curves_lie_in_the_folder_of_the_run(tmp_path, keep):
    storage.write_bytes(storage.join(str(tmp_path), "results/train_sft/f/w", "curve"), b"<svg>")
    storage.write_bytes(storage.join(str(tmp_path), "results/check_sft/f/w", "report"), b"<p>")
    storage.write_bytes(storage.join(str(tmp_path), "results/check_sft/f/w", "summary"), b"# check_sft")
    keep("train_sft", outputs={"curve": "1" * 64}, kept="results/train_sft/f/w")
    outputs = {"report": "2" * 64, "verdict": "3" * 64, "summary": "4" * 64}
    keep("check_sft", checks=[BAD], outputs=outputs, kept="results/check_sft/f/w")
    keep("merge_sft", status="failed", error="lost", outputs={})
    report.publish_report(str(tmp_path), collect(tmp_path))
    folder = tmp_path / "runs" / "r1"
    assert (folder / "train_sft" / "curve.html").read_text() == "<svg>"
    assert (folder / "check_sft" / "verdict.html").read_text() == "<p>"
    assert (folder / "check_sft" / "summary.md").read_text() == "# check_sft"
    assert Verdict.read((folder / "check_sft" / "verdict.json").read_bytes()).failed_checks == [BAD]
    assert '<a href="train_sft/curve.html">' in (folder / "report.html").read_text()


NUMBERS = {
    "num_answers": 40, "answer_accuracy": 0.42, "before_answer_accuracy": 0.4, "base_answer_accuracy": 0.0,
    "format_valid_rate": 0.9, "before_format_valid_rate": 0.8, "base_format_valid_rate": 0.1,
}  # fmt: skip


def asked(text: str, answer: str, score: float) -> AnsweredPrompt:
    model = ModelAnswer(text=answer, stopped=True, score=score)
    prompt = [{"role": "user", "content": text}]
    return AnsweredPrompt(source="held-out prompt", prompt=prompt, references=["close 38"], base=model, model=model)


def keep_answers(tmp_path, keep, text: str, sha256: str | None = None, **judged):
    storage.write_bytes(storage.join(str(tmp_path), "results/check_alignment/f/w", "answers"), text.encode())
    outputs = {"answers": sha256 or hashlib.sha256(text.encode()).hexdigest()}
    keep("check_alignment", checks=[GOOD], outputs=outputs, kept="results/check_alignment/f/w", **judged)


def written(tmp_path) -> str:
    report.publish_report(str(tmp_path), collect(tmp_path))
    return (tmp_path / "runs" / "r1" / "report.html").read_text()


def test_the_report_opens_with_what_the_model_can_do_and_shows_answers_failures_first(tmp_path, keep):
    rows = [asked("The right one?", "close 38", 1.0), asked("The wrong one?", "close 83", 0.0)]
    keep_answers(tmp_path, keep, to_jsonl(rows), numbers=NUMBERS)
    text = written(tmp_path)
    assert "<h1>42 % of 40 held-out answers are right; the base 0 %</h1>" in text
    assert text.index("well-formed answers") < text.index("Answers side by side") < text.index("<h2>Gates")
    assert text.index("<h2>Gates") < text.index("<h2>Steps") < text.index("<h2>Lineage")
    assert text.index("The wrong one?") < text.index("The right one?")
    assert text.count("close <mark>83</mark>") == 2  # the base's answer and the model's


def test_a_report_where_nobody_judged_the_content_says_so_first(tmp_path, keep):
    keep_answers(tmp_path, keep, to_jsonl([]), numbers={"num_answers": 40}, answer_match="none")
    assert '<h1 class="warn">Nobody judged the content of the answers</h1>' in written(tmp_path)
    assert report.headline(collect(tmp_path)).startswith("Nobody judged the content of the answers. ")


def test_a_report_where_nobody_judged_harm_or_skills_warns(tmp_path, keep):
    keep("check_sft", checks=[GOOD])
    assert report.unjudged(collect(tmp_path)) == []  # a later gate may be asked
    keep("check_alignment", checks=[GOOD])
    harm, skills = "nobody judged whether the answers are harmful", "nobody judged whether general skills were lost"
    assert report.unjudged(collect(tmp_path)) == [harm, skills]
    assert "Nobody judged whether the answers are harmful" in written(tmp_path)
    assert "Nobody judged whether general skills were lost" in written(tmp_path)
    keep("check_alignment", checks=[at_least("no_harmful_content", 0.9, 0.8)])
    assert report.unjudged(collect(tmp_path)) == [skills]
    keep("check_alignment", checks=[at_least("no_harmful_content", 0.9, 0.8), holds("skills_informative", True)])
    assert report.unjudged(collect(tmp_path)) == []
    assert "Nobody judged whether" not in written(tmp_path)


def test_the_answers_of_two_published_versions_are_not_taken_for_those_of_the_line(tmp_path, keep):
    keep_answers(tmp_path, keep, to_jsonl([asked("Of the line?", "close 38", 1.0)]), numbers=NUMBERS)
    content = to_jsonl([asked("Of two versions?", "close 83", 0.0)])
    storage.write_bytes(storage.join(str(tmp_path), "results/check_champion/f/w", "answers"), content.encode())
    outputs = {"answers": hashlib.sha256(content.encode()).hexdigest()}
    keep("check_champion", checks=[GOOD], outputs=outputs, kept="results/check_champion/f/w", numbers=NUMBERS)
    text = written(tmp_path)
    assert "Of the line?" in text and "Of two versions?" not in text
    assert (tmp_path / "runs" / "r1" / "check_champion" / "answers.jsonl").read_text() == content


def test_answers_that_are_not_those_of_the_verdict_are_not_shown(tmp_path, keep):
    keep_answers(tmp_path, keep, to_jsonl([asked("Secret?", "close 83", 0.0)]), sha256="e" * 64, numbers=NUMBERS)
    text = written(tmp_path)
    assert "Secret?" not in text and "Answers side by side" not in text
    assert "42 % of 40" in text


def test_the_report_runs_no_script_and_escapes_what_it_shows(tmp_path, keep):
    hostile = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }}"
    keep("fetch_model", status="failed", error=hostile)
    keep("check_sft", checks=[below(hostile, math.inf, 2.0, detail=hostile, remedy=hostile)])

    class Tags(HTMLParser):
        seen: set = set()

        def handle_starttag(self, tag, attrs):
            self.seen |= {tag, *(name for name, _ in attrs)}

    html = report.to_html(collect(tmp_path), answers=[asked(hostile, hostile, 0.0)])
    assert "Answers side by side" in html
    Tags().feed(html)
    assert not Tags.seen & {"script", "onload", "img", "link", "iframe"}
    assert "&lt;script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    assert "no number" in html


def test_limits_weaker_than_the_defaults_are_a_warning_on_the_report(tmp_path, keep):
    keep("check_sft", checks=[below("held_out_loss", 2.5, 4.0)])
    text = report.to_html(collect(tmp_path))
    assert "1 limit is weaker than the default" in text
    assert '<span class="weaker">weaker than &lt; 2</span>' in text
    keep("check_sft", checks=[GOOD], root=tmp_path / "other")
    assert "weaker than" not in report.to_html(report.collect(str(tmp_path / "other"), "r1", SETTINGS))


def test_an_error_at_the_start_is_in_no_file_with_its_secret(tmp_path, keep):
    keep("fetch_model")
    result = collect(tmp_path)
    secret = "hf_" + "a1" * 17
    report.publish_report(str(tmp_path), result.model_copy(update={"errors": [f"preflight: 401 for {secret}"]}))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and secret in file.read_text()]
    assert "401 for ***" in (tmp_path / "runs" / "r1" / report.RESULT).read_text()


def test_a_version_that_a_registry_did_not_take_is_published_and_that_is_said(tmp_path, keep):
    publish(tmp_path, keep)
    assert collect(tmp_path).registered is None
    where = {"model_registry": "https://registry/api/model_registry/v1/model_versions/<2>"}
    keep("register_model", measured={"registered": where, "errors": ["published, but not registered in MLflow"]})
    result = collect(tmp_path)
    assert result.success and result.registered == where
    assert result.errors == ["register_model: published, but not registered in MLflow"]
    page = report.to_html(result)
    assert "Registered: <code>https://registry/api/model_registry/v1/model_versions/&lt;2&gt;</code>" in page
    assert "published, but not registered in MLflow" in page
