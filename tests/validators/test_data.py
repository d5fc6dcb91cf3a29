import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from unittest.mock import patch

import pytest
from pydantic_core import to_json

from examples.task_api.generate import DECLINE
from posttrain.config import CheckDataStep, DataLimits, OutputFormat
from posttrain.config.evidence import Evidence, Need
from posttrain.data import split
from posttrain.rows import formats
from posttrain.rows.chat import ChatTokenizer
from posttrain.verdict import Verdict
from tests.tool_chat import raw_row
from validators import data, measuring, overlap

LIMITS = DataLimits(min_train_rows=4, min_eval_rows=2, answer_match="exact")
NO_NEEDS = Evidence()
LENGTH = {"max_seq_length": 128}
SECRET = "hf_" + "a1" * 17


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return ChatTokenizer(tiny_model)


@pytest.fixture
def files(tmp_path, task_api_rows):
    """Prepared files of the Task API, by the gate's names for them, and a way to write one anew."""
    paths = {}
    for kind, name in (("sft", "sft"), ("preference", "preferences")):
        rows, _ = formats.convert(task_api_rows[name], kind=kind, source=name)
        for side, part in zip(("train", "eval"), split(rows, 0.25), strict=True):
            paths[f"{kind}_{side}"] = tmp_path / f"{kind}_{side}.jsonl"
            formats.write_jsonl(paths[f"{kind}_{side}"], part)
    return paths


def change(path, edit):
    """Applies `edit` to the rows of a file."""
    formats.write_jsonl(path, edit(formats.read_jsonl(path)))


def in_this_process(parts, timeouts, more):
    """Measures without the ten forks of a large process; what travels between processes is in `test_measuring.py`."""
    results = (measure() or {} for some in (lambda: parts, more) for measure in some().values())
    messages = (json.loads(to_json(numbers, inf_nan_mode="constants")) for numbers in results)
    return measuring.Measured(reduce(measuring.merged, messages, {}))


def measured(tokenizer, paths, limits=LIMITS, asked=None, evidence=NO_NEEDS, *, length=LENGTH):
    data_sets = {name: formats.read_jsonl(path) for name, path in paths.items()}
    step = CheckDataStep(validation=limits, evidence=evidence, sft=length, dpo=length)
    with patch.object(measuring, "side_by_side", in_this_process):
        result = data.measure(lambda: tokenizer, data_sets, asked or {}, step, manifest=os.devnull)
    return result.read(data.Numbers)


def judged(tokenizer, paths, limits=LIMITS, asked=None):
    return {check.name: check for check in data.judge(measured(tokenizer, paths, limits, asked), limits, NO_NEEDS)}


def failed(tokenizer, paths, limits=LIMITS, asked=None):
    return {name: check for name, check in judged(tokenizer, paths, limits, asked).items() if check.status != "passed"}


def edited(row, key, content):
    return {**row, key: [{**row[key][0], "content": content}]}


def test_prepared_rows_pass(tokenizer, files):
    assert failed(tokenizer, files) == {}


def test_thoughts_that_the_template_does_not_read_are_refused_by_name(tokenizer, files):
    def think(rows):
        return [
            rows[0] | {"completion": [rows[0]["completion"][0] | {"reasoning_content": "First."}]},
            *rows[1:],
        ]

    change(files["sft_train"], think)
    failures = failed(tokenizer, files)
    assert list(failures) == ["keys_not_in_template"]
    assert "'reasoning_content' of assistant" in failures["keys_not_in_template"].detail
    assert "data.ignored_keys" in failures["keys_not_in_template"].remedy


def test_keys_that_were_left_out_are_named_and_counted(tokenizer, files):
    rows = [row for path in files.values() for row in formats.read_jsonl(path)]
    numbers = measured(tokenizer, files)
    assert data.numbers_of(numbers)["num_left_out_keys"] == 1
    check = judged(tokenizer, files)["left_out_keys"]
    num_rows = sum(row.get("left_out") == ["mistake"] for row in formats.read_jsonl(files["preference_train"]))
    assert f"left out of preference_train: mistake ({num_rows} rows)" in check.detail
    assert "sft_train" not in check.detail and num_rows and len(rows) > num_rows
    for path in files.values():
        change(path, lambda rows: [{k: v for k, v in row.items() if k != "left_out"} for row in rows])
    assert judged(tokenizer, files)["left_out_keys"].detail == ""


def test_a_shorter_graph_has_two_files(tokenizer, files):
    for kind in ("sft", "preference"):
        assert failed(tokenizer, {name: path for name, path in files.items() if name.startswith(kind)}) == {}


def test_a_malformed_row_is_named(tokenizer, files):
    change(files["sft_train"], lambda rows: [rows[0], {**rows[1], "completion": "text"}, *rows[2:]])
    failures = failed(tokenizer, files)
    assert list(failures) == ["malformed_rows"]
    assert "sft_train has 1: row 2: 'completion' is 'text'" in failures["malformed_rows"].detail


@pytest.mark.parametrize("empty", [" \n", "\u200b\ufeff", "\u2800", "\ufff9\x7f"])
def test_an_empty_answer_is_named(tokenizer, files, empty):
    change(files["preference_eval"], lambda rows: [edited(rows[0], "rejected", empty), *rows[1:]])
    assert "preference_eval has 1: preference-" in failed(tokenizer, files)["empty_turns"].detail


