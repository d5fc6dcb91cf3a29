import json
import subprocess
import sys
from dataclasses import replace

import pytest

from posttrain import data as rows
from posttrain.config import DataLimits
from posttrain.verdict import Verdict
from validators import data

LIMITS = DataLimits(min_train_rows=4, min_eval_rows=2)
MAX_LENGTHS = {"sft": 128, "preference": 128}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return rows.load_tokenizer(tiny_model)


@pytest.fixture
def files(tmp_path, task_api_rows):
    """Prepared files of the Task API, by the gate's names for them, and a way to write one anew."""
    paths = {}
    for kind, name in (("sft", "sft"), ("preference", "preferences")):
        found, _ = rows.convert(task_api_rows[name], kind=kind, source=name)
        for side, part in zip(("train", "eval"), rows.split(found, 0.25), strict=True):
            paths[f"{kind}_{side}"] = tmp_path / f"{kind}_{side}.jsonl"
            rows.write_jsonl(paths[f"{kind}_{side}"], part)
    return paths


def change(path, edit):
    """Applies `edit` to the rows of a file."""
    rows.write_jsonl(path, edit(rows.read_jsonl(path)))


def failed(tokenizer, paths, *, limits=LIMITS, max_lengths=MAX_LENGTHS):
    checks = data.judge(data.measure(tokenizer, paths, max_lengths=max_lengths), limits)
    return {check.name: check for check in checks if check.status != "passed"}


def edited(row, key, content):
    return {**row, key: [{**row[key][0], "content": content}]}


def test_prepared_rows_pass(tokenizer, files):
    assert failed(tokenizer, files) == {}


def test_a_shorter_graph_has_two_files(tokenizer, files):
    for kind in ("sft", "preference"):
        assert failed(tokenizer, {name: path for name, path in files.items() if name.startswith(kind)}) == {}


def test_a_malformed_row_is_named(tokenizer, files):
    change(files["sft_train"], lambda found: [found[0], {**found[1], "completion": "text"}, *found[2:]])
    found = failed(tokenizer, files)
    assert list(found) == ["malformed_rows"]
    assert "sft_train has 1: row 2: 'completion' is 'text'" in found["malformed_rows"].detail


def test_an_empty_answer_is_named(tokenizer, files):
    change(files["preference_eval"], lambda found: [edited(found[0], "rejected", " \n"), *found[1:]])
    assert "preference_eval has 1: preference-" in failed(tokenizer, files)["empty_turns"].detail


def test_duplicates_over_the_limit(tokenizer, files):
    change(files["sft_train"], lambda found: found + [{**row, "id": f"copy-{row['id']}"} for row in found[:10]])
    found = failed(tokenizer, files)
    assert list(found) == ["duplicate_share"]
    assert found["duplicate_share"].value > LIMITS.max_duplicate_share
    assert "sft_train has 10: copy-sft-" in found["duplicate_share"].detail
    assert failed(tokenizer, files, limits=DataLimits(min_train_rows=4, min_eval_rows=2, max_duplicate_share=0.5)) == {}


def test_equal_answers_prefer_nothing(tokenizer, files):
    change(files["preference_train"], lambda found: [{**found[0], "rejected": found[0]["chosen"]}, *found[1:]])
    assert list(failed(tokenizer, files)) == ["equal_answers"]


def test_rows_over_the_length(tokenizer, files):
    change(
        files["sft_train"], lambda found: [edited(row, "completion", "task " * 200) for row in found[:5]] + found[5:]
    )
    found = failed(tokenizer, files)
    assert list(found) == ["too_long_share"]
    assert "tokens" in found["too_long_share"].detail


def test_a_template_that_leaves_the_answer_out(tokenizer, files, monkeypatch):
    content = "{% if message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}"
    template = f"{{% for message in messages %}}{content}{{% endfor %}}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    found = failed(tokenizer, files)
    assert {"untrainable_rows", "rows_without_end_of_turn"} == set(found)
    assert "sft_train has" in found["untrainable_rows"].detail


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


def test_roles_that_the_template_refuses(tokenizer, files, monkeypatch):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", refusal + tokenizer.chat_template)
    found = failed(tokenizer, files)
    assert list(found) == ["rows_refused_by_template"]
    assert "no system turns" in found["rows_refused_by_template"].detail


def test_a_prompt_on_both_sides_is_found_across_data_sets(tokenizer, files):
    leaked = rows.read_jsonl(files["preference_eval"])[0]
    told = {**leaked["prompt"][-1], "content": f"  {leaked['prompt'][-1]['content'].upper()}!!"}
    row = {"id": "leaked", "prompt": [*leaked["prompt"][:-1], told], "completion": leaked["chosen"]}
    change(files["sft_train"], lambda found: [*found, row])
    found = failed(tokenizer, files)
    assert list(found) == ["shared_prompts"]
    assert f"preference_eval with sft_train has 1: {leaked['id']}" in found["shared_prompts"].detail


def test_too_few_rows(tokenizer, files):
    change(files["sft_eval"], lambda found: found[:1])
    change(files["preference_train"], lambda found: found[:3])
    found = failed(tokenizer, files)
    assert set(found) == {"train_rows", "eval_rows"}
    assert found["train_rows"].value == 3


def test_an_empty_file_does_not_pass(tokenizer, files):
    change(files["sft_train"], lambda found: [])
    assert "train_rows" in failed(tokenizer, files)


def test_judging_nothing_does_not_pass():
    checks = data.judge(data.Numbers(files={}, shared_prompts={}), LIMITS)
    assert {check.name for check in checks if check.status != "passed"} >= {"train_rows", "eval_rows"}


def test_every_problem_is_reported_at_once(tokenizer, files):
    measured = data.measure(tokenizer, files, max_lengths=MAX_LENGTHS)
    broken = replace(measured.files["sft_train"], empty=["a"], untrainable=["b"], num_rows=1)
    numbers = replace(measured, files={**measured.files, "sft_train": broken})
    names = {check.name for check in data.judge(numbers, LIMITS) if check.status != "passed"}
    assert names == {"empty_turns", "untrainable_rows", "train_rows"}


def command(files, tiny_model, folder):
    inputs = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    outputs = [f"--{name}={folder / name}" for name in ("verdict", "report", "metrics", "passed")]
    limits = json.dumps({"validation": {"min_train_rows": 4, "min_eval_rows": 2}})
    flags = [
        "--step=check_data",
        f"--storage-root={folder / 'runs'}",
        f"--config={limits}",
        f"--tokenizer={tiny_model}",
    ]
    return [*flags, *inputs, *outputs]


def test_the_command_writes_its_verdict_and_exits_0_without_torch(files, tiny_model, tmp_path):
    change(files["sft_eval"], lambda found: found[:1])
    code = "import sys; sys.modules['torch'] = None; from validators import data; data.main(sys.argv[1:])"
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
    assert json.loads((tmp_path / "out" / "passed").read_text()) is False
    assert (tmp_path / "out" / "report").is_file()


def test_a_truncated_file_cannot_be_judged(files, tiny_model, tmp_path):
    files["sft_train"].write_text(files["sft_train"].read_text()[:-20])
    with pytest.raises(ValueError, match=r"sft_train.jsonl: line \d+: not valid JSON"):
        data.main(command(files, tiny_model, tmp_path / "out"))
    assert not (tmp_path / "out" / "passed").exists()
