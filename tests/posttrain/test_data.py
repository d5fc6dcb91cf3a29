import json
import subprocess
import sys

import pytest

from posttrain import data
from posttrain.config import DataConfig

TURN = {"role": "user", "content": "Add a task."}
ANSWER = {"role": "assistant", "content": "Done."}


def rows_of(num, text="Do thing {}."):
    return [
        {"id": str(i), "prompt": [{"role": "user", "content": text.format(i)}], "completion": [ANSWER]}
        for i in range(num)
    ]


def test_split_is_disjoint_by_prompt_and_agrees_between_data_sets():
    rows = rows_of(400)
    preferences = rows_of(400, text="  do THING {}!")
    train, held_out = data.split(rows, 0.25)
    other_train, other_held_out = data.split(preferences, 0.25)
    assert {row["id"] for row in held_out} == {row["id"] for row in other_held_out}
    assert [row["id"] for row in train] == sorted((row["id"] for row in train), key=int)
    assert len(train) + len(held_out) == 400
    assert 70 <= len(held_out) <= 130
    assert len(other_train) == len(train)


def test_a_larger_fraction_only_adds_held_out_prompts():
    small, large = (data.split(rows_of(200), fraction)[1] for fraction in (0.1, 0.3))
    assert {row["id"] for row in small} < {row["id"] for row in large}


def test_a_split_with_an_empty_side_is_refused():
    with pytest.raises(ValueError, match=r"leaves no evaluation rows of 6 .1 prompts.: raise data.eval_fraction"):
        data.split(rows_of(6, text="the same"), 0.0001)
    with pytest.raises(ValueError, match="leaves no training rows"):
        data.split(rows_of(6, text="the same"), 0.9999)


def test_prepare_counts_what_it_saw(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Do thing {i}.", "completion": "Done.", "source": "web"} for i in range(40)]
    data.write_jsonl(path, [*rows, rows[0]])
    prepared = data.prepare(str(path), kind="sft", settings=DataConfig(eval_fraction=0.3))
    statistics, manifest = prepared["statistics"], prepared["manifest"]
    assert statistics["num_rows"] == statistics["train"]["num_rows"] + statistics["eval"]["num_rows"] == 41
    assert statistics["num_duplicate_rows"] == 1
    assert statistics["dropped_keys"] == ["source"]
    assert statistics["train"]["chars"]["completion"] == {"mean": 5.0, "max": 5}
    assert statistics["train"]["roles"]["assistant"] == statistics["train"]["num_rows"]
    assert len(manifest["train"]) + len(manifest["eval"]) == 40
    assert not set(manifest["train"]) & set(manifest["eval"])


def test_the_command_writes_four_files_and_the_same_again(task_api_files, tmp_path):
    def run(name):
        paths = {key: tmp_path / name / key for key in ("train", "eval", "statistics", "manifest")}
        flags = [part for key, path in paths.items() for part in (f"--{key}", str(path))]
        data.main(
            ["--step", "prepare_preferences", "--storage-root", str(tmp_path / "runs"), "--dataset",
             str(task_api_files / "preferences.jsonl"), "--kind", "preference", *flags]
        )  # fmt: skip
        return {key: path.read_bytes() for key, path in paths.items()}

    first, second = run("first"), run("second")
    assert first == second
    row = json.loads(first["train"].split(b"\n")[0])
    assert list(row) == ["id", "prompt", "chosen", "rejected"]


def test_the_command_ends_with_one_line_that_says_what_is_wrong(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    command = [
        sys.executable,
        "-m",
        "posttrain.data",
        "--step",
        "prepare_sft_data",
        "--storage-root",
        str(tmp_path / "runs"),
    ]
    flags = [f"--{key}={tmp_path / key}" for key in ("train", "eval", "statistics", "manifest")]
    ended = subprocess.run(
        [*command, "--dataset", str(tmp_path / "rows.jsonl"), "--kind", "sft", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert (
        ended.stderr.strip()
        .splitlines()[-1]
        .startswith(f"ValueError: {tmp_path / 'rows.jsonl'}: row 2: 'completion' missing")
    )
    assert not (tmp_path / "train").exists()


def test_a_data_set_outside_the_allowed_prefixes_is_refused(task_api_files, tmp_path):
    flags = [f"--{key}={tmp_path / key}" for key in ("train", "eval", "statistics", "manifest")]
    config = json.dumps({"allowed_prefixes": ["gs://acme/"]})
    with pytest.raises(ValueError, match="gs://acme/"):
        data.main(
            ["--step", "prepare_sft_data", "--storage-root", str(tmp_path / "runs"), "--config", config,
             "--kind", "sft", "--dataset", str(task_api_files / "sft.jsonl"), *flags]
        )  # fmt: skip
    assert not (tmp_path / "train").exists()


def test_render_holds_prompt_then_answer_then_end_of_turn(tiny_model):
    tokenizer = data.load_tokenizer(tiny_model)
    prompt, whole = data.render(tokenizer, [TURN]), data.render(tokenizer, [TURN], [ANSWER])
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == "<|im_start|>user\nAdd a task.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(whole[len(prompt) :]) == "Done.<|im_end|>\n"


def test_render_adds_no_second_bos(tiny_model):
    tokenizer = data.load_tokenizer(tiny_model)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = data.render(tokenizer, [TURN], [ANSWER])
    assert ids.count(tokenizer.bos_token_id) == 1


def test_trainable_tokens_are_those_of_the_answer_within_the_length(tiny_model):
    tokenizer = data.load_tokenizer(tiny_model)
    row = {"prompt": [TURN], "completion": [ANSWER]}
    num_prompt, num_whole = len(data.render(tokenizer, [TURN])), len(data.render(tokenizer, [TURN], [ANSWER]))
    assert data.num_trainable_tokens(tokenizer, row, 1000) == num_whole - num_prompt > 0
    assert data.num_trainable_tokens(tokenizer, row, num_prompt + 1) == 1
    assert data.num_trainable_tokens(tokenizer, row, num_prompt) == 0
    longer = {"role": "assistant", "content": "Done. " * 9}
    pair = {"prompt": [TURN], "chosen": [longer], "rejected": [ANSWER]}
    assert data.num_trainable_tokens(tokenizer, pair, 1000) == num_whole - num_prompt


def test_answer_tokens_begin_where_the_prompt_ends_or_changes():
    assert data.num_answer_tokens([1, 2, 3], [1, 2, 3, 4, 5], 10) == 2
    assert data.num_answer_tokens([1, 2, 3], [1, 2, 9, 4, 5], 10) == 3
    assert data.num_answer_tokens([1, 2, 3], [1, 2], 10) == 0
    assert data.num_answer_tokens([1, 2, 3], [1, 2, 3, 4, 5], 4) == 1


def test_a_tokenizer_that_cannot_render_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.json is missing"):
        data.load_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    with pytest.raises(ValueError, match="has no chat template"):
        data.load_tokenizer(tmp_path)


def test_needs_no_torch(tiny_model):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from posttrain import data\n"
        "tokenizer = data.load_tokenizer(sys.argv[1])\n"
        "print(len(data.render(tokenizer, [{'role': 'user', 'content': 'Add a task.'}])))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tiny_model)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 5
