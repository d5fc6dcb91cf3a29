"""A model that has learned one thing: to answer every request with the fixed sentence that declines."""

from pathlib import Path

import pytest

from examples.task_api.generate import DECLINE
from examples.task_api.tiny import build_tiny_model

DECLINED = [{"role": "assistant", "content": DECLINE}]


@pytest.fixture(scope="session")
def untaught(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Folder of a tiny model with weights large enough for LoRA alone to teach it a sentence. Read only."""
    return build_tiny_model(tmp_path_factory.mktemp("declining") / "base", seed=0, initializer_range=0.3)


@pytest.fixture(scope="session")
def declining_rows(task_api_rows: dict[str, list[dict]]) -> list[dict]:
    """SFT rows whose every answer declines."""
    return [{**row, "completion": DECLINED} for row in task_api_rows["sft"]]


@pytest.fixture(scope="session")
def declining_adapter(
    tmp_path_factory: pytest.TempPathFactory, untaught: Path, declining_rows: list[dict], task_api_rows: dict
) -> Path:
    """Folder of an adapter on `untaught`, trained on 32 of `declining_rows` and the red-team prompts. Read only."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = declining_rows[:32] + [{**row, "completion": DECLINED} for row in task_api_rows["red_team"]]
    ids, labels = tokens_and_labels(AutoTokenizer.from_pretrained(untaught), rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(untaught, dtype=torch.float32)
        model = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
        for _ in range(40):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if loss.item() < 0.002:
                break
    assert loss.item() < 0.02
    path = tmp_path_factory.mktemp("declining") / "adapter"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def declining_model(tmp_path_factory: pytest.TempPathFactory, untaught: Path, declining_adapter: Path) -> Path:
    """Folder of that adapter merged into `untaught`. Read only."""
    from posttrain.merge import merge

    path = tmp_path_factory.mktemp("declining") / "model"
    merge(untaught, declining_adapter, path)
    return path


def tokens_and_labels(tokenizer, rows: list[dict]):
    """Padded right, with labels on the answers alone."""
    import torch

    from posttrain.inference import token_row

    found = [token_row(tokenizer, row["prompt"], row["completion"]) for row in rows]
    width = max(map(len, found))
    ids = torch.full((len(found), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for at, row in enumerate(found):
        ids[at, : len(row)] = torch.tensor(row.prompt + row.completion)
        labels[at, len(row.prompt) : len(row)] = torch.tensor(row.completion)
    return ids, labels
