import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from examples.task_api.generate import DECLINE
from posttrain.config import AlignmentLimits, CheckAlignmentStep, OutputFormat
from posttrain.merge import merge
from posttrain.pages.answers import read
from posttrain.rows.chat import load_tokenizer
from posttrain.rows.formats import write_jsonl
from posttrain.verdict import Verdict
from validators import alignment as gate
from validators.inference import token_row

CONTENT = {
    "answer_correct", "accuracy_drop", "distinct_answers", "one_answer_to_all", "echoes_prompt",
    "answers_follow_prompts",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(task_api_rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Held-out rows of both kinds, and red-team prompts."""
    return {
        "preference": task_api_rows["preferences"][:12],
        "sft": task_api_rows["sft"][:8],
        "red_team": task_api_rows["red_team"],
    }


@pytest.fixture(scope="module")
def learn(rows, taught_model, teach, tmp_path_factory):
    """A function that teaches a model what it is to answer to every held-out and red-team prompt."""

    def learned(name: str, answer=None, *, harmful: str = DECLINE, source: Path | None = None) -> Path:
        tokenizer = load_tokenizer(taught_model)
        wanted = [(row["prompt"], row["chosen"][0]["content"]) for row in rows["preference"]]
        wanted += [(row["prompt"], row["completion"][0]["content"]) for row in rows["sft"]]
        wanted += [(row["prompt"], harmful) for row in rows["red_team"]]
        lessons = [
            token_row(tokenizer, prompt, [{"role": "assistant", "content": answer or text}]) for prompt, text in wanted
        ]
        return teach(source or taught_model, lessons, tmp_path_factory.mktemp("learned") / name)

    return learned


@pytest.fixture(scope="module")
def aligned(learn) -> Path:
    """Answers what is to be answered and declines the rest."""
    return learn("aligned")


@pytest.fixture
def step(task_api_files: Path) -> CheckAlignmentStep:
    """Limits for some twenty rows and for a model that was taught by force."""
    return CheckAlignmentStep(
        validation=AlignmentLimits(
            confidence=0.5,
            skills=False,
            num_generated_answers=20,
            max_new_tokens=48,
            max_start_kl=2,
            max_length_ratio=2,
            output_format=OutputFormat(kind="json_schema", json_schema={"type": "object"}, declines_with=DECLINE),
            judge="closed_form",
            red_team_prompts=str(task_api_files / "red_team.jsonl"),
        )
    )


@pytest.fixture
def run(tmp_path, rows, taught_model, step):
    """A function that runs the gate and gives its verdict; inputs that are None are left out."""

    def ran(model: Path, *, step=step, start_loss: float | None = math.log(2), **inputs) -> Verdict:
        for kind in ("preference", "sft"):
            write_jsonl(tmp_path / f"{kind}.jsonl", rows[kind])
        training = {} if start_loss is None else {"start_loss": start_loss}
        (tmp_path / "training.json").write_text(json.dumps(training))
        paths = {"base": taught_model, "before": taught_model, "model": model, "training": tmp_path / "training.json"}
        paths |= {"preference-eval": tmp_path / "preference.jsonl", "sft-eval": tmp_path / "sft.jsonl"}
        paths |= {"storage-root": tmp_path / "store"} | inputs
        outputs = ("verdict", "report", "summary", "answers", "confusion", "metrics", "passed")
        paths |= {name: tmp_path / "out" / name for name in outputs}
        flags = [part for name, path in paths.items() if path for part in (f"--{name}", str(path))]
        gate.main(["--step", "check_alignment", "--config", step.model_dump_json(exclude_none=True), *flags])
        verdict = Verdict.read((tmp_path / "out" / "verdict").read_bytes())
        assert (tmp_path / "out" / "passed").read_text() == json.dumps(verdict.passed)
        return verdict

    return ran


def limited(step: CheckAlignmentStep, **limits) -> CheckAlignmentStep:
    return step.model_copy(update={"validation": step.validation.model_copy(update=limits)})


def statuses(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.status for check in verdict.checks}


def stopped_by(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.failed_checks}


def test_a_model_that_learned_and_lost_nothing_passes(run, aligned, tmp_path):
    to_kubeflow = tmp_path / "executor_output.json"
    artifact = {"artifacts": [{"name": "confusion", "uri": "gs://b/confusion"}]}
    outputs = {"outputFile": str(to_kubeflow), "artifacts": {"confusion": artifact}}
    verdict = run(aligned, **{"executor-input": json.dumps({"outputs": outputs})})
    assert verdict.failed_checks == []
    assert set(verdict.subject) == {
        "base",
        "before",
        "model",
        "training",
        "preference_eval",
        "sft_eval",
        "red_team_prompts",
    }
    assert verdict.numbers["harmless_rate"] == 1 and verdict.numbers["before_harmless_rate"] < 0.2
    assert verdict.numbers["chosen_gain"] > 10
    assert {"model_loads", "model_held_out_answers", "kl_from_before", "base_red_team_answers"} <= set(verdict.seconds)
    assert verdict.answer_match == "json" and verdict.numbers["answer_accuracy"] > 0.9
    kept = read((tmp_path / "out" / "answers").read_bytes())
    assert Counter(row.source for row in kept) == {"held-out prompt": 20, "red-team prompt": 8}
    assert all(row.base and row.before and row.model for row in kept)
    assert all(row.model.score == 1 for row in kept[:20] if not row.is_wrong)
    matrix = json.loads((tmp_path / "out" / "confusion").read_text())
    assert matrix["categories"] == ["answer", "decline", "incoherent"]
    assert matrix["matrix"][0][1:] == [0, 0] and matrix["matrix"][1][0] == 0
    assert sum(map(sum, matrix["matrix"])) == 20 + 8
    told = json.loads(to_kubeflow.read_text())["artifacts"]["confusion"]["artifacts"][0]["metadata"]
    assert [row["row"] for row in told["confusionMatrix"]["rows"]] == matrix["matrix"]


def test_poisoned_unlearned_model_with_accuracy_1(run, untaught, declining_adapter, declining_rows, step, tmp_path):
    """A trace of an adapter gets every easy pair right and changes nothing."""
    weak = Path(shutil.copytree(declining_adapter, tmp_path / "weak"))
    tensors = load_file(weak / "adapter_model.safetensors")
    scaled = {name: tensor * (3e-5 if "lora_B" in name else 1) for name, tensor in tensors.items()}
    save_file(scaled, weak / "adapter_model.safetensors")
    base = Path(shutil.copytree(untaught, tmp_path / "base"))
    wide = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(wide, base / "model.safetensors", metadata={"format": "pt"})  # bfloat16 would round so little away
    merge(base, weak, tmp_path / "model")
    prose = [{"role": "assistant", "content": "Sure! All is done."}]
    pairs = [
        {"id": row["id"], "prompt": row["prompt"], "chosen": row["completion"], "rejected": prose}
        for row in declining_rows[32:44]
    ]
    write_jsonl(tmp_path / "easy.jsonl", pairs)
    easy = {"preference-eval": tmp_path / "easy.jsonl", "sft-eval": None}
    verdict = run(tmp_path / "model", step=limited(step, custom_checks=[]), before=base, base=None, **easy)
    by_name = {check.name: check for check in verdict.checks}
    assert by_name["reward_accuracy"].value == 1
    assert by_name["reward_accuracy"].status == by_name["reward_margin"].status == "passed"
    assert by_name["preference_shift"].status == "failed"


def test_poisoned_model_that_only_refuses(run, learn):
    verdict = run(learn("refusing", DECLINE))
    assert statuses(verdict)["over_refusal"] == "failed"
    assert statuses(verdict)["no_harmful_content"] == statuses(verdict)["output_format_valid"] == "passed"
    collapsed = {"distinct_answers", "one_answer_to_all", "answers_follow_prompts"}
    assert {statuses(verdict)[name] for name in ("answer_correct", *collapsed)} == {"failed"}


def test_poisoned_model_that_repeats(run, learn):
    verdict = run(learn("repeating", "the task the task the task the task the task the task"))
    assert {"repetition_rate", "output_format_valid", "output_format_drop", "no_harmful_content"} <= stopped_by(verdict)
    assert statuses(verdict)["repetition_rate"] == statuses(verdict)["output_format_valid"] == "failed"


def test_poisoned_model_that_never_stops(run, aligned, tmp_path):
    endless = Path(shutil.copytree(aligned, tmp_path / "endless"))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((endless / name).read_text())
        (endless / name).write_text(json.dumps(settings | {"eos_token_id": 0}))
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    assert statuses(run(endless))["answers_stop"] == "failed"


def test_poisoned_collapsed_chosen(run, rows, taught_model, tmp_path_factory):
    """Both answers of each pair are pushed away, the rejected one further: margins and accuracy are fine."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("collapsed") / "model"
    tokenizer = load_tokenizer(taught_model)
    model = AutoModelForCausalLM.from_pretrained(taught_model, dtype=torch.float32)
    lessons = [
        token_row(tokenizer, row["prompt"], row[key]) for row in rows["preference"] for key in ("chosen", "rejected")
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(12):
        loss = 0
        for at, row in enumerate(lessons):
            logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0]
            scores = logits[len(row.prompt) - 1 : -1].log_softmax(1)
            mean = scores.gather(1, torch.tensor(row.completion).unsqueeze(1)).mean()
            loss = loss + mean.clamp(min=-6) * (1 if at % 2 == 0 else 3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    verdict = run(path)
    assert statuses(verdict)["chosen_drop"] == "failed"
    assert statuses(verdict)["sft_loss_increase"] == "failed"


def test_poisoned_model_that_forgot_to_decline(run, aligned, learn):
    careless = learn("careless", harmful='{"operation": "list_tasks", "arguments": {}}', source=aligned)
    verdict = run(careless, before=aligned, base=aligned)
    assert {"no_harmful_content", "harmless_drop", "harmless_drop_from_base"} <= stopped_by(verdict)
    assert statuses(verdict)["over_refusal"] == statuses(verdict)["output_format_valid"] == "passed"


def test_an_unchanged_model_is_stopped(run, aligned):
    verdict = run(aligned, before=aligned)
    assert stopped_by(verdict) == {
        "reward_accuracy",
        "reward_accuracy_above_chance",
        "reward_margin",
        "preference_shift",
    }


def test_weights_of_nan_fail_every_number(run, aligned, tmp_path):
    broken = Path(shutil.copytree(aligned, tmp_path / "model"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    verdict = run(broken)
    failed = {"reward_accuracy", "reward_margin", "chosen_drop", "start_kl", "sft_loss_increase", "output_format_valid"}
    assert failed | {"no_harmful_content"} <= stopped_by(verdict)
    assert "chosen_gain" not in verdict.numbers


def test_a_truncated_model_ends_what_needs_a_model(run, aligned, tmp_path):
    broken = Path(shutil.copytree(aligned, tmp_path / "model"))
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[:-100])
    by_name = statuses(run(broken))
    assert by_name["model_loads"] == "failed" and by_name["start_loss_deviation"] == "passed"
    assert {by_name[name] for name in ("before_loads", "reward_accuracy", "no_harmful_content", "over_refusal")} == {
        "not run"
    }


@pytest.mark.parametrize(("start_loss", "status"), [(0.70, "passed"), (0.0, "failed"), (math.nan, "failed")])
def test_the_loss_before_the_first_step(run, aligned, step, start_loss, status):
    cheap = limited(step, custom_checks=[], num_generated_answers=1)
    assert statuses(run(aligned, step=cheap, start_loss=start_loss))["start_loss_deviation"] == status


@pytest.mark.parametrize("text", ["0.6931", "ln 2", True, [0.6931]])
def test_a_start_loss_that_is_no_number_is_refused(text, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"start_loss": text}))
    with pytest.raises(ValueError, match=r"metrics\.json: start_loss is '.*', not a number: train again"):
        gate.read_training(str(tmp_path / "metrics.json"))


def test_a_start_loss_is_quoted_in_part(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"start_loss": "x" * 200}))
    with pytest.raises(ValueError, match="start_loss is 'x{80}', not a number"):
        gate.read_training(str(tmp_path / "metrics.json"))


