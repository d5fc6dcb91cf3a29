"""Greedy or sampled answers, and log-probabilities, of a causal language model, in batches, for gates and examples.

model, tokenizer, prompts -> answers · model, tokenizer, rows -> log-probability of each row's answer, or the distance
between two models' distributions along it
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from posttrain.rows import chat, thoughts
from posttrain.rows.chat import render
from validators import shrinking
from validators.progress import Progress

Message = dict[str, Any]  # as in `posttrain.rows.formats`
ANSWERS_AT_ONCE = 16
ROWS_AT_ONCE = 8  # of which log-probabilities are computed


@dataclass(frozen=True, slots=True)
class Answer:
    """Text that the model wrote, special tokens included, without the end token it stopped at."""

    text: str  # without what the template writes before every answer, and without a block of thoughts
    stopped: bool  # by itself, at an end token; False: cut off at the limit
    num_tokens: int
    tokens: tuple[int, ...] = ()  # ids of all that was written, and of the end token
    thoughts: str = ""  # what was written before the text

    @property
    def written(self) -> str:
        """All that the model wrote."""
        return self.thoughts + self.text


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled; the same on the same machine for the same seed."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids of a prompt and of the answer whose log-probability is asked for."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def generate(
    model,
    tokenizer,
    prompts: list[list[Message]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    name: str = "model",
) -> list[Answer]:
    """The greedy answer to each prompt, in the order of `prompts`; the model's own sampling settings are ignored.

    Args:
        batch_size: rows at once; by default as many as `validators.shrinking` finds right.
        name: who answers, for the log.
    """
    rendered = [render(tokenizer, prompt) for prompt in prompts]
    return generate_from_tokens(
        model, tokenizer, rendered, max_new_tokens=max_new_tokens, batch_size=batch_size, name=name
    )


def generate_from_tokens(
    model,
    tokenizer,
    rendered: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    name: str = "model",
) -> list[Answer]:
    """`generate` for prompts that the caller has rendered to token ids."""
    settings = _greedy(model, tokenizer, max_new_tokens)
    return _generate(model, tokenizer, rendered, settings, batch_size=batch_size, name=name)


def sample(
    model,
    tokenizer,
    prompts: list[list[Message]],
    sampling: SamplingParams,
    *,
    max_new_tokens: int,
    name: str = "model",
) -> list[Answer]:
    """A sampled answer to each prompt, in the order of `prompts`. Seeds torch in this process."""
    import torch

    torch.manual_seed(sampling.seed)
    settings = _greedy(model, tokenizer, max_new_tokens)
    settings.update(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
    rendered = [render(tokenizer, prompt) for prompt in prompts]
    return _generate(model, tokenizer, rendered, settings, batch_size=ANSWERS_AT_ONCE, name=name)


def _generate(
    model, tokenizer, rendered: list[list[int]], settings, *, batch_size: int | None, name: str
) -> list[Answer]:
    answers: list[Answer | None] = [None] * len(rendered)
    lengths = [len(ids) for ids in rendered]
    parts = Parts(tokenizer)
    progress = Progress(name, "answered", len(rendered), "prompts")
    with _inference(model):
        for indices in _batches(lengths, batch_size or shrinking.batch_size(model, lengths, settings.max_new_tokens)):
            inputs = _padded([rendered[i] for i in indices], settings.pad_token_id, side="left", device=model.device)
            written = shrinking.generate(model, inputs, settings, advance=progress.advance)
            for i, ids in zip(indices, written, strict=True):
                answers[i] = parts.answer(rendered[i], ids, settings.eos_token_id)
    return answers


def token_rows(tokenizer, rows: list[dict], key: str, *, max_length: int) -> list[TokenRow]:
    """The rows' prompts with their answer under `key`; rows that are too long are skipped, not cut, as in training."""
    fitting = [row for row in rows if chat.fits(tokenizer, row, max_length)]
    return [token_row(tokenizer, row["prompt"], row[key]) for row in fitting]


def token_row(tokenizer, prompt: list[Message], completion: list[Message]) -> TokenRow:
    """Splits the rendered conversation where the answer begins, as in training."""
    return TokenRow(*chat.split(tokenizer, prompt, completion))


def sequence_logprobs(
    model, tokenizer, rows: list[TokenRow], *, batch_size: int = ROWS_AT_ONCE, name: str = "model"
) -> list[tuple[float, int]]:
    """(sum of the log-probabilities of the answer's tokens in nats, number of those tokens), in the order of `rows`.

    Computes logits at the answers' positions only: with 150,000 tokens, logits rather than weights fill the memory.
    """
    results = {}
    for i, logits in _answer_logits(model, tokenizer, rows, batch_size, name):
        chosen = logits.gather(1, _column(rows[i].completion, logits)).squeeze(1)
        results[i] = (float((chosen - logits.logsumexp(1)).sum()), len(rows[i].completion))
    return [results[i] for i in range(len(rows))]


def most_likely(
    model, tokenizer, rows: list[TokenRow], *, num: int = 128, batch_size: int = ROWS_AT_ONCE
) -> list[tuple]:
    """(ids, log-probabilities) of the `num` most likely tokens at each position of the rows' answers, on the CPU."""
    results = {}
    for i, logits in _answer_logits(model, tokenizer, rows, batch_size):
        top = logits.topk(min(num, logits.shape[1]), dim=1)
        results[i] = (top.indices.cpu(), (top.values - logits.logsumexp(1, keepdim=True)).cpu())
    return [results[i] for i in range(len(rows))]


