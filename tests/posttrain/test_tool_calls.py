"""Function calling by a model's own template, from TRL's rows through both trainings to the gates' matcher."""

import json

import pytest

from posttrain import config, data, dpo, sft
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows import chat
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.train import stage
from posttrain.train.checkpoints import Checkpoints
from tests.tool_chat import raw_row
from validators import content, inference
from validators.answers import JudgedAnswer, choose_rows
from validators.inference import Answer

SETTINGS = {
    "max_seq_length": 256,
    "lora_r": 4,
    "batch_size": 2,
    "gradient_accumulation": 8,
    "save_steps": 9,
    "epochs": 1,
}


def pair(number):
    """An implicit prompt; the better answer calls, the worse one talks."""
    conversation = raw_row(number)["messages"][:2]
    worse = [conversation[0], {"role": "assistant", "content": "Later."}]
    return {"chosen": conversation, "rejected": worse, "tools": json.dumps(raw_row()["tools"])}


def prepared(raw, folder, *, kind):
    """Raw rows through prepare_data."""
    write_jsonl(folder / "raw.jsonl", raw)
    paths = {side: str(folder / f"{side}.jsonl") for side in data.SIDES}
    with data.complete_files(paths) as write:
        data.prepare(str(folder / "raw.jsonl"), kind=kind, settings=config.DataConfig(eval_fraction=0.3), write=write)
    return paths


def trained(module, step, model, files, folder, monkeypatch):
    """Trains for a step, and returns the rows as the trainer tokenised them."""
    seen, run = {}, stage.run

    def keep(trainer, *rest, **words):
        seen["rows"] = [dict(row) for row in trainer.train_dataset]
        return run(trainer, *rest, **words)

    monkeypatch.setattr(stage, "run", keep)
    checkpoints = Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="run", limit=3)
    outputs = {name: str(folder / name) for name in stage.OUTPUTS}
    metrics = module.train(str(model), files=files, outputs=outputs, step=step, checkpoints=checkpoints)
    assert metrics["num_rows_left_out"] == 0
    return seen["rows"]


def test_sft_trains_on_the_calls_and_the_gate_compares_them(calling_model, tmp_path, monkeypatch):
    tokenizer = chat.load_tokenizer(calling_model)
    files = prepared([raw_row(number) for number in range(24)], tmp_path, kind="sft")
    seen = trained(sft, SftStep(sft=SftConfig(**SETTINGS)), calling_model, files, tmp_path, monkeypatch)
    rows = read_jsonl(files["train"])
    assert len(seen) == len(rows) and {row["completion"][0]["content"] == "" for row in rows} == {True, False}
    for row, tokens in zip(rows, seen, strict=True):
        prompt, whole = chat.render(tokenizer, row["prompt"]), chat.render(tokenizer, row["prompt"], row["completion"])
        assert tokens["input_ids"] == whole and "<tools>" in tokenizer.decode(prompt)
        learned = [label for label in tokens["labels"] if label != -100]
        assert learned == whole[len(prompt) :]
        assert tokenizer.decode(learned) == f"{chat.answer_text(tokenizer, row, 'completion')}<|im_end|>\n"
    check_gate(calling_model, tokenizer, read_jsonl(files["eval"]))


def check_gate(model, tokenizer, held_out):
    from transformers import AutoModelForCausalLM

    chosen = choose_rows(held_out, 16)
    asked = [row for row in chosen if "tool_calls" in row["completion"][0]]
    assert len(chosen) // 2 <= len(asked) < len(chosen) == len(held_out) // 2
    loaded = AutoModelForCausalLM.from_pretrained(model)
    prompts = [row["prompt"] for row in asked]
    written = inference.generate(loaded, tokenizer, prompts, max_new_tokens=4)
    from_tokens = [chat.render(tokenizer, prompt) for prompt in prompts]
    assert written == inference.generate_from_tokens(loaded, tokenizer, from_tokens, max_new_tokens=4)
    right = [Answer(chat.answer_text(tokenizer, row, "completion"), True, 9) for row in asked]
    judged = {"model": right, "before": right[1:] + right[:1], "base": written}
    scored, measured = content.score(
        content.Content(
            references=content.references_by_row(asked, held_out),
            **{
                name: [JudgedAnswer(prompt, answer, None) for prompt, answer in zip(prompts, some, strict=True)]
                for name, some in judged.items()
            },
        ),
        config.SftLimits(answer_match="tool_call"),
    )
    assert measured.failures == [] and len(asked) > 1
    assert scored.scores == {"model": [1.0] * len(asked), "before": [0.0] * len(asked), "base": [0.0] * len(asked)}
    assert scored.references[0] == [chat_call(asked[0])]


def chat_call(row):
    [call] = row["completion"][0]["tool_calls"]
    return {"name": "add_task", "arguments": call["function"]["arguments"]}


def test_dpo_trains_on_both_answers(calling_model, tmp_path, monkeypatch):
    tokenizer = chat.load_tokenizer(calling_model)
    files = prepared([pair(number) for number in range(24)], tmp_path, kind="preference")
    seen = trained(dpo, DpoStep(dpo=DpoConfig(**SETTINGS)), calling_model, files, tmp_path, monkeypatch)
    for row, tokens in zip(read_jsonl(files["train"]), seen, strict=True):
        assert tokens["prompt_ids"] == chat.render(tokenizer, row["prompt"])
        assert "<tools>" in tokenizer.decode(tokens["prompt_ids"])
        written = chat.answer_text(tokenizer, row, "chosen")
        assert written.startswith('<tool_call>\n{"name": "add_task", "arguments": {"title": "')
        assert tokenizer.decode(tokens["chosen_ids"]) == f"{written}<|im_end|>\n"
        assert tokenizer.decode(tokens["rejected_ids"]) == "Later.<|im_end|>\n"


def test_columns_of_a_parquet_file_do_not_lend_each_other_their_keys(tmp_path):
    import pyarrow
    from pyarrow import parquet

    other = raw_row(1)
    other["messages"][1] = {"role": "assistant", "tool_calls": [{"function": {"name": "drop", "arguments": {"id": 3}}}]}
    parquet.write_table(pyarrow.Table.from_pylist([raw_row(0), other]), tmp_path / "rows.parquet")
    written = []
    with pytest.raises(ValueError, match="leaves no"):  # two rows are too few to split
        data.prepare(
            str(tmp_path / "rows.parquet"), kind="sft", settings=config.DataConfig(eval_fraction=0.0001),
            write=lambda side, row: written.append(row),
        )  # fmt: skip
    assert written[2]["completion"][0]["tool_calls"][0]["function"] == {"name": "drop", "arguments": {"id": 3}}
    assert "name" not in written[2]["prompt"][0]