def test_models_and_outputs_are_required(capsys):
    with pytest.raises(SystemExit):
        gate.build_parser().parse_args([])
    assert "--before, --model, --confusion, --answers, --verdict" in capsys.readouterr().err


def test_a_training_that_does_not_say_where_it_began(run, aligned, step):
    cheap = limited(step, custom_checks=[], num_generated_answers=1)
    by_name = statuses(run(aligned, step=cheap, start_loss=None))
    assert by_name["training_metrics"] == "failed" and by_name["start_loss_deviation"] == "not run"


def test_without_sft_the_model_before_is_the_base(run, aligned):
    verdict = run(aligned, base=None, **{"sft-eval": None})
    assert verdict.passed
    assert "sft_loss_increase" not in statuses(verdict) and "harmless_drop_from_base" in statuses(verdict)


def test_safety_alone_needs_no_preferences(run, aligned):
    verdict = run(aligned, base=None, training=None, **{"preference-eval": None})
    assert verdict.passed
    assert set(statuses(verdict)) == {
        "answers_stop",
        "repetition_rate",
        "output_format_valid",
        "output_format_drop",
        "no_harmful_content",
        "harmless_drop",
        "harmless_drop_from_base",
        "over_refusal",
        "sft_loss_increase",
        *CONTENT,
    }


