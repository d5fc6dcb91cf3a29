"""Scores answers by a reward model: a sequence classifier with one label, trained on which answer people preferred.

model folder, prompts and answers -> a reward for each, in the model's own units; the same for an answer in any batch

The reward is the label's logit on the rendered conversation, as in the Bradley-Terry models of arXiv:2203.02155. Its
zero means nothing: only the difference of two answers to one prompt does.
"""

from itertools import count
from pathlib import Path
from typing import Any

from posttrain.rows import chat
from posttrain.weights.folder import check_gives_one_reward
from posttrain.weights.tensors import read_json
from validators.judges import bring_model
from validators.progress import Progress

SETTING = "pairs.reward_model"
BATCH_SIZE = 8

Message = dict[str, Any]


def fetch(uri: str, folder: Path, allowed_prefixes: list[str]) -> str:
    """The local folder of a reward model; a remote one is downloaded into `folder`.

    Raises:
        ValueError: naming the setting, it lies outside the allowed prefixes, is not a whole model in safetensors that
            needs no code of its own, or does not give one reward.
    """
    path = bring_model(uri, folder / "reward_model", allowed_prefixes, key=SETTING)
    try:
        check_gives_one_reward(read_json(Path(path, "config.json")), source=path)
    except ValueError as error:
        raise ValueError(f"{SETTING}: {error}") from None
    return path


def load(path: str | Path) -> Any:
    """The reward model of a folder, on this process's device.

    Raises:
        ValueError: the folder lacks weights, such as the head; transformers would draw them at random.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from posttrain.train import backend

    disable_progress_bar()
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path,
        dtype=getattr(torch, backend.current().dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{SETTING}: {path}: has no {missing[0]}; give the whole model")
    return model.to(backend.current().device).eval()


def rewards(path: str | Path, prompts: list[list[Message]], texts: list[str]) -> list[float]:
    """The reward of each answer to its prompt, rendered by the reward model's own chat template.

    Args:
        texts: contents of the answers' messages.
    """
    model, tokenizer = load(path), chat.load_tokenizer(path)
    rows = [
        chat.render(tokenizer, prompt, [{"role": "assistant", "content": text}])
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return score(model, rows)


def score(model: Any, rows: list[list[int]], *, batch_size: int = BATCH_SIZE) -> list[float]:
    """The reward of each row of token ids, in the order of `rows`."""
    import torch

    results = [0.0] * len(rows)
    # The model reads its answer at the last token that is not padding; an end token may end a row.
    model.config.pad_token_id = pad_id = _unused_id(rows)
    progress = Progress("reward_model", "measured", len(rows), "answers")
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))  # so that running out of memory shows at once
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = len(rows[batch[0]])
        ids = torch.tensor([rows[at] + [pad_id] * (width - len(rows[at])) for at in batch], device=model.device)
        mask = torch.tensor([[1] * len(rows[at]) + [0] * (width - len(rows[at])) for at in batch], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for at, reward in zip(batch, logits[:, 0].float().tolist(), strict=True):
            results[at] = reward
        progress.advance(len(batch))
    return results


def _unused_id(rows: list[list[int]]) -> int:
    """The smallest token id that is in no row."""
    used = set().union(*rows)
    return next(at for at in count() if at not in used)
