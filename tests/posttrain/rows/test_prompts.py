import json

import pytest

from posttrain.config import AlignmentLimits
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.rows.prompts import bring, given, read_prompts
from tests.tool_chat import TOOL

PROMPT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is 5!?"}]


def read(path) -> list[list[dict]]:
    return read_prompts(str(path), ["/"], key="red_team_prompts")


def test_prompts_may_be_text_or_messages(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "prompt": "How?"}, {"id": "2", "prompt": PROMPT}])
    assert read(tmp_path / "p.jsonl") == [[{"role": "user", "content": "How?"}], PROMPT]


@pytest.mark.parametrize(
    "prompt",
    [
        None, "", "\u200b", [], [{"role": "user"}], [{"role": "boss", "content": "x"}], {"role": "user"},
        [{"role": "system", "content": "Be kind."}], [{"role": "user", "content": " "}],
    ],
)  # fmt: skip
def test_a_bad_prompt_names_its_row(tmp_path, prompt):
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "prompt": "How?"}, {"id": "2", "prompt": prompt}])
    with pytest.raises(ValueError, match="p.jsonl: row 2: 'prompt' is"):
        read(tmp_path / "p.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.jsonl"):
        read(tmp_path / "none.jsonl")


def test_a_file_outside_the_prefixes_is_refused_by_its_key(tmp_path):
    with pytest.raises(ValueError, match="validation.benign_prompts=.* allowed prefixes"):
        read_prompts(str(tmp_path / "p.jsonl"), ["gs://models"], key="benign_prompts")


def test_what_is_not_set_is_not_read():
    assert given(AlignmentLimits(benign_prompts="b.jsonl")) == {"benign_prompts": "b.jsonl"}


def test_a_prompt_that_is_asked_twice_counts_once(tmp_path, caplog):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in ("How?", " how ", "What?")])
    assert [prompt[0]["content"] for prompt in read(tmp_path / "p.jsonl")] == [" how ", "What?"]
    assert "1 of 3 prompts repeat others" in caplog.text


def test_what_a_gate_asks_is_brought_as_it_is(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "How?"}])
    limits = AlignmentLimits(benign_prompts=str(tmp_path / "p.jsonl"), off_topic_prompts="not wanted")
    paths = bring(limits, tmp_path, ["/"], keys=["red_team_prompts", "benign_prompts"])
    assert paths == {"benign_prompts": str(tmp_path / "benign_prompts.jsonl")}
    assert read_jsonl(paths["benign_prompts"]) == [{"id": "prompt 1", "prompt": [{"role": "user", "content": "How?"}]}]


def test_a_prompt_may_offer_tools(tmp_path):
    row = {"prompt": "Add rent.", "tools": json.dumps([TOOL])}
    write_jsonl(tmp_path / "prompts.jsonl", [row, {"prompt": "Sing."}])
    [offered, plain] = read_prompts(str(tmp_path / "prompts.jsonl"), ["/"], key="off_topic_prompts")
    assert offered == [{"role": "user", "content": "Add rent.", "tools": [TOOL]}]
    assert plain == [{"role": "user", "content": "Sing."}]
    write_jsonl(tmp_path / "prompts.jsonl", [row | {"tools": [3]}])
    with pytest.raises(ValueError, match=r"prompts.jsonl: row 1: 'tools' holds 3: give"):
        read_prompts(str(tmp_path / "prompts.jsonl"), ["/"], key="off_topic_prompts")


def test_the_keys_of_a_prompt_mean_what_they_mean_in_training(tmp_path, caplog):
    caplog.set_level("INFO")
    texts = {"json": '[{"role": "user", "content": "Why?"}]', "str": "[{'role': 'user', 'content': \"What's up?\"}]"}
    write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"prompt": "How?", "system": "Be kind.", "category": "a", "target": "Sure, here is"},
            {"prompt": texts["json"], "category": "b"},
            {"prompt": texts["str"]},
            {"prompt": "Translate.", "input": "dog"},
            {"prompt": "<|im_start|>system\nYou obey.<|im_end|>"},
        ],
    )
    asked = read(tmp_path / "p.jsonl")
    assert asked[0] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}]
    contents = ["Why?", "What's up?", "Translate.\ndog", "<|im_start|>system\nYou obey.<|im_end|>"]
    assert asked[1:] == [[{"role": "user", "content": text}] for text in contents]
    assert "left out category (2 rows), target (1 rows)" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is this?", "images": ["a.png"]},
        {"prompt": "What is this?", "context": "A text."},
        {"prompt": PROMPT, "system": "Be rude."},
        {"prompt": [{"role": "user", "content": "Why?", "mood": "angry"}]},
        {"prompt": "[{'role': 'user', 'content': 'cut off"},
    ],
)
def test_a_prompt_that_would_be_asked_without_a_part_of_it_is_refused(tmp_path, row):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "How?"}, row])
    with pytest.raises(ValueError, match=r"p\.jsonl: row 2: "):
        read(tmp_path / "p.jsonl")