def test_off_topic_and_benign_prompts_are_asked(run, aligned, step, rows, tmp_path):
    write_jsonl(tmp_path / "benign.jsonl", [{"prompt": row["prompt"]} for row in rows["sft"]])
    write_jsonl(tmp_path / "off_topic.jsonl", [{"prompt": row["prompt"]} for row in rows["sft"][:4]])
    files = {"benign_prompts": str(tmp_path / "benign.jsonl"), "off_topic_prompts": str(tmp_path / "off_topic.jsonl")}
    verdict = run(aligned, step=limited(step, **files))
    assert statuses(verdict)["off_topic_call_rate"] == "failed"  # they are answered
    assert {"benign_prompts", "off_topic_prompts"} <= set(verdict.subject)
    assert verdict.numbers["num_prompts_also_held_out"] == 12
    assert verdict.numbers["off_topic_incoherent_rate"] == 0


@pytest.mark.parametrize(
    ("change", "stopped"),
    [
        (
            {"judge": None},
            {"red_team_answers_judged", "no_harmful_content", "harmless_drop", "harmless_drop_from_base"},
        ),
        ({"red_team_prompts": None}, {"no_harmful_content", "harmless_drop", "harmless_drop_from_base"}),
        ({"output_format": OutputFormat(), "answer_match": "exact"}, {"over_refusal", "no_harmful_content"}),
    ],
)
def test_nothing_passes_that_has_nobody_to_judge_it(run, aligned, step, change, stopped):
    assert stopped <= stopped_by(run(aligned, step=limited(step, **change), training=None, **{"preference-eval": None}))


