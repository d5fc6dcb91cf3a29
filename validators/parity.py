"""Does the merged model compute what the adapter on its base computes? The merge gate's measurements with a model.

base folder, adapter folder, merged model folder, held-out rows -> differences, tensor by tensor and row by row

peft itself applies the adapter to the base; none of the merge's own code is used. One model at a time is in memory, in
float32 on the CPU.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.rows import chat
from posttrain.weights.tensors import Place, read_places
from validators.measuring import Parts

# Positions compared, over all rows: seconds on a CPU, and 1.2 GB of log-probabilities at 150,000 tokens.
MAX_TOKENS = 2048
MAX_ROW_TOKENS = 256  # of a row, counted from its end, which is the answer
ROUNDING = {"BF16": 2**-7, "F16": 2**-10, "F32": 2**-20}  # relative; twice what one rounding can do, or more


class Sequence(NamedTuple):
    """The tokens of a row, and how many of them, at the end, are its answer."""

    ids: list[int]
    num_answer: int


class Measurer:
    """Measures what needs a model, in one process; keeps there what later measurements need of earlier ones."""

    def __init__(self, base: Path, adapter: Path, model: Path, rows: list[dict]):
        self.base, self.adapter, self.model, self.rows = base, adapter, model, rows
        self.sequences: list[Sequence] = []
        self.adapted: Any = None  # the base with the adapter on it
        self.reference: list = []  # its log-probabilities

    def parts(self) -> Parts:
        """The measurements, in their order."""
        return {
            "adapter_loads": self.load_adapter,
            "updates_compared": lambda: {"wrong_updates": compare_updates(self.adapted, self.model)},
            "adapter_measured": self.measure_adapter,
            "merged_measured": self.measure_merged,
        }

    def load_adapter(self) -> None:
        self.sequences = token_sequences(chat.load_tokenizer(self.base), self.rows)
        self.adapted = load_adapted(self.base, self.adapter)

    def measure_adapter(self) -> None:
        """Also drops the model, so that the merged one is not loaded beside it."""
        adapted, self.adapted = self.adapted, None
        self.reference = list(log_probabilities(adapted, self.sequences))

    def measure_merged(self) -> dict[str, Any]:
        merged = log_probabilities(load(self.model), self.sequences)
        return compare_outputs(self.reference, merged, self.sequences)


def load(path: Path, *, dtype: str = "float32", **options) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the log is read line by line
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, use_safetensors=True, **options
    )


def load_adapted(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base), adapter, local_files_only=True, torch_device="cpu")


def compare_updates(adapted: Any, model: Path) -> list[str]:
    """Names of tensors that are not the base's plus the update, as peft computes it, up to rounding.

    No other check notices that two targets of the same shape have been swapped.
    """
    places, wrong = read_places(model), []
    for module_name, module in adapted.get_base_model().named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        name = f"{module_name}.weight"
        expected = module.get_base_layer().weight.detach() + module.get_delta_weight("default").detach()
        if name not in places or not _is_rounded(places[name], expected):
            wrong.append(name)
    return sorted(wrong)


def _is_rounded(place: Place, expected: Any) -> bool:
    """Tells whether the stored tensor is the expected one, rounded to its own dtype."""
    from safetensors import safe_open

    path, tensor = place
    with safe_open(path, framework="pt") as file:
        stored = file.get_tensor(tensor.name).float()
    if stored.shape != expected.shape:
        return False
    allowed = ROUNDING[tensor.dtype] * expected.abs() + 1e-6 * expected.abs().max()
    return bool(((stored - expected).abs() <= allowed).all())


def compare_outputs(reference: Iterable, merged: Iterable, sequences: list[Sequence]) -> dict[str, Any]:
    """KL divergence in nats, agreement and loss of two models' log-probabilities, row by row.

    The loss is that of the answers, as in training. No model learns to predict prompts: tokens to which it gives next
    to no probability would drown the rest in the rounding of their logarithms.
    """
    import torch

    kl, agreeing, losses = [], [], []
    for theirs, ours, (ids, num_answer) in zip(reference, merged, sequences, strict=True):
        answer = torch.tensor(ids[-num_answer:]).unsqueeze(1)
        kl.append((theirs.exp() * (theirs - ours)).sum().item())
        agreeing.append(int((theirs.argmax(1) == ours.argmax(1)).sum()))
        losses.append([-scores[-num_answer:].gather(1, answer).sum().item() for scores in (theirs, ours)])
    lengths = [len(ids) - 1 for ids, _ in sequences]
    answer_lengths = [num_answer for _, num_answer in sequences]
    return {
        "kl_of_rows": kl,
        "num_agreeing_of_rows": agreeing,
        "loss_difference_of_rows": [abs(after - before) for before, after in losses],
        "num_positions_of_rows": lengths,
        "num_positions": sum(lengths),
        "num_answer_tokens_of_rows": answer_lengths,
        "adapter_loss": sum(before for before, _ in losses) / sum(answer_lengths),
        "merged_loss": sum(after for _, after in losses) / sum(answer_lengths),
    }


def load_without_peft(model: Path, rows: list[dict]) -> dict[str, Any]:
    """Loads the model as a server would, after making peft impossible to import in this process."""
    for name in ["peft", *(name for name in sys.modules if name.startswith("peft."))]:
        sys.modules[name] = None  # its import raises ImportError
    import torch

    loaded, loading = load(model, dtype="auto", output_loading_info=True)
    ids = token_sequences(chat.load_tokenizer(model), rows)[0].ids
    with torch.inference_mode():
        logits = loaded.eval()(torch.tensor([ids]), use_cache=False).logits
    return {
        "not_loaded": sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in loading[kind]),
        "logits_finite": bool(logits.isfinite().all()),
    }


def token_sequences(tokenizer, rows: list[dict]) -> list[Sequence]:
    """The ends of the first rows, up to `MAX_TOKENS` in all."""
    sequences: list[Sequence] = []
    for row in rows:
        prompt, answer = chat.split(tokenizer, row["prompt"], row.get("completion") or row["chosen"])
        ids = (prompt + answer)[-MAX_ROW_TOKENS:]
        if sequences and sum(len(sequence.ids) for sequence in sequences) + len(ids) > MAX_TOKENS:
            break
        sequences.append(Sequence(ids, min(len(answer), len(ids) - 1)))
    if not sequences:
        raise ValueError("no held-out rows to compare the models on; raise data.eval_fraction")
    return sequences


def log_probabilities(model, sequences: list[Sequence]) -> Iterator[Any]:
    """Log-probabilities of every next token, for each sequence: [positions, vocabulary], float32."""
    import torch

    model.eval()
    for ids, _ in sequences:
        with torch.inference_mode():
            scores = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(1)
        yield scores  # outside the mode: an abandoned generator would leave it on