def kl_from(
    model, tokenizer, rows: list[TokenRow], distributions: list[tuple], *, batch_size: int = ROWS_AT_ONCE
) -> list[tuple[float, int]]:
    """(KL divergence of another model from this one in nats, number of tokens), summed over the tokens of each answer.

    Args:
        distributions: `most_likely` of the other model on the same rows. All other tokens count as one, so each figure
            is a lower bound (log-sum inequality), and a close one where these tokens have nearly all the mass.
    """
    results = {}
    for i, logits in _answer_logits(model, tokenizer, rows, batch_size):
        ids, theirs = (tensor.to(logits.device) for tensor in distributions[i])
        ours = logits.gather(1, ids) - logits.logsumexp(1, keepdim=True)
        rest, our_rest = ((1 - part.exp().sum(1)).clamp(min=1e-6) for part in (theirs, ours))
        kl = (theirs.exp() * (theirs - ours)).sum(1) + rest * (rest / our_rest).log()
        results[i] = (float(kl.sum()), len(rows[i].completion))
    return [results[i] for i in range(len(rows))]


def first_token_logprobs(
    model, tokenizer, rendered: list[list[int]], tokens: list[int], *, batch_size: int = ROWS_AT_ONCE
) -> list[list[float]]:
    """Log-probabilities of each of `tokens` as the first token of the answer, for each prompt."""
    rows = [TokenRow(ids, [tokens[0]]) for ids in rendered]
    results = {}
    for i, logits in _answer_logits(model, tokenizer, rows, batch_size):
        results[i] = logits[0].log_softmax(0)[tokens].tolist()
    return [results[i] for i in range(len(rows))]


def mean_loss(logprobs: list[tuple[float, int]]) -> float:
    """Nats per token over all answers. NaN where there are no tokens."""
    num_tokens = sum(count for _, count in logprobs)
    return -sum(total for total, _ in logprobs) / num_tokens if num_tokens else float("nan")


def _answer_logits(
    model, tokenizer, rows: list[TokenRow], batch_size: int, name: str = "model"
) -> Iterator[tuple[int, Any]]:
    """(index of a row, its logits: tokens of the answer x vocabulary), batch by batch."""
    progress = Progress(name, "measured", len(rows), "rows")
    with _inference(model):
        for indices in _batches([len(row) for row in rows], batch_size):
            yield from zip(indices, _batch_logits(model, tokenizer, [rows[i] for i in indices]), strict=True)
            progress.advance(len(indices))


def _batch_logits(model, tokenizer, batch: list[TokenRow]) -> Iterator[Any]:
    """Pads on the right, so that positions are as in training, whatever the model's position encoding."""
    whole = [row.prompt + row.completion for row in batch]
    inputs = _padded(whole, _pad_id(tokenizer), side="right", device=model.device)
    width = inputs["input_ids"].shape[1]
    first = min(len(row.prompt) for row in batch) - 1  # the logits at a position are those of the token after it
    logits = model(**inputs, logits_to_keep=width - first, use_cache=False).logits
    first = width - logits.shape[1]  # a model that ignores logits_to_keep returns all of them
    for at, row in enumerate(batch):
        start = len(row.prompt) - 1 - first
        yield logits[at, start : start + len(row.completion)].float()


def _column(ids: list[int], logits: Any) -> Any:
    import torch

    return torch.tensor(ids, device=logits.device).unsqueeze(1)


@contextmanager
def _inference(model) -> Iterator[None]:
    """Evaluation mode without gradients; restores the model's mode afterwards."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _greedy(model, tokenizer, max_new_tokens: int):
    """Purely greedy settings, without a repetition penalty that the model's own configuration may have."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_token_ids(model, tokenizer),
        pad_token_id=_pad_id(tokenizer),
    )


def end_token_ids(model, tokenizer) -> list[int]:
    """Tokens that end an answer, by the generation configuration or the tokenizer."""
    return chat.end_token_ids(getattr(model.generation_config, "eos_token_id", None), tokenizer)


def _pad_id(tokenizer) -> int:
    """Any token will do: padding is masked, and an answer is cut at its first end token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


class Parts:
    """Tells in generated tokens the answer's own text from what stands before it."""

    def __init__(self, tokenizer):
        self.tokenizer, self.before = tokenizer, chat.text_before_answers(tokenizer)

    def answer(self, prompt: list[int], ids: list[int], ends: list[int]) -> Answer:
        """The answer in generated tokens, which may go on after its end."""
        end = next((at for at, id_ in enumerate(ids) if id_ in ends), None)
        kept = ids[:end]
        written = self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        before, text = self._parted(written, is_open=chat.opens_thoughts(self.tokenizer, prompt))
        tokens = tuple(ids if end is None else ids[: end + 1])
        return Answer(text=text, stopped=end is not None, num_tokens=len(kept), tokens=tokens, thoughts=before)

    def _parted(self, written: str, *, is_open: bool) -> tuple[str, str]:
        if self.before and written.startswith(self.before):
            thinking, text = thoughts.parted(written.removeprefix(self.before))
            return self.before + thinking, text
        return thoughts.parted(written, is_open=is_open)


def _batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that running out of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _padded(rows: list[list[int]], pad_id: int, *, side: str, device) -> dict:
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[at, start : start + len(row)] = torch.tensor(row)
        mask[at, start : start + len(row)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
