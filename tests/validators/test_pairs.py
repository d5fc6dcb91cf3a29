"""The gate over sampled pairs: its checks, and what it finds in files."""

import json
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import pytest

from posttrain.config import CheckPairsStep, OutputFormat, PairsConfig, PairsLimits
from posttrain.rows import chat
from posttrain.rows.formats import write_jsonl
from posttrain.verdict import Verdict
from validators import data, overlap, pairs
from validators.measuring import Measured
from validators.pairs import Numbers

LIMITS = PairsLimits(answer_match="exact", confidence=0.8)
GOOD = Numbers(
    num_sampled_pairs=40, pair_yield=0.3, least_margin=1.0, mean_margin=1.0, right_rejected=[], wrong_chosen=[],
    num_chosen_tokens=400, num_rejected_tokens=420,
)  # fmt: skip


def failed(numbers: Numbers, limits: PairsLimits = LIMITS) -> set[str]:
    return {check.name for check in pairs.judge(numbers, limits, PairsConfig()) if check.status != "passed"}


def test_good_pairs_pass_and_numbers_that_are_missing_do_not():
    assert failed(GOOD) == set()
    assert failed(Numbers()) == {check.name for check in pairs.judge(GOOD, LIMITS, PairsConfig())}
    judged = pairs.judge(
        Numbers(), PairsLimits(answer_match="judge", match_options={"judge_model": "m"}), PairsConfig()
    )
    assert "rejected_answers" not in {check.name for check in judged}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"num_sampled_pairs": 15}, "sampled_pairs"),
        ({"pair_yield": 0.01}, "pair_yield"),
        ({"least_margin": 0.4}, "least_margin"),
        ({"right_rejected": ["sampled/1"]}, "rejected_answers"),
        ({"wrong_chosen": ["sampled/1"]}, "chosen_answers"),
        ({"num_chosen_tokens": 900}, "pair_length_ratio"),
        ({"num_chosen_tokens": 200}, "pair_length_ratio_shorter"),
    ],
)
def test_each_limit_is_checked_and_has_a_remedy(change, check):
    numbers = Numbers(**{**vars(GOOD), **change})
    assert failed(numbers) == {check}
    (one,) = [one for one in pairs.judge(numbers, LIMITS, PairsConfig()) if one.name == check]
    assert one.remedy


def test_the_margin_of_a_reward_model_is_judged_in_its_units():
    settings = PairsConfig(reward_model="org/reward", min_reward_margin=1.5)
    numbers = Numbers(**{**vars(GOOD), "least_margin": 1.2, "mean_chosen_reward": 3.0, "mean_rejected_reward": -1.0})
    (check,) = [one for one in pairs.judge(numbers, LIMITS, settings) if one.status != "passed"]
    assert (check.name, check.limit, check.detail) == ("least_margin", 1.5, "rewards of org/reward")
    assert "pairs.min_reward_margin" in check.remedy
    assert pairs.numbers_of(numbers)["mean_chosen_reward"] == 3.0
    assert "mean_chosen_reward" not in pairs.numbers_of(GOOD)


def pair(number: int, chosen: str, rejected: str) -> dict:
    answers = {
        key: [{"role": "assistant", "content": text}] for key, text in (("chosen", chosen), ("rejected", rejected))
    }
    prompt = [{"role": "user", "content": f"How much is {number} and one in words, for item {number}?"}]
    return {"id": f"sampled/{number}", "prompt": prompt, **answers, "references": [f"{number + 1}"]}


def test_a_right_answer_that_is_rejected_is_named():
    written = data.Written(lambda: None)
    rows = [pair(1, "2", "3"), pair(2, "3", "3"), pair(3, "5", "6")]
    limits = PairsLimits(answer_match="exact", output_format=OutputFormat())
    misjudged = pairs.misjudged(rows, limits, written)
    assert misjudged == {"right_rejected": ["sampled/2"], "wrong_chosen": ["sampled/3"]}


def test_without_answers_on_one_side_there_is_no_ratio_of_lengths():
    assert failed(Numbers(**{**vars(GOOD), "num_rejected_tokens": 0})) == {
        "pair_length_ratio", "pair_length_ratio_shorter"
    }  # fmt: skip


