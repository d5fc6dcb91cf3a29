"""The GPU benchmarks as far as they go without one: rows of exact lengths, sides that fail, figures that are kept."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_rows, table
from benchmarks.trainings import LORA
from posttrain.rows.chat import ChatTokenizer, render
from posttrain.train import memory
from posttrain.weights.targets import Layout, resolve


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> ChatTokenizer:
    return ChatTokenizer(gpu_rows.write_model(tmp_path_factory.mktemp("model"), "tiny"))


@pytest.mark.parametrize(
    ("kind", "keys", "lengths"),
    [
        ("sft", ["completion"], "full"),
        ("sft", ["completion"], "real"),
        ("preference", ["chosen", "rejected"], "full"),
        ("preference", ["chosen", "rejected"], "mixed"),
    ],
)
def test_rows_have_the_lengths_they_are_to_have(tokenizer, kind, keys, lengths):
    _, wanted = gpu_rows.lengths_of(lengths, 256)
    rows = gpu_rows.make_rows(kind, lengths, 6, max_length=256, seed=0)
    for number, row in enumerate(rows):
        prompt, *answers = wanted[number % len(wanted)]
        assert len(render(tokenizer, row["prompt"])) == prompt
        assert [len(render(tokenizer, row["prompt"], row[key])) for key in keys] == [
            prompt + answer for answer in answers[: len(keys)]
        ]
    if lengths == "full":
        assert prompt + answers[0] == 256


def test_rows_of_real_length_begin_alike_as_those_do(tokenizer):
    num_shared, _ = gpu_rows.lengths_of("real", 256)
    prompts = [render(tokenizer, row["prompt"]) for row in gpu_rows.make_rows("sft", "real", 9, max_length=256, seed=0)]
    assert len({tuple(prompt[:num_shared]) for prompt in prompts}) == 1
    assert len({tuple(prompt[: num_shared + 1]) for prompt in prompts}) > 1


def test_a_model_of_gigabytes_takes_no_room_on_the_disk(tmp_path):
    layout = Layout.of(gpu_rows.write_model(tmp_path / "model", "Qwen2.5-7B"))
    assert len(resolve(layout, LORA["target_modules"], setting="sft.target_modules").modules) == 7
    shape = memory.Shape.of(layout.config)
    num_parameters = sum(math.prod(shape) for shape in layout.shapes.values())
    assert num_parameters == pytest.approx(shape.num_in_layers + shape.num_around_layers, rel=1e-3)
    weights = (tmp_path / "model" / "model.safetensors").stat()
    assert weights.st_size > 2 * num_parameters and weights.st_blocks * 512 < 1_000_000


@pytest.mark.long
def test_our_side_trains_a_model_of_such_a_folder(tmp_path, capsys):
    gpu.main(["--tiny", "--parts", "sft", "--sides", "ours", "--output", str(tmp_path)])
    assert "FAILED" not in capsys.readouterr().out
    results = json.loads((tmp_path / "gpu_sft.json").read_text())
    assert "Our shortcuts: rows, lora." in results["note"]
    (figures,) = results["tables"][0]["runs"]["ours"]
    assert figures["tokens_per_second"] > 0 and figures["micro_batch"] == 4


def test_figures_of_tiny_models_stay_out_of_the_results(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpu.main(["--tiny", "--parts", "sft", "--sides", "ours"])
    assert [path.as_posix() for path in Path().glob("**/*.json")] == ["build/gpu/gpu_sft.json"]


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, dict]]:
    """Sides in their order, with their settings. Each takes as long as `seconds` says, and trl with liger fails."""
    sides = []

    def run(side):
        *_, who, settings = side.command
        sides.append((who, json.loads(settings)))
        if sides[-1][1]["liger"]:
            raise RuntimeError("out of memory")
        return {"seconds": 2.0, "tokens_per_second": 100.0 * len(sides), "pairs_per_second": 1.0}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    return sides


def test_a_side_that_fails_keeps_no_other_back(ran, tmp_path, capsys):
    gpu.main(["--parts", "sft", "dpo", "--output", str(tmp_path)])
    whole = [(who, settings["kind"], settings["liger"]) for who, settings in ran]
    assert whole[:4] == [("ours", "sft", False), ("trl", "sft", True), ("ours", "dpo", False), ("trl", "dpo", True)]
    assert whole[4:] == [("trl", "sft", False), ("ours", "dpo", False)]
    assert "sft, trl, liger: FAILED: out of memory" in capsys.readouterr().out
    results = json.loads((tmp_path / "gpu_sft.json").read_text())
    assert results["tables"][0]["runs"].keys() == {"ours", "trl"}
    assert "| trl | 500 | 500 to 500 | 5.00 | 2 |" in table.section(results)


def test_no_side_begins_after_the_time(ran, tmp_path):
    gpu.main(["--parts", "sft", "--minutes", "0", "--output", str(tmp_path)])
    assert ran == []


def test_only_what_is_asked_for_runs(ran, tmp_path):
    gpu.main(["--parts", "checkpoints", "sft_llama", "--sides", "ours", "--output", str(tmp_path)])
    assert [(who, settings["shape"], settings["save_steps"]) for who, settings in ran] == [
        ("ours", "Qwen2.5-7B", 100_000),
        ("ours", "Qwen2.5-7B", 1),
        ("ours", "Llama-3.1-8B", 100_000),
    ]