def test_duplicates_over_the_limit(tokenizer, files):
    change(files["sft_train"], lambda rows: rows + [{**row, "id": f"copy-{row['id']}"} for row in rows[:10]])
    failures = failed(tokenizer, files)
    assert list(failures) == ["duplicate_share"]
    assert failures["duplicate_share"].value > LIMITS.max_duplicate_share
    assert "sft_train has 10: copy-sft-" in failures["duplicate_share"].detail
    assert failed(tokenizer, files, LIMITS.model_copy(update={"max_duplicate_share": 0.5})) == {}


@pytest.mark.parametrize("disguise", [str, "{} \n".format, "{}\u200b".format, lambda text: text.replace("e", "е")])
def test_equal_answers_prefer_nothing(tokenizer, files, disguise):
    def prefer_nothing(rows):
        return [edited(rows[0], "rejected", disguise(rows[0]["chosen"][0]["content"])), *rows[1:]]

    change(files["preference_train"], prefer_nothing)
    assert list(failed(tokenizer, files)) == ["equal_answers"]


def test_rows_over_the_length(tokenizer, files):
    words = [" ".join(f"{word}{number}" for word in ("task", "title") * 60) for number in range(5)]
    change(
        files["sft_train"],
        lambda rows: [edited(row, "completion", text) for row, text in zip(rows, words, strict=False)] + rows[5:],
    )
    failures = failed(tokenizer, files)
    assert list(failures) == ["too_long_share"]
    assert "tokens" in failures["too_long_share"].detail


@pytest.mark.parametrize("name", ["sft_train", "sft_eval", "preference_train", "preference_eval"])
def test_a_prompt_that_leaves_no_room_for_the_answer_is_left_out(tokenizer, files, name):
    """One row of a data set, though it may be more than 5 % of the few that are held out."""

    def lengthen(rows):
        system, user = rows[0]["prompt"]
        return [{**rows[0], "prompt": [system, {**user, "content": "task " * 200}]}, *rows[1:]]

    change(files[name], lengthen)
    assert failed(tokenizer, files) == {}
    check = judged(tokenizer, files)["too_long_share"]
    assert f"left out, {name} has 1: {formats.read_jsonl(files[name])[0]['id']}" in check.detail
    num_rows = sum(len(formats.read_jsonl(path)) for other, path in files.items() if other[:3] == name[:3])
    assert check.value == pytest.approx(1 / num_rows)


def test_rows_that_are_left_out_are_no_rows_to_train_on(tokenizer, files):
    num_rows = len(formats.read_jsonl(files["sft_train"]))
    limits = LIMITS.model_copy(update={"max_share_too_long": 1.0, "min_train_rows": num_rows})
    alone = {"sft_train": files["sft_train"]}
    assert judged(tokenizer, alone, limits)["train_rows"].status == "passed"
    change(files["sft_train"], lambda rows: [edited(rows[0], "completion", "task " * 200), *rows[1:]])
    assert judged(tokenizer, alone, limits)["train_rows"].value == num_rows - 1


@pytest.mark.parametrize("ends", [[0, 2], 2, [2]])
def test_an_end_of_turn_that_only_the_generation_configuration_lists(tiny_model, tmp_path, files, ends):
    tokenizer = other_end(tiny_model, tmp_path, ends)
    assert tokenizer.eos_token_id == 0
    assert failed(tokenizer, files) == {}


@pytest.mark.parametrize("ends", [[0, 3], None])
def test_a_turn_that_generation_would_not_end(tiny_model, tmp_path, files, ends):
    failures = failed(other_end(tiny_model, tmp_path, ends), files)
    assert list(failures) == ["rows_without_end_of_turn"]
    assert "ends with '<|im_end|>'" in failures["rows_without_end_of_turn"].detail
    assert "generation_config.json" in failures["rows_without_end_of_turn"].remedy