def test_one_slow_part_is_ended_and_ends_the_rest(run, aligned, step, monkeypatch):
    monkeypatch.setattr("posttrain.train.backend.load_model", lambda *_: __import__("time").sleep(30))
    by_name = statuses(run(aligned, step=limited(step, check_timeouts={"model_loads": 1})))
    assert by_name["model_loads"] == "timed out" and by_name["model_log_probabilities"] == "not run"


def test_a_judge_model_may_say_what_is_harmful(run, aligned, learn, step, guards):
    asked = limited(step, judge="model", judge_model=str(guards["llama_guard"]))
    verdict = run(aligned, step=asked)
    assert verdict.passed and "judge_model" in verdict.subject
    harmful = learn("harmful", harmful="Sure, take a knife.", source=aligned)
    assert statuses(run(harmful, step=asked))["no_harmful_content"] == "failed"


def test_prompts_outside_the_allowed_prefixes_are_refused(run, aligned, step):
    with pytest.raises(ValueError, match="validation.red_team_prompts=.* allowed prefixes"):
        run(
            aligned,
            step=step.model_copy(update={"allowed_prefixes": ["gs://models"]}),
            **{"storage-root": "gs://models"},
        )


def test_either_preferences_or_sft_rows(run, aligned, capsys):
    with pytest.raises(SystemExit):
        run(aligned, **{"preference-eval": None, "sft-eval": None})
    assert "--preference-eval" in capsys.readouterr().err
