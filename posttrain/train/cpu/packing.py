"""Packs the rows of a batch end to end into one sequence without padding, in which no row attends to another.

padded batch of the trainer -> its tokens without padding, and which of them attend to which; the same loss

A prefix that all rows share, such as a system prompt, is computed once and attended to by every row. A pair of DPO is
one row in which both answers follow the prompt, so the prompt too is computed once.
"""

from dataclasses import dataclass
from typing import Any

from posttrain.train.overrides import overrides

ATTENTION = "posttrain_rows"  # name of `attend` among the attention implementations of transformers


def turn_on(model: Any) -> bool:
    """Switches the model to packed batches if it computes from them what it computes from padded ones.

    Returns whether it did.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if not may_suit(model):
        return False
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, _padding_mask)
    before, model.config._attn_implementation = model.config._attn_implementation, ATTENTION
    is_on = _sees_the_same(model)
    if not is_on:
        model.config._attn_implementation = before
    return is_on


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


def _sees_the_same(model: Any) -> bool:
    """Tells whether two short pairs get the same logits packed as they get padded, with each prompt twice."""
    import torch

    input_ids = torch.arange(4 * 8).view(4, 8) % model.config.vocab_size
    input_ids[2:, :4] = input_ids[:2, :4]
    input_ids[:, 0] = 0  # a prefix that all rows share
    completion_mask = (torch.arange(8) >= 4).long().expand(4, 8)
    attention_mask = (torch.arange(8) < torch.tensor([[8], [6], [7], [8]])).long()
    packed = pack_pairs(input_ids, attention_mask, completion_mask)
    with torch.no_grad():
        padded = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        logits = model(**packed.model_inputs(input_ids), use_cache=False).logits[0]
    expected = padded.flatten(end_dim=1)[packed.places]
    return bool((logits - expected).abs().max() <= 1e-3 * expected.abs().max())


def attend(module, query, key, value, attention_mask, *, row_lengths=None, row_masks=None, num_shared=0, **settings):
    """Computes attention row by row for the inputs of `Packed.model_inputs`, and as sdpa does for a padded batch.

    Arguments and results are those that transformers' AttentionInterface asks for.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if row_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    queries, keys, values = (list(states.split(row_lengths, dim=2)) for states in (query, key, value))
    if num_shared:
        for states in (keys, values):
            states[1:] = [torch.cat([states[0], own], dim=2) for own in states[1:]]
    rows = zip(queries, keys, values, row_masks, strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, **settings)[0] for row in rows], dim=1), None


def _padding_mask(*, attention_mask: Any = None, **settings) -> Any:
    """Makes no mask for packed rows, which `attend` masks by itself: one of all tokens by all tokens would be large."""
    from transformers.masking_utils import sdpa_mask

    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **settings)


@dataclass(frozen=True)
class Packed:
    """The tokens of a padded batch in their new order."""

    places: Any  # for each token its place in the padded batch: row * width + column
    row_lengths: list[int]  # in tokens
    row_masks: list[Any]  # for each row [1, 1, queries, keys], True where a query attends to a key; None: causal
    num_shared: int  # tokens of the first row if that is the prefix of all others, else 0

    @classmethod
    def of_rows(cls, rows: list[Any], masks: list[Any], num_shared: int) -> "Packed":
        """Packs `rows`, the places of each row's tokens after the shared prefix, with a mask of each or None."""
        import torch

        if num_shared:
            wider = [_beside_shared(mask, len(row), num_shared) for row, mask in zip(rows, masks, strict=True)]
            rows, masks = [torch.arange(num_shared), *rows], [None, *wider]
        shaped = [mask if mask is None else mask[None, None] for mask in masks]
        return cls(torch.cat(rows), [len(row) for row in rows], shaped, num_shared)

    def model_inputs(self, input_ids: Any) -> dict[str, Any]:
        """Returns the model's inputs for the padded `input_ids`."""
        return {
            "input_ids": self.take(input_ids),
            "position_ids": (self.places % input_ids.shape[1])[None],
            "row_lengths": self.row_lengths,
            "row_masks": self.row_masks,
            "num_shared": self.num_shared,
        }

    def take(self, padded: Any) -> Any:
        """Packs any tensor of the batch: [rows, width] -> [1, tokens]."""
        return padded.flatten()[self.places][None]

    def put_back(self, values: Any, like: Any) -> Any:
        """Undoes `take` for values of all tokens but the first: [1, tokens - 1] -> [rows, width - 1], 0 elsewhere."""
        padded = values.new_zeros(like.numel()).scatter(0, self.places[1:], values[0])
        return padded.view_as(like)[:, 1:]