def test_of_the_pairs_only_the_sampled_ones_are_measured(tiny_model, tmp_path):
    (tmp_path / "sampling.json").write_text('{"num_sampled_pairs": 1}')
    brought = pair(2, "3", "3") | {"id": "brought"}
    load = partial(chat.ChatTokenizer, tiny_model)
    both, alone = (
        pairs.measure(load, rows, tmp_path / "sampling.json", LIMITS).numbers
        for rows in ([pair(1, "2", "3"), brought], [pair(1, "2", "3")])
    )
    assert both == alone and both["num_chosen_tokens"] > 0 and both["right_rejected"] == []


@pytest.mark.parametrize(("shared", "files"), [(None, {}), ({}, {"sft_eval": []})])
def test_a_manifest_that_was_not_finished_is_left_empty(shared, files, tmp_path, monkeypatch):
    overlap.write_manifest(tmp_path / "manifest", {"sft_eval": []})
    monkeypatch.setattr(
        pairs.data, "measure", lambda *_, **__: Measured(numbers={"files": {}, "shared_prompts": shared})
    )
    monkeypatch.setattr(pairs, "measure", lambda *_: Measured())
    args = Namespace(tokenizer="", sampling="", manifest=tmp_path / "manifest")
    running = SimpleNamespace(step="check_pairs", inputs={})
    write_jsonl(tmp_path / "train", [pair(1, "2", "3")])
    verdict = pairs.decide(
        args, {"preference_train": tmp_path / "train"}, {}, CheckPairsStep(validation=LIMITS), running
    )
    assert verdict.gate == "check_pairs"
    assert json.loads((tmp_path / "manifest").read_text())["files"] == files


def run(folder, tokenizer, files: dict[str, list[dict]], metrics: dict) -> Verdict:
    for name, rows in files.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    (folder / "sampling.json").write_text(json.dumps(metrics))
    validation = {"answer_match": "exact", "min_train_rows": 4, "min_sampled_pairs": 4, "confidence": 0.5}
    inputs = {name: folder / f"{name}.jsonl" for name in files} | {"sampling": folder / "sampling.json"}
    outputs = {
        name: folder / "out" / name for name in ("verdict", "report", "summary", "manifest", "metrics", "passed")
    }
    flags = {
        "step": "check_pairs", "storage-root": folder / "root", "config": json.dumps({"validation": validation}),
        "tokenizer": tokenizer, **{name.replace("_", "-"): path for name, path in inputs.items()}, **outputs,
    }  # fmt: skip
    pairs.main([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    return Verdict.read((folder / "out" / "verdict").read_bytes())


METRICS = {"num_sampled_pairs": 6, "pair_yield": 1.0, "least_margin": 1.0, "mean_margin": 1.0}


@pytest.fixture
def files() -> dict[str, list[dict]]:
    words = ["apples", "bridges", "candles", "drums", "engines", "flutes", "gardens", "hammers", "islands", "jars"]

    def named(number: int) -> dict:
        content = f"A ship carries {number} {words[number]} {words[number - 1]}: how many with one more?"
        return pair(number, f"{number + 1}", f"{number}") | {"prompt": [{"role": "user", "content": content}]}

    eval_ = [named(number) for number in range(7, 10)]
    sft = [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in eval_]
    return {"sft_eval": sft, "train": [named(number) for number in range(1, 7)], "eval": eval_}


@pytest.mark.long
def test_sound_files_pass_and_a_held_out_prompt_that_is_trained_on_fails(tmp_path, tiny_model, files):
    verdict = run(tmp_path, tiny_model, files, METRICS)
    wrong = {check.name: check.detail for check in verdict.checks if check.status != "passed"}
    assert wrong.keys() <= {"eval_rows"}, wrong
    leaked = run(tmp_path, tiny_model, files | {"train": [*files["train"], *files["eval"]]}, METRICS)
    assert {"shared_prompts"} <= {check.name for check in leaked.checks if check.status == "failed"}
