"""Packs the rows of a batch end to end into one sequence without padding, in which no row attends to another.

padded batch of the trainer -> its tokens without padding, and which of them attend to which; the same loss

A prefix that all rows share, such as a system prompt, is computed once and attended to by every row. A pair of DPO is
one row in which both answers follow the prompt, so the prompt too is computed once. What goes where is worked out when
the batch is collated, on the CPU, so that a GPU is never waited for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from posttrain.train.fast import attention, same
from posttrain.train.fast.attention import Kernel, Layout
from posttrain.train.fast.chosen import may_take
from posttrain.train.overrides import overrides


def turn_on(model: Any, *, pairs: bool) -> Kernel | None:
    """Switches the model to packed batches if it computes from them what it computes from padded ones.

    Args:
        pairs: whether the batches are pairs of DPO.

    Returns the kernel that computes attention in them, or None if the model keeps its padded batches.
    """
    if not may_suit(model):
        return None
    attention.register()
    before, model.config._attn_implementation = model.config._attn_implementation, attention.NAME
    for kernel in attention.kernels(model.config):
        if may_take(kernel) and not (pairs and kernel == "varlen") and _sees_the_same(model, kernel):
            return kernel
    model.config._attn_implementation = before
    return None


def may_suit(model: Any) -> bool:
    """Tells whether attention can be replaced and is all that makes a token depend on earlier ones.

    A window, a state or a bias by distance would span the rows of a packed batch, and a short test need not show it.
    """
    config = model.config
    is_text = config.get_text_config() is config and not config.is_encoder_decoder
    is_rotary = bool(getattr(config, "rope_parameters", None))
    sees_all = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    has_window = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    runs_on_sdpa = config._attn_implementation == "sdpa" and not model._is_stateful
    return is_text and is_rotary and sees_all and not has_window and runs_on_sdpa


def _sees_the_same(model: Any, kernel: Kernel) -> bool:
    """Tells whether short rows, for kernels that can two pairs, get the logits packed that they get padded."""
    import torch

    input_ids = torch.arange(4 * 8).view(4, 8) % model.config.vocab_size
    input_ids[2:, :4] = input_ids[:2, :4]
    input_ids[:, 0] = 0  # a prefix that all rows share
    completion_mask = (torch.arange(8) >= 4).long().expand(4, 8)
    attention_mask = (torch.arange(8) < torch.tensor([[8], [6], [7], [8]])).long()
    pack = pack_rows if kernel == "varlen" else pack_pairs
    packed = pack(input_ids, attention_mask, completion_mask, kernel=kernel).to(model.device)
    input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
    with torch.no_grad(), same.first_layers(model):
        padded = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        logits = model(**packed.model_inputs(input_ids), use_cache=False).logits[0]
    return same.is_same(model, logits, padded.flatten(end_dim=1)[packed.places], shortcut=kernel)


@dataclass(frozen=True)
class Packed:
    """The tokens of a padded batch in their new order."""

    places: Any  # for each token its place in the padded batch: row * width + column
    layout: Layout
    kernel: Kernel
    predicted: Any = None  # of SFT, the tokens that count in the loss, by their position in the new order

    @classmethod
    def of_rows(cls, rows: list[Any], gaps: list[tuple[int, int]], num_shared: int, *, kernel: Kernel) -> "Packed":
        """Packs `rows`, the places of each row's tokens after the shared prefix, with the gap of each."""
        import torch

        if num_shared:
            rows, gaps = [torch.arange(num_shared), *rows], [(0, 0), *gaps]
        return cls(torch.cat(rows), Layout([len(row) for row in rows], gaps, num_shared), kernel)

    def to(self, device: Any, non_blocking: bool = False) -> "Packed":
        """Moves what the model is given to its device, as accelerate does with the tensors of a batch."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Packed":
        """Pins what will be moved, as the data loader does with the tensors of a batch."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Any], Any]) -> "Packed":
        return replace(
            self, places=change(self.places), predicted=None if self.predicted is None else change(self.predicted)
        )

    def model_inputs(self, input_ids: Any) -> dict[str, Any]:
        """Returns the model's inputs for the padded `input_ids`."""
        return {
            "input_ids": self.take(input_ids),
            "position_ids": (self.places % input_ids.shape[1])[None],
            **self.layout.inputs(self.kernel, input_ids.device),
        }

    def take(self, padded: Any) -> Any:
        """Packs any tensor of the batch: [rows, width] -> [1, tokens]."""
        return padded.flatten()[self.places][None]

    def put_back(self, values: Any, like: Any) -> Any:
        """Undoes `take` for values of all tokens but the first: [1, tokens - 1] -> [rows, width - 1], 0 elsewhere."""
        padded = values.new_zeros(like.numel()).scatter(0, self.places[1:], values[0])
        return padded.view_as(like)[:, 1:]


def pack_rows(input_ids: Any, attention_mask: Any, answer_mask: Any, *, kernel: Kernel) -> Packed:
    """Packs a padded batch of SFT; `answer_mask` marks the tokens that count in the loss."""
    import torch

    width = input_ids.shape[1]
    num_shared = 0 if kernel == "varlen" else _num_shared(input_ids, answer_mask)
    lengths = attention_mask.sum(dim=1).tolist()
    rows = [torch.arange(num_shared, length) + row * width for row, length in enumerate(lengths)]
    packed = Packed.of_rows(rows, [(0, 0)] * len(rows), num_shared, kernel=kernel)
    counts = packed.take(answer_mask)[0].bool()
    counts[torch.tensor([0, *packed.layout.row_lengths[:-1]]).cumsum(0)] = False  # a row's first token follows another
    return replace(packed, predicted=counts.nonzero()[:, 0])