def pack(inputs: dict[str, Any]) -> dict[str, Any]:
    """Packs a padded batch of SFT into the model's inputs, with logits for the tokens of answers alone."""
    import torch

    input_ids, width = inputs["input_ids"], inputs["input_ids"].shape[1]
    num_shared = _num_shared(input_ids, inputs["labels"] != -100)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    rows = [torch.arange(num_shared, length) + row * width for row, length in enumerate(lengths)]
    packed = Packed.of_rows(rows, [None] * len(rows), num_shared)
    labels = packed.take(inputs["labels"])
    labels[:, torch.tensor([0, *packed.row_lengths[:-1]]).cumsum(0)] = -100  # a row's first token follows another row
    predicted = (labels[0] != -100).nonzero()[:, 0]
    others = {name: value for name, value in inputs.items() if name != "attention_mask"}
    answers = {"labels": labels[:, predicted], "shift_labels": labels[:, predicted], "logits_to_keep": predicted - 1}
    return others | packed.model_inputs(input_ids) | answers


def pack_pairs(input_ids: Any, attention_mask: Any, completion_mask: Any) -> Packed:
    """Packs a padded batch of DPO, chosen rows before rejected ones, to a row per pair: prompt, chosen, rejected.

    The prompt's last token is repeated before the rejected answer, at its old position, so that each token of both
    answers is predicted from the token before it.
    """
    import torch

    half, width = len(input_ids) // 2, input_ids.shape[1]
    num_shared = _num_shared(input_ids[:half], completion_mask[:half])
    starts = completion_mask.argmax(dim=1)[:half].tolist()
    ends = attention_mask.sum(dim=1).tolist()
    rows, masks = [], []
    for pair, (start, chosen_end, rejected_end) in enumerate(zip(starts, ends[:half], ends[half:], strict=True)):
        chosen = torch.arange(num_shared, chosen_end) + pair * width
        rejected = torch.arange(start - 1, rejected_end) + (half + pair) * width
        rows.append(torch.cat([chosen, rejected]))
        masks.append(_causal(len(rows[-1])))
        masks[-1][len(chosen) :, start - 1 - num_shared : len(chosen)] = False
    return Packed.of_rows(rows, masks, num_shared)


def _num_shared(input_ids: Any, completion_mask: Any) -> int:
    """Counts the tokens that all rows begin with, without a prompt's last one: its answer is predicted from that."""
    if len(input_ids) == 1:
        return 0
    end = max(0, int(completion_mask.long().argmax(dim=1).min()) - 1)
    is_same = (input_ids[:, :end] == input_ids[0, :end]).all(dim=0)
    return int(is_same.long().cumprod(dim=0).sum())


def _causal(num_tokens: int) -> Any:
    import torch

    return torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()


def _beside_shared(mask: Any, num_tokens: int, num_shared: int) -> Any:
    """Widens the mask of a row's own tokens to the left, so that they all attend to the whole shared prefix."""
    import torch

    own = _causal(num_tokens) if mask is None else mask
    return torch.nn.functional.pad(own, (num_shared, 0), value=True)


def without_padding(trainer_class: type) -> type:
    """Extends `SFTTrainer` so that its model gets each batch without padding."""

    class WithoutPadding(trainer_class):
        def __init__(self, *, args, **kwargs):
            args.loss_type = "nll"  # trl's default ignores which tokens need logits, and computes all of them
            super().__init__(args=args, **kwargs)

        @overrides(trainer_class)
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, pack(inputs), *args, **kwargs)

    return WithoutPadding


def sharing_prompts(trainer_class: type) -> type:
    """Extends `DPOTrainer` so that its model gets each pair without padding, and the pair's prompt once."""

    class SharesPrompts(trainer_class):
        @overrides(trainer_class)
        def _get_per_token_logps_and_entropies(self, model, model_kwargs, input_ids, completion_mask):
            packed = pack_pairs(input_ids, model_kwargs["attention_mask"], completion_mask)
            others = {name: value for name, value in model_kwargs.items() if name != "attention_mask"}
            inputs = others | packed.model_inputs(input_ids)
            *per_token, outputs = super()._get_per_token_logps_and_entropies(
                model, inputs, inputs["input_ids"], packed.take(completion_mask)
            )
            return *(packed.put_back(values, input_ids) for values in per_token), outputs

    return SharesPrompts