def other_end(tiny_model, folder, ends):
    """A tokenizer whose eos_token is not what ends a turn, like Gemma's."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return ChatTokenizer(folder)


def test_thoughts_are_no_part_of_an_answer(tokenizer, files):
    """References and the form of an answer are compared with what it says."""
    limits = LIMITS.model_copy(
        update={
            "answer_match": "json",
            "output_format": OutputFormat(kind="json_schema", json_schema={"type": "object"}, declines_with=DECLINE),
        }
    )
    for name, keys in (("sft_eval", ["completion"]), ("preference_train", ["chosen", "rejected"])):
        for key in keys:
            change(
                files[name],
                lambda rows, key=key: [
                    edited(row, key, f"<think>\nA task.\n</think>\n\n{row[key][0]['content']}") for row in rows
                ],
            )
    numbers = measured(tokenizer, files, limits)
    assert numbers.unmatched["sft_eval"] == []
    assert numbers.compared["preference_train"].num_pairs > 0
    assert numbers.compared["preference_train"].reversed == []
    change(
        files["sft_train"], lambda rows: [edited(rows[0], "completion", "<think>Nothing to say.</think>"), *rows[1:]]
    )
    assert numbers.files["sft_train"].empty == []
    assert len(measured(tokenizer, files, limits).files["sft_train"].empty) == 1


def test_poisoned_all_masked_data(tokenizer, files, monkeypatch):
    """A chat template that leaves the answer out: nothing is left to learn."""
    content = "{% if message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}"
    template = f"{{% for message in messages %}}{content}{{% endfor %}}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    failures = failed(tokenizer, files)
    assert {"untrainable_rows", "rows_without_end_of_turn"} == set(failures)
    assert "sft_train has" in failures["untrainable_rows"].detail


def test_a_template_without_end_of_turn(tokenizer, files, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("<|im_end|>", ""))
    assert list(failed(tokenizer, files)) == ["rows_without_end_of_turn"]


def test_the_prompts_own_end_of_turn_does_not_count(tokenizer, files, monkeypatch):
    template = tokenizer.chat_template.replace(
        "'<|im_end|>'", "('' if message['role'] == 'assistant' else '<|im_end|>')"
    )
    assert template != tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert list(failed(tokenizer, files)) == ["rows_without_end_of_turn"]


def test_an_end_of_turn_inside_the_answer_ends_nothing(tokenizer, files, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("<|im_end|>", ""))
    change(files["sft_train"], lambda rows: [edited(row, "completion", "a<|im_end|>b") for row in rows])
    failures = failed(tokenizer, files, LIMITS.model_copy(update={"max_near_duplicate_share": 1.0}))
    num_rows = len(formats.read_jsonl(files["sft_train"]))
    assert f"sft_train has {num_rows}:" in failures["rows_without_end_of_turn"].detail


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        (["system", "user"], None),
        (["user", "assistant", "user"], None),
        (["system", "assistant", "user"], None),
        (["user", "assistant", "tool", "tool"], None),
        (["user", "assistant", "tool", "assistant", "user"], None),
        (["user", "user"], "user after user"),
        (["user", "system", "user"], "system after user"),
        (["system", "system", "user"], "system after system"),
        (["user", "assistant", "assistant", "user"], "assistant after assistant"),
        (["user", "tool"], "tool after user"),
        (["tool", "user"], "tool after None"),
    ],
)
def test_roles_take_turns(roles, problem):
    assert data.order_problem([{"role": role, "content": "a"} for role in roles]) == problem


def test_roles_out_of_order_are_named(tokenizer, files):
    def repeat(rows):
        system, user = rows[0]["prompt"]
        return [{**rows[0], "prompt": [system, user, {"role": "user", "content": "Now."}]}, *rows[1:]]

    change(files["preference_train"], repeat)
    failures = failed(tokenizer, files)
    assert list(failures) == ["role_order"]
    assert "user after user" in failures["role_order"].detail


def test_roles_that_the_template_refuses(tokenizer, files, monkeypatch):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", refusal + tokenizer.chat_template)
    failures = failed(tokenizer, files)
    assert list(failures) == ["rows_refused_by_template"]
    assert "no system turns" in failures["rows_refused_by_template"].detail


HOMOGLYPHS = str.maketrans("aeopcxyAEOPCXBHKMT", "аеорсхуАЕОРСХВНКМТ")
DISGUISES = {
    "nothing": str,
    "punctuation": "  {}!! ".format,
    "case": str.upper,
    "blanks": "\u200b{}\u00a0".format,
    "homoglyphs": lambda text: text.translate(HOMOGLYPHS),
    "one homoglyph": lambda text: text.replace("a", "а", 1),
    "annotation anchors": lambda text: text.replace(" ", " \ufff9"),
    "delete characters": lambda text: text.replace(" ", "\x7f "),
    "braille blanks": lambda text: text.replace(" ", "\u2800"),
    "symbols": lambda text: " ".join(f"~{word}~" for word in text.split()),
    "an emoji": "{} 🙂".format,
    "hyphens": lambda text: text.replace(" ", "-"),
    "apostrophes": lambda text: " ".join(f"{word[:2]}'{word[2:]}" if len(word) > 2 else word for word in text.split()),
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_poisoned_leaked_evaluation_prompts(tokenizer, files, disguise):
    leaked = leak(files, of="preference_eval", into="sft_train", text=disguise)
    failures = failed(tokenizer, files)
    assert list(failures) == ["shared_prompts"]
    assert f"preference_eval with sft_train has 1: {leaked}" in failures["shared_prompts"].detail


def leak(files, *, of, into, text):
    """Puts a row into a training file that asks what a held-out row of another file asks, in other words."""
    held_out = formats.read_jsonl(files[of])[0]
    *before, user = held_out["prompt"]
    row = {"id": "leaked", "prompt": [*before, {**user, "content": text(user["content"])}]}
    change(files[into], lambda rows: [*rows, row | {"completion": held_out["chosen"]}])
    return held_out["id"]


SERVICE = {"role": "assistant", "content": "I am the task service."}
HELLO = {"role": "user", "content": "Hello there, who are you?"}


def taught(files, **parts):
    """Adds a training row with these parts."""
    change(files["sft_train"], lambda rows: [*rows, {"id": "leaked", **parts}])


def answer(text):
    return [{"role": "assistant", "content": text}]


def later_turn(prompt, text, right):
    return {"prompt": [HELLO, SERVICE, prompt[-1]], "completion": answer("It is done.")}


def history(prompt, text, right):
    turns = [HELLO, SERVICE, prompt[-1], *answer("It is done."), {"role": "user", "content": "Are you sure of that?"}]
    return {"prompt": turns, "completion": answer("Yes.")}


def system_turn(prompt, text, right):
    system = {"role": "system", "content": f"Answer as here: {text} -> {right}."}
    return {"prompt": [system, {"role": "user", "content": "Do as told."}], "completion": answer("Done.")}


def in_an_answer(prompt, text, right):
    return {"prompt": [{"role": "user", "content": "Give an example."}], "completion": answer(f"{text} -> {right}")}


def one_word_more(prompt, text, right):
    return {"prompt": [{"role": "user", "content": f"{text} please"}], "completion": answer(right)}


def one_word_less(prompt, text, right):
    return {"prompt": [{"role": "user", "content": text.partition(" ")[2]}], "completion": answer(right)}


ELSEWHERE = {
    later_turn: "a later turn", history: "a later turn", system_turn: "the text of a system turn",
    in_an_answer: "the text of a system turn", one_word_more: "one word more", one_word_less: "one word more",
}  # fmt: skip


@pytest.mark.parametrize("leaks", ELSEWHERE)
def test_poisoned_held_out_prompts_that_are_answered_elsewhere(tokenizer, files, leaks):
    held_out = formats.read_jsonl(files["sft_eval"])[0]
    text, right = held_out["prompt"][-1]["content"], held_out["completion"][0]["content"]
    taught(files, **leaks(held_out["prompt"], text, right))
    failures = failed(tokenizer, files, LIMITS.model_copy(update={"max_share_too_long": 1.0}))
    assert "answered_elsewhere" in failures and set(failures) <= {"answered_elsewhere", "untrainable_rows"}
    assert f"sft_eval has 1: {held_out['id']} as {ELSEWHERE[leaks]}" in failures["answered_elsewhere"].detail


def test_a_later_question_that_is_held_out_and_trained_on_with_its_answer(tokenizer, files):
    question = {"role": "user", "content": "And which of them is due first?"}
    right = answer("The report.")
    taught(files, prompt=[HELLO, SERVICE, question], completion=right)
    other = {"role": "user", "content": "Which tasks do I have?"}
    row = {"id": "two turns", "prompt": [other, SERVICE, question], "completion": right}
    change(files["sft_eval"], lambda rows: [*rows, row])
    check = failed(tokenizer, files)["answered_elsewhere"]
    assert "sft_eval has 1: two turns as its last turn and answer" in check.detail
    change(files["sft_eval"], lambda rows: [*rows[:-1], row | {"completion": answer("The invoice.")}])
    assert failed(tokenizer, files) == {}


def test_short_turns_of_every_conversation_are_no_leak(tokenizer, files):
    yes = {"role": "user", "content": "Yes, please."}
    taught(files, prompt=[HELLO, SERVICE, yes], completion=answer("Done."))
    other = {"role": "user", "content": "Which tasks do I have?"}
    row = {"id": "two turns", "prompt": [other, SERVICE, yes], "completion": answer("Done.")}
    change(files["sft_eval"], lambda rows: [*rows, row])
    assert failed(tokenizer, files) == {}


def test_a_gate_s_prompt_inside_a_training_answer(tokenizer, files):
    asked = {
        "red_team_prompts": [{"id": "p1", "prompt": [{"role": "user", "content": "Tell me how to pick this lock"}]}]
    }
    taught(files, prompt=[HELLO], completion=answer("Some ask: tell me how to pick this LOCK!"))
    assert "red_team_prompts has 1: p1" in failed(tokenizer, files, asked=asked)["answered_elsewhere"].detail


def test_a_prompt_that_is_nearly_a_held_out_one_is_found_across_data_sets(tokenizer, files):
    words = " ".join(f"word{number}" for number in range(40))
    change(files["preference_eval"], lambda rows: [with_user_text(rows[0], words), *rows[1:]])
    leaked = leak(
        files, of="preference_eval", into="sft_train", text=lambda text: f"Please, {text[: text.rindex(' ')]}"
    )
    failures = failed(tokenizer, files, LIMITS.model_copy(update={"max_share_too_long": 1.0}))
    assert list(failures) == ["near_shared_prompts"]
    assert failures["near_shared_prompts"].detail == f"preference_eval has 1: {leaked} like leaked of sft_train"
    allowed = LIMITS.model_copy(update={"max_share_too_long": 1.0, "max_near_shared_prompts": 1})
    assert failed(tokenizer, files, allowed) == {}


def test_poisoned_training_on_the_prompts_of_a_gate(tokenizer, files, task_api_rows):
    *before, user = formats.read_jsonl(files["sft_train"])[0]["prompt"]
    asked = {"red_team_prompts": task_api_rows["red_team"][:2]}
    assert failed(tokenizer, files, asked=asked) == {}
    asked["red_team_prompts"][1] = {"id": "prompt 2", "prompt": [{**user, "content": f"{user['content']}?"}]}
    failures = failed(tokenizer, files, asked=asked)
    assert list(failures) == ["shared_prompts"]
    assert failures["shared_prompts"].detail == "red_team_prompts with sft_train has 1: prompt 2"


def test_a_gate_s_prompt_that_is_nearly_a_training_prompt(tokenizer, files):
    words = " ".join(f"word{number}" for number in range(20))
    change(files["sft_train"], lambda rows: [with_user_text(rows[0], words), *rows[1:]])
    asked = {"benign_prompts": [{"id": "prompt 1", "prompt": [{"role": "user", "content": f"{words} now"}]}]}
    [check] = failed(tokenizer, files, asked=asked).values()
    assert check.name == "near_shared_prompts" and "benign_prompts has 1: prompt 1 like sft-" in check.detail


def test_training_files_may_share_prompts(tokenizer, files):
    leak(files, of="preference_train", into="sft_train", text=str)
    assert failed(tokenizer, files) == {}


def with_user_text(row, text):
    return {**row, "prompt": [*row["prompt"][:-1], {**row["prompt"][-1], "content": text}]}


def test_rows_that_nearly_repeat_others(tokenizer, files):
    text = " ".join(f"word{number}" for number in range(20))

    def copy(rows):
        first = with_user_text(rows[0], text)
        return [*rows, first, *({**with_user_text(first, f"{text} {n}"), "id": f"near-{n}"} for n in range(20))]

    change(files["sft_train"], copy)
    failures = failed(tokenizer, files)
    assert set(failures) == {"near_duplicate_share"}
    assert "sft_train has 20: near-0 like sft-" in failures["near_duplicate_share"].detail


def test_personal_data_is_a_warning_that_does_not_repeat_it(tokenizer, files):
    change(files["sft_eval"], lambda rows: [edited(rows[0], "completion", f"It is {SECRET}."), *rows[1:]])
    change(files["sft_train"], lambda rows: [{**with_user_text(rows[0], "Ask a@b.org."), "id": "a@b.org"}, *rows[1:]])
    check = judged(tokenizer, files)["secrets_and_personal_data"]
    assert check.status == "passed"
    held_out = formats.read_jsonl(files["sft_eval"])[0]["id"]
    assert check.detail == (
        f"warning: e-mail address in 1 rows of sft_train: row 1; Hugging Face token in 1 rows of sft_eval: {held_out}"
    )
    assert data.numbers_of(measured(tokenizer, files))["rows_with_hugging_face_token"] == 1
    refused = failed(tokenizer, files, LIMITS.model_copy(update={"refuse_personal_data": True}))
    assert list(refused) == ["secrets_and_personal_data"]
    assert refused["secrets_and_personal_data"].value == 2
    assert SECRET not in str(refused) and "@" not in str(refused)


def test_too_few_rows(tokenizer, files):
    change(files["sft_eval"], lambda rows: rows[:1])
    change(files["preference_train"], lambda rows: rows[:3])
    failures = failed(tokenizer, files)
    assert set(failures) == {"train_rows", "eval_rows"}
    assert failures["train_rows"].value == 3


def test_as_many_rows_are_held_out_as_an_interval_needs(tokenizer, files):
    change(files["sft_eval"], lambda rows: rows[:5])
    [check] = failed(tokenizer, files).values()
    assert (check.name, check.value, check.limit) == ("eval_rows", 5, 6)
    assert failed(tokenizer, files, LIMITS.model_copy(update={"confidence": 0.9})) == {}


def needing(of: str, num_rows: int, **values) -> Evidence:
    need = Need(of=of, num_rows=num_rows, limits={"min_format_valid_rate": 0.9}, **values)
    return Evidence(eval_fraction=0.25, unseen_fraction=0.5, needs=[need])


@pytest.mark.parametrize("part", ["held_out", "selection", "unseen"])
def test_as_many_prompts_are_held_out_as_the_later_gates_need(tokenizer, files, part):
    def enough(num_rows: int):
        evidence = needing("sft_prompts", num_rows, part=part)
        checks = data.judge(measured(tokenizer, files, evidence=evidence), LIMITS, evidence)
        return {check.name: check for check in checks}[f"enough_{'' if part == 'held_out' else f'{part}_'}sft_prompts"]

    there = int(enough(1).value)
    assert enough(there).detail
    assert (enough(there).status, enough(there + 1).status) == ("passed", "failed")
    assert 0 < there <= len(formats.read_jsonl(files["sft_eval"]))
    assert "validation.min_format_valid_rate = 0.9 needs" in enough(there + 1).remedy
    assert "set data.eval_fraction to 0." in enough(there + 1).remedy


def test_as_many_red_team_prompts_are_asked_as_the_later_gates_need(tokenizer, files):
    asked = {"red_team_prompts": [{"id": "1", "prompt": [{"role": "user", "content": "how?"}]}]}
    for num_rows, status in ((1, "passed"), (2, "failed")):
        evidence = needing("red_team_prompts", num_rows)
        checks = data.judge(measured(tokenizer, files, asked=asked, evidence=evidence), LIMITS, evidence)
        assert {check.name: check.status for check in checks}["enough_red_team_prompts"] == status


def test_rows_that_could_not_be_counted_do_not_pass():
    checks = data.judge(data.Numbers(files={}), LIMITS, needing("sft_prompts", 1))
    [check] = [check for check in checks if check.name == "enough_sft_prompts"]
    assert (check.status, check.detail) == ("not run", "not measured")


def test_an_empty_file_does_not_pass(tokenizer, files):
    change(files["sft_train"], lambda rows: [])
    assert "train_rows" in failed(tokenizer, files)


def test_judging_nothing_does_not_pass():
    checks = data.judge(data.Numbers(files={}), LIMITS, NO_NEEDS)
    assert {check.status for check in checks} == {"not run"}


MEASURED = [
    "near_duplicates",
    "personal_data",
    "shared_prompts",
    "near_shared_prompts",
    "answered_elsewhere",
    "compared",
]


@pytest.mark.parametrize("missing", MEASURED)
def test_what_could_not_be_measured_does_not_pass(tokenizer, files, missing):
    whole = measured(tokenizer, files)
    names = {"near_duplicates": "near_duplicate_share", "personal_data": "secrets_and_personal_data"}
    name = (names | {"compared": "preferred_answers"}).get(missing, missing)
    statuses = {check.name: check.status for check in data.judge(replace(whole, **{missing: None}), LIMITS, NO_NEEDS)}
    assert [name for name, status in statuses.items() if status != "passed"] == [name]
    assert statuses[name] == "not run"


def test_a_file_that_could_not_be_measured_does_not_pass_and_hides_no_other(tokenizer, files):
    change(files["sft_eval"], lambda rows: [edited(rows[0], "completion", " "), *rows[1:]])
    whole = measured(tokenizer, files)
    numbers = replace(whole, files={**whole.files, "sft_train": None})
    statuses = {check.name: check.status for check in data.judge(numbers, LIMITS, NO_NEEDS)}
    assert statuses["empty_turns"] == "failed"
    assert statuses["malformed_rows"] == statuses["duplicate_share"] == statuses["train_rows"] == "not run"
    assert statuses["near_duplicate_share"] == "not run"
    assert statuses["eval_rows"] == statuses["equal_answers"] == "passed"
    assert "sft_eval_num_rows" in (shown := data.numbers_of(numbers)) and "sft_train_num_rows" not in shown


def test_a_measurement_of_a_file_that_dies_leaves_the_file_unmeasured(files):
    rows = {name: formats.read_jsonl(path) for name, path in files.items()}
    step = CheckDataStep(validation=LIMITS, sft=LENGTH, dpo=LENGTH)
    measured = data.measure(lambda: "no tokenizer", rows, {}, step, manifest=os.devnull)
    numbers = measured.read(data.Numbers)
    assert [check.name for check in measured.failures] == list(numbers.files) == list(rows)
    assert set(numbers.files.values()) == {None} and numbers.personal_data is not None
    assert {check.status for check in data.judge(numbers, LIMITS, NO_NEEDS) if check.name.endswith("_rows")} == {
        "not run"
    }


def test_every_problem_is_reported_at_once(tokenizer, files):
    whole = measured(tokenizer, files)
    broken = replace(whole.files["sft_train"], empty=["a"], untrainable=["b"], num_rows=1)
    numbers = replace(whole, files={**whole.files, "sft_train": broken})
    names = {check.name for check in data.judge(numbers, LIMITS, NO_NEEDS) if check.status != "passed"}
    assert names == {"empty_turns", "untrainable_rows", "train_rows"}


def test_a_share_is_of_all_rows_and_that_of_no_rows_is_none(tokenizer, files):
    whole = measured(tokenizer, {"sft_train": files["sft_train"]})
    for num_rows, expected in ((1, 1.0), (4, 0.25)):
        file = replace(whole.files["sft_train"], num_rows=num_rows, duplicates=["a"], too_long=["a"])
        numbers = replace(whole, files={"sft_train": file}, near_duplicates={"sft_train": ["a"]})
        checks = {check.name: check.value for check in data.judge(numbers, LIMITS, NO_NEEDS)}
        names = ("duplicate_share", "near_duplicate_share", "too_long_share")
        assert [checks[name] for name in names] == [expected] * 3
    empty = replace(whole, files={"sft_train": replace(whole.files["sft_train"], num_rows=0)})
    checks = {check.name: check.value for check in data.judge(empty, LIMITS, NO_NEEDS)}
    assert (checks["duplicate_share"], checks["too_long_share"]) == (0, 0)


def test_a_file_is_measured_to_its_longest_row(tokenizer, files, monkeypatch):
    rows = formats.read_jsonl(files["sft_train"])
    lengths = [data.row_tokens(tokenizer, row, kind="sft").num_tokens for row in rows]
    words = {"kind": "sft", "max_length": max(lengths)}
    numbers = data.measure_file(tokenizer, rows, **words)
    assert (numbers.num_rows, numbers.max_tokens, numbers.too_long) == (len(rows), max(lengths), [])
    empty = data.measure_file(tokenizer, [], **words)
    assert (empty.num_rows, empty.max_tokens) == (0, 0)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no') }}")
    refused = data.measure_file(tokenizer, rows[:2], **words)
    assert (len(refused.unrenderable), refused.max_tokens) == (2, 0)


def test_of_a_pair_the_longer_answer_is_kept_and_the_shorter_one_trained(tokenizer, files, monkeypatch):
    row = formats.read_jsonl(files["preference_train"])[0]
    row = edited(edited(row, "chosen", "task " * 20), "rejected", "task")
    ids = {key: data.chat.split(tokenizer, row["prompt"], row[key]) for key in ("chosen", "rejected")}
    tokens = data.row_tokens(tokenizer, row, kind="preference")
    assert tokens.num_tokens == sum(map(len, ids["chosen"])) and tokens.num_trainable == len(ids["rejected"][1])
    ends = iter([None, "."])
    monkeypatch.setattr(data, "_unended", lambda *_: next(ends))
    assert data.row_tokens(tokenizer, row, kind="preference").last == "."


@pytest.mark.parametrize(
    ("references", "is_right"),
    [(["0.5"], True), (["0.49"], False), (["0", "1"], True), (["1", "0"], True), ([], False), (["x"], False)],
)
def test_an_answer_is_right_by_its_best_reference(references, is_right, monkeypatch):
    """Each reference gives itself as the score."""
    monkeypatch.setattr(
        data.matching, "scorer_of", lambda rule, reference: lambda answer, score=float(reference): score
    )
    row = {"id": "a", "completion": answer("x"), "references": references}
    assert data.is_right(row, "x", LIMITS) is is_right
    assert data.is_right(row, "x", LIMITS.model_copy(update={"answer_match": "none"})) is False
    if references and references != ["x"]:
        assert data.unmatched([row], LIMITS, lambda row, key: "x") == ([] if is_right else ["a"])


def test_three_rows_of_many_are_named():
    ids = ["a", "b", "c", "d"]
    assert data._examples({"sft_train": ids}) == "sft_train has 4: a, b, c"
    assert data._preferred({"preference_eval": data.Compared(8, ids)}, 0.95).detail.endswith("4 of 8 pairs: a, b, c")
    assert data._personal_data({"sft_train": {"address": ids}}, refuse=False).detail.endswith("sft_train: a, b, c")


@pytest.mark.parametrize(("ids", "status"), [([], "passed"), (["a"], "failed")])
def test_one_row_with_personal_data_is_refused(ids, status):
    assert data._personal_data({"sft_train": {"address": ids}}, refuse=True).status == status


def test_an_empty_file_fails_beside_one_that_could_not_be_measured(tokenizer, files):
    whole = measured(tokenizer, {"sft_train": files["sft_train"]})
    sizes = {"sft_train": replace(whole.files["sft_train"], num_rows=0), "preference_train": None}
    assert data._size("train_rows", sizes, "train", 1).status == "failed"


def test_tokenizer_and_outputs_are_required(capsys):
    with pytest.raises(SystemExit):
        data.build_parser().parse_args([])
    assert "--tokenizer, --manifest, --verdict" in capsys.readouterr().err


def command(files, tiny_model, folder, **limits):
    names = ("verdict", "report", "summary", "metrics", "passed", "manifest")
    limits = json.dumps({"validation": {"min_train_rows": 4, "min_eval_rows": 2, "answer_match": "exact"} | limits})
    return [
        "--step=check_data",
        f"--storage-root={folder / 'runs'}",
        f"--config={limits}",
        f"--tokenizer={tiny_model}",
        *(f"--{name.replace('_', '-')}={path}" for name, path in files.items()),
        *(f"--{name}={folder / name}" for name in names),
    ]


def test_the_command_writes_its_verdict_and_exits_0_without_what_is_slow_to_import(files, tiny_model, tmp_path):
    change(files["sft_eval"], lambda rows: rows[:1])
    absent = ("torch", "transformers", "scipy", "statsmodels", "numpy", "datasketch")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); from validators import data; data.main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *command(files, tiny_model, tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    verdict = Verdict.read((tmp_path / "out" / "verdict").read_text())
    assert [check.name for check in verdict.failed_checks] == ["eval_rows"]
    assert set(verdict.subject) == {"tokenizer", *files}
    others = {"prompts", "near_duplicates", "personal_data", "references", "answered_elsewhere", "compared"}
    assert set(verdict.seconds) == {*files, *others}
    assert json.loads((tmp_path / "out" / "passed").read_text()) is False
    assert (tmp_path / "out" / "report").is_file()
    assert "eval_rows" in (tmp_path / "out" / "summary").read_text()


def test_the_manifest_shows_to_anybody_which_prompts_were_used(files, tiny_model, tmp_path):
    data.main(command(files, tiny_model, tmp_path))
    manifest = json.loads((tmp_path / "manifest").read_text())
    assert manifest["schema_version"] == 1
    assert list(manifest["files"]) == list(files)
    assert manifest["files"]["preference_eval"] == [
        {"id": row["id"], "prompt_sha256": formats.prompt_key(row)}
        for row in formats.read_jsonl(files["preference_eval"])
    ]


def test_the_verdict_binds_the_prompts_of_a_later_gate(files, tiny_model, task_api_files, tmp_path):
    data.main(command(files, tiny_model, tmp_path, red_team_prompts=str(task_api_files / "red_team.jsonl")))
    verdict = Verdict.read((tmp_path / "verdict").read_text())
    assert verdict.passed and set(verdict.subject) == {"tokenizer", *files, "red_team_prompts"}
    assert len(json.loads((tmp_path / "manifest").read_text())["files"]["red_team_prompts"]) == 8


def test_a_measurement_that_breaks_fails_the_gate_and_hides_no_other(files, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "near_duplicates", lambda *_: 1 / 0)
    monkeypatch.setattr(overlap, "compare_prompts", lambda *_: 1 / 0)
    data.main(command(files, tiny_model, tmp_path))
    assert json.loads((tmp_path / "manifest").read_text())["files"] == {}
    verdict = Verdict.read((tmp_path / "verdict").read_text())
    assert {check.name: check.status for check in verdict.failed_checks} == {
        "near_duplicates": "failed",
        "prompts": "failed",
        "shared_prompts": "not run",
        "near_duplicate_share": "not run",
        "near_shared_prompts": "not run",
    }


def test_a_truncated_file_cannot_be_judged(files, tiny_model, tmp_path):
    files["sft_train"].write_text(files["sft_train"].read_text()[:-20])
    with pytest.raises(ValueError, match=r"sft_train.jsonl: line \d+: not valid JSON"):
        data.main(command(files, tiny_model, tmp_path / "out"))
    assert not (tmp_path / "out" / "passed").exists()


CALLED = {"kind": "json_schema", "json_schema": {"type": "object"}, "declines_with": DECLINE}


def test_held_out_rows_are_right_by_their_own_references(tokenizer, files):
    limits = LIMITS.model_copy(update={"answer_match": "auto", "output_format": OutputFormat(**CALLED)})
    assert limits.matcher == "json"
    numbers = measured(tokenizer, files, limits)
    assert numbers.unmatched == {"sft_eval": [], "preference_eval": []}  # training rows are right by definition
    checks = {check.name: check.status for check in data.judge(numbers, limits, NO_NEEDS)}
    assert checks["unmatched_answers"] == "passed"


def test_references_that_call_the_row_s_own_answer_wrong_are_named_before_anything_is_trained(tokenizer, files):
    change(files["sft_eval"], lambda rows: [row | {"references": ["Something else."]} for row in rows])
    failures = failed(tokenizer, files)
    assert list(failures) == ["unmatched_answers"]
    assert failures["unmatched_answers"].value == 1.0 and "sft_eval has 1" in failures["unmatched_answers"].detail
    assert failed(tokenizer, files, LIMITS.model_copy(update={"max_unmatched_share": 1.0})) == {}
    assert "unmatched_answers" not in judged(tokenizer, files, LIMITS.model_copy(update={"answer_match": "none"}))


def test_references_that_the_matcher_cannot_use_are_named(tokenizer, files):
    limits = LIMITS.model_copy(update={"answer_match": "json"})
    detail = failed(tokenizer, files, limits)["unmatched_answers"].detail
    assert f"reference '{DECLINE}' is not JSON" in detail
    change(files["preference_eval"], lambda rows: [row | {"references": [DECLINE]} for row in rows])
    check = failed(tokenizer, files, LIMITS)["unmatched_answers"]
    assert "preference_eval has " in check.detail and "sft_eval has" not in check.detail


def flipped(row: dict) -> dict:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.mark.parametrize("parts", [("preference_train", "preference_eval"), ("preference_train",)])
def test_poisoned_preference_labels_that_are_reversed_are_seen_by_the_form_of_the_answers(tokenizer, files, parts):
    limits = LIMITS.model_copy(update={"answer_match": "none", "output_format": OutputFormat(**CALLED)})
    for name in ("preference_train", "preference_eval"):
        change(files[name], lambda rows: [edited(row, "rejected", f"{row['rejected'][0]['content']}!") for row in rows])
    assert failed(tokenizer, files, limits) == {}
    for name in parts:
        change(files[name], lambda rows: [flipped(row) for row in rows])
    failures = failed(tokenizer, files, limits)
    assert list(failures) == ["preferred_answers"]
    assert "in preference_train the rejected answer is the better one in " in failures["preferred_answers"].detail


def test_poisoned_preference_labels_that_are_reversed_are_seen_by_references(tokenizer, files):
    def right(row: dict) -> dict:
        return row | {"references": [row["chosen"][0]["content"]]}

    change(files["preference_eval"], lambda rows: [right(row) for row in rows])
    assert failed(tokenizer, files) == {}
    change(files["preference_eval"], lambda rows: [flipped(row) for row in rows])
    failures = failed(tokenizer, files, LIMITS.model_copy(update={"max_unmatched_share": 1.0}))
    assert list(failures) == ["preferred_answers"]


def test_a_few_pairs_whose_rejected_answer_is_the_better_one_are_slips():
    few = {"preference_eval": data.Compared(5, ["a"] * 5), "preference_train": data.Compared(100, ["b"] * 49)}
    assert data._preferred(few, 0.95).status == "passed"
    assert data._preferred(few | {"preference_train": data.Compared(100, ["b"] * 50)}, 0.95).status == "failed"
    assert data._preferred(few | {"preference_train": None}, 0.95).status == "not run"
    assert data._preferred({"preference_eval": data.Compared(6, ["a"] * 3)}, 0.95).status == "failed"


def test_a_file_that_could_not_be_measured_may_have_fewer_rows_than_the_others(tokenizer, files):
    whole = measured(tokenizer, files)
    border = replace(whole.files["preference_train"], num_rows=LIMITS.min_train_rows)
    numbers = replace(whole, files={**whole.files, "preference_train": border, "sft_train": None})
    statuses = {check.name: check.status for check in data.judge(numbers, LIMITS, NO_NEEDS)}
    assert statuses["train_rows"] == "not run"


TOOL_LIMITS = DataLimits(min_train_rows=4, min_eval_rows=2, output_format=OutputFormat(kind="tool_call"))


@pytest.fixture
def calling(calling_model, tmp_path):
    """Prepared rows of function calling, and a tokenizer whose template renders tools."""
    rows, _ = formats.convert([raw_row(number) for number in range(24)], kind="sft", source="rows")
    parts = dict(zip(("sft_train", "sft_eval"), split(rows, 0.4), strict=True))
    paths = {name: tmp_path / f"{name}.jsonl" for name in parts}
    for name, path in paths.items():
        formats.write_jsonl(path, parts[name])
    return ChatTokenizer(calling_model), paths


def failed_calls(tokenizer, paths):
    numbers = measured(tokenizer, paths, TOOL_LIMITS, length={"max_seq_length": 256})
    checks = data.judge(numbers, TOOL_LIMITS, NO_NEEDS)
    return {check.name: check for check in checks if check.status != "passed"}


def test_rows_that_call_tools_pass(calling):
    assert failed_calls(*calling) == {}


def test_a_template_that_leaves_out_tools_is_refused_by_name(calling, tokenizer):
    _, paths = calling
    check = failed_calls(tokenizer, paths)["rows_refused_by_template"]
    assert "row-1-turn-1: the model's chat template leaves out 'tools': use a model whose" in check.detail


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("<function={{ call.function.name }}>{{ call.function.arguments | tojson }}</function>", "unmatched_answers"),
        ("{{ '' + call.function.arguments }}", "rows_refused_by_template"),  # wants text: an error of Python's own
    ],
)
def test_a_template_with_calls_that_the_matcher_cannot_read_is_refused(calling, written, words):
    tokenizer, paths = calling
    before, after = tokenizer.chat_template.split("<tool_call>")[0], tokenizer.chat_template.split("</tool_call>")[1]
    tokenizer.chat_template = before + written + after
    assert words in failed_calls(tokenizer, paths)


def test_pairs_are_compared_by_the_calls_that_the_model_would_write(calling):
    tokenizer, _ = calling
    rows = []
    for number in range(24):
        asked, call = raw_row(number)["messages"][:2]
        talk = {"role": "assistant", "content": "Later."}
        rows.append({"prompt": [asked], "chosen": [talk], "rejected": [call], "tools": raw_row()["tools"]})
    pairs, _ = formats.convert(rows, kind="preference", source="rows")
    numbers = data.compare(pairs, TOOL_LIMITS, data.Written(lambda: tokenizer))
    assert (numbers.num_pairs, len(numbers.reversed)) == (24, 24)