def pack_pairs(input_ids: Any, attention_mask: Any, completion_mask: Any, *, kernel: Kernel) -> Packed:
    """Packs a padded batch of DPO, chosen rows before rejected ones, to a row per pair: prompt, chosen, rejected.

    The prompt's last token is repeated before the rejected answer, at its old position, so that each token of both
    answers is predicted from the token before it.
    """
    import torch

    half, width = len(input_ids) // 2, input_ids.shape[1]
    num_shared = _num_shared(input_ids[:half], completion_mask[:half])
    starts = completion_mask.argmax(dim=1)[:half].tolist()
    ends = attention_mask.sum(dim=1).tolist()
    rows, gaps = [], []
    for pair, (start, chosen_end, rejected_end) in enumerate(zip(starts, ends[:half], ends[half:], strict=True)):
        chosen = torch.arange(num_shared, chosen_end) + pair * width
        rejected = torch.arange(start - 1, rejected_end) + (half + pair) * width
        rows.append(torch.cat([chosen, rejected]))
        gaps.append((start - 1 - num_shared, len(chosen)))
    return Packed.of_rows(rows, gaps, num_shared, kernel=kernel)


def _num_shared(input_ids: Any, completion_mask: Any) -> int:
    """Counts the tokens that all rows begin with, without a prompt's last one: its answer is predicted from that."""
    if len(input_ids) == 1:
        return 0
    end = max(0, int(completion_mask.long().argmax(dim=1).min()) - 1)
    is_same = (input_ids[:, :end] == input_ids[0, :end]).all(dim=0)
    return int(is_same.long().cumprod(dim=0).sum())


def inputs_of_rows(inputs: dict[str, Any], *, answers_alone: bool) -> dict[str, Any]:
    """Returns the model's inputs for a padded batch of SFT with its `packed`.

    Args:
        answers_alone: whether only the tokens that count are to get logits, or all are, which are then not to be kept.
    """
    import torch

    packed, input_ids = inputs["packed"], inputs["input_ids"]
    others = {name: value for name, value in inputs.items() if name not in ("packed", "attention_mask")}
    labels = packed.take(inputs["labels"])[:, packed.predicted]
    if answers_alone:
        counted = {"labels": labels, "shift_labels": labels, "logits_to_keep": packed.predicted - 1}
    else:
        all_labels = torch.full_like(packed.places, -100)
        counted = {"labels": all_labels.scatter(0, packed.predicted, labels[0])[None]}
    return others | packed.model_inputs(input_ids) | counted


@dataclass(frozen=True)
class PackingCollator:
    """Collates a padded batch as `collate` does, and adds how it is packed."""

    collate: Callable[[list], dict[str, Any]]
    pack: Callable[[dict[str, Any]], Packed]

    def __call__(self, rows: list) -> dict[str, Any]:
        batch = self.collate(rows)
        return batch | {"packed": self.pack(batch)}


def without_padding(trainer_class: type, kernel: Kernel, *, loss: str = "nll") -> type:
    """Extends `SFTTrainer` so that its model gets each batch without padding.

    Args:
        loss: chunked_nll is trl's, and leaves out by itself the tokens that do not count.
    """

    def pack(batch: dict[str, Any]) -> Packed:
        return pack_rows(batch["input_ids"], batch["attention_mask"], batch["labels"] != -100, kernel=kernel)

    class WithoutPadding(_packing(trainer_class, pack)):
        def __init__(self, *, args, **kwargs):
            # trl's default on a CPU too is chunked_nll, which is slower there than logits of the tokens that count.
            args.loss_type = "chunked_nll" if loss == "chunked_nll" else "nll"
            super().__init__(args=args, **kwargs)

        @overrides(trainer_class)
        def compute_loss(self, model, inputs, *args, **kwargs):
            packed = inputs_of_rows(inputs, answers_alone=loss != "chunked_nll")
            return super().compute_loss(model, packed, *args, **kwargs)

    return WithoutPadding


def sharing_prompts(trainer_class: type, kernel: Kernel) -> type:
    """Extends `DPOTrainer` so that its model gets each pair without padding, and the pair's prompt once."""

    def pack(batch: dict[str, Any]) -> Packed:
        return pack_pairs(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], kernel=kernel)

    class SharesPrompts(_packing(trainer_class, pack)):
        @overrides(trainer_class)
        def _get_per_token_logps_and_entropies(self, model, model_kwargs, input_ids, completion_mask):
            packed = model_kwargs["packed"]
            others = {name: value for name, value in model_kwargs.items() if name not in ("packed", "attention_mask")}
            inputs = others | packed.model_inputs(input_ids)
            *per_token, outputs = super()._get_per_token_logps_and_entropies(
                model, inputs, inputs["input_ids"], packed.take(completion_mask)
            )
            return *(packed.put_back(values, input_ids) for values in per_token), outputs

    return SharesPrompts


def _packing(trainer_class: type, pack: Callable[[dict[str, Any]], Packed]) -> type:
    """Extends a trainer so that whatever collator it is given packs too."""

    class Packs(trainer_class):
        @property
        def data_collator(self):
            return self._packing_collator

        @data_collator.setter
        def data_collator(self, collate):
            self._packing_collator = PackingCollator(collate, pack)

    return Packs
