import json
import subprocess
import sys
import tracemalloc

import pytest

from posttrain import data
from posttrain.config import DataConfig
from posttrain.rows import formats
from posttrain.step import digests, records
from posttrain.step.run import run_id

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
    formats.write_jsonl(path, [*rows, rows[0]])
    prepared = data.prepare(str(path), kind="sft", settings=DataConfig(eval_fraction=0.3))
    statistics, prompts = prepared.statistics, prepared.prompts
    assert statistics["num_rows"] == statistics["train"]["num_rows"] + statistics["eval"]["num_rows"] == 41
    assert statistics["num_duplicate_rows"] == 1
    assert statistics["left_out_keys"] == {"source": 41}
    assert statistics["train"]["chars"]["completion"] == {"mean": 5.0, "max": 5}
    assert statistics["train"]["roles"]["assistant"] == statistics["train"]["num_rows"]
    assert len(prompts["train"]) + len(prompts["eval"]) == 40
    assert not prompts["train"] & prompts["eval"]


def test_held_out_rows_keep_the_system_turn_of_a_column(tmp_path):
    path, written = tmp_path / "rows.jsonl", {"train": [], "eval": []}
    rows = [{"prompt": f"Do {i}.", "completion": "Done.", "system": "Be brief.", "mood": "calm"} for i in range(40)]
    formats.write_jsonl(path, rows)
    with pytest.raises(ValueError, match="row 1: 'mood' is a key of unknown meaning"):
        data.prepare(str(path), kind="sft", settings=DataConfig(eval_fraction=0.3))
    settings = DataConfig(eval_fraction=0.3, ignored_keys=["mood"])
    prepared = data.prepare(str(path), kind="sft", settings=settings, write=lambda side, row: written[side].append(row))
    for side in ("train", "eval"):
        assert [row["prompt"][0] for row in written[side]] == [{"role": "system", "content": "Be brief."}] * len(
            written[side]
        )
        assert prepared.statistics[side]["roles"]["system"] == len(written[side]) > 0
    assert prepared.statistics["left_out_keys"] == {"mood": 40}


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
    rows = [json.loads(line) for line in first["train"].splitlines()]
    assert list(rows[0]) == ["id", "prompt", "chosen", "rejected", "left_out"]
    assert json.loads(first["statistics"])["left_out_keys"] == {"mistake": len(rows) + len(first["eval"].splitlines())}
    manifest = json.loads(first["manifest"])
    assert manifest["train"] == sorted({formats.prompt_key(row) for row in rows})
    assert first["manifest"].decode() == json.dumps(manifest, indent=2) + "\n"
    file = task_api_files / "preferences.jsonl"
    measured = records.read_records(str(tmp_path / "runs"), run_id())[-1].measured
    assert (measured["source"], measured["commit"], measured["digest"]) == (str(file), "", digests.digest(file))


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
        .startswith(f"ValueError: sft_dataset: {tmp_path / 'rows.jsonl'}: row 2: 'completion' missing")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "runs"}


def test_the_memory_does_not_hold_the_rows(tmp_path):
    def peak_of(num_rows: int) -> int:
        rows = ({"prompt": f"Do {i}: {'x' * 10_000}", "completion": "Done."} for i in range(num_rows))
        formats.write_jsonl(tmp_path / "rows.jsonl", rows)
        tracemalloc.start()
        data.prepare(str(tmp_path / "rows.jsonl"), kind="sft", settings=DataConfig(eval_fraction=0.3))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_of(600) - peak_of(200) < 400 * 1_000


def test_a_data_set_outside_the_allowed_prefixes_is_refused(task_api_files, tmp_path):
    flags = [f"--{key}={tmp_path / key}" for key in ("train", "eval", "statistics", "manifest")]
    config = json.dumps({"allowed_prefixes": ["gs://acme/"]})
    with pytest.raises(ValueError, match="gs://acme/"):
        data.main(
            ["--step", "prepare_sft_data", "--storage-root", str(tmp_path / "runs"), "--config", config,
             "--kind", "sft", "--dataset", str(task_api_files / "sft.jsonl"), *flags]
        )  # fmt: skip
    assert not (tmp_path / "train").exists()


def test_accepted_answers_stay_with_the_held_out_rows_alone(tmp_path):
    path, written = tmp_path / "rows.jsonl", {"train": [], "eval": []}
    formats.write_jsonl(path, [row | {"references": ["Done.", "Yes."]} for row in rows_of(40)])
    kept = []
    prepared = data.prepare(
        str(path),
        kind="sft",
        settings=DataConfig(eval_fraction=0.3),
        write=lambda side, row: written[side].append(row),
        keep_references=kept.append,
    )
    assert all(row["references"] == ["Done.", "Yes."] for row in written["eval"])
    assert not any("references" in row for row in written["train"])
    assert kept == [{"id": row["id"], "references": ["Done.", "Yes."]} for row in written["train"]]
    assert prepared.statistics["left_out_keys"] == {}


def test_weights_thin_and_repeat_rows(tmp_path):
    def written(weight, num=400, seed=42):
        rows = [{"id": i, "prompt": f"Do thing {i}.", "completion": "Done."} for i in range(num)]
        formats.write_jsonl(tmp_path / "rows.jsonl", rows)
        found = {"train": [], "eval": []}
        dataset = json.dumps([{"uri": str(tmp_path / "rows.jsonl"), "weight": weight}])
        settings = DataConfig(eval_fraction=0.25, seed=seed)
        prepared = data.prepare(dataset, kind="sft", settings=settings, write=lambda side, row: found[side].append(row))
        assert prepared.statistics["num_duplicate_rows"] == 0
        assert prepared.statistics["num_rows"] == len(found["train"]) + len(found["eval"])
        assert len(prepared.held_out) == len(found["eval"])
        return found

    def ids(rows):
        return [row.get("repeats", row["id"]) for row in rows]

    whole, part, more, twice = written(1), written(0.25), written(2.5), written(2)
    assert ids(twice["train"]) == [name for name in ids(whole["train"]) for _ in range(2)]
    assert whole["eval"] == more["eval"] == twice["eval"]
    num = len(whole["train"])
    assert 0.15 * num < len(part["train"]) < 0.35 * num and 0.1 * 100 < len(part["eval"]) < 0.4 * 100
    assert 2.4 * num < len(more["train"]) < 2.6 * num
    assert {*ids(part["train"])} < {*ids(written(0.5)["train"])} < {*ids(whole["train"])}
    assert written(0.25) == part != written(0.25, seed=7)
    copied = [row for row in more["train"] if "repeats" in row]
    assert copied[0]["id"] == f"{copied[0]['repeats']}-again-1"
    assert len({row["id"] for row in more["train"]}) == len(more["train"])


def test_data_sets_of_several_formats_become_one(tmp_path, caplog):
    alpaca = [{"instruction": f"Add task {i}.", "input": "", "output": "Added."} for i in range(40)]
    formats.write_jsonl(tmp_path / "alpaca.jsonl", alpaca)
    formats.write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"Do thing {i}.", "completion": "Done."} for i in range(40)]
    )
    uris = [str(tmp_path / "alpaca.jsonl"), str(tmp_path / "rows.jsonl")]
    dataset, found = json.dumps([uris[0], {"uri": uris[1], "weight": 2}]), {"train": [], "eval": []}
    caplog.set_level("INFO")
    settings = DataConfig(eval_fraction=0.25)
    prepared = data.prepare(dataset, kind="sft", settings=settings, write=lambda side, row: found[side].append(row))
    assert caplog.messages == [f"{uris[0]}: 40 rows converted from Alpaca (instruction)"]
    assert {row["id"].split("/")[0] for rows in found.values() for row in rows} == {"1", "2"}
    assert {row["id"].split("/")[0] for row in found["eval"]} == {"1", "2"}
    one, two = prepared.source["data_sets"]
    assert (one["address"], one["weight"], one["sha256"]) == (uris[0], 1, digests.digest(uris[0]))
    assert (two["address"], two["weight"], two["sha256"]) == (uris[1], 2, digests.digest(uris[1]))
    assert two["num_train_rows"] == sum(row["id"].startswith("2/") for row in found["train"])
    assert one["num_train_rows"] + one["num_eval_rows"] == 40
    assert prepared.source["source"] == dataset
    assert prepared.statistics["format"] == "Alpaca (instruction); prompt, completion (plain text)"


def test_every_data_set_must_hold_out_rows(tmp_path):
    rows = [{"prompt": f"Do thing {i}.", "completion": "Done."} for i in range(40)]
    formats.write_jsonl(tmp_path / "rows.jsonl", rows)
    formats.write_jsonl(tmp_path / "few.jsonl", rows[:1])
    dataset = json.dumps([str(tmp_path / "rows.jsonl"), str(tmp_path / "few.jsonl")])
    with pytest.raises(ValueError, match=r"few.jsonl: eval_fraction 0.3 leaves no .* rows of 1"):
        data.prepare(dataset, kind="sft", settings=DataConfig(eval_fraction=0.3))


def test_a_row_in_two_data_sets_is_a_duplicate(tmp_path):
    rows = [{"prompt": f"Do thing {i}.", "completion": "Done."} for i in range(40)]
    for name in ("one", "two"):
        formats.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    dataset = json.dumps([str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")])
    prepared = data.prepare(dataset, kind="sft", settings=DataConfig(eval_fraction=0.3))
    assert prepared.statistics["num_duplicate_rows"] == 40
