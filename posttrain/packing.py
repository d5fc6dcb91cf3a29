"""Batches without padding: the rows of a batch lie end to end in one sequence, and no token sees another row's.

a padded batch, as the trainer deals it -> the tokens of it that count, and who attends to whom; the same loss

The pair of DPO is one row in which both answers follow the one prompt, so that is computed once for both.
"""

from dataclasses import dataclass
from typing import Any

ATTENTION = "posttrain_rows"  # its name among the attention implementations of transformers


def turn_on(model: Any) -> None:
    """Has the model take batches without padding, if it sees in them what it sees in padded ones: as `is_on` tells."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if not may_suit(model):
        return
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, _padding_mask)
    before, model.config._attn_implementation = model.config._attn_implementation, ATTENTION
    if not _sees_the_same(model):
        model.config._attn_implementation = before


def is_on(model: Any) -> bool:
    """Whether the model takes batches without padding."""
    return model.config._attn_implementation == ATTENTION


def may_suit(model: Any) -> bool:
    """Whether its attention can be replaced, and nothing else makes a token depend on those far before it.

    A window, a state or a bias by distance would be counted along the whole sequence, which few tokens need not show.
    """
    config = model.config
    is_text = config.get_text_config() is config and not config.is_encoder_decoder
    is_rotary = bool(getattr(config, "rope_parameters", None))
    sees_all = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    has_window = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    runs_on_sdpa = config._attn_implementation == "sdpa" and not model._is_stateful
    return is_text and is_rotary and sees_all and not has_window and runs_on_sdpa


def _sees_the_same(model: Any) -> bool:
    """Whether two short pairs get the logits that they get with padding, each prompt twice."""
    import torch

    input_ids = torch.arange(4 * 8).view(4, 8) % model.config.vocab_size
    input_ids[2:, :4] = input_ids[:2, :4]
    completion_mask = (torch.arange(8) >= 4).long().expand(4, 8)
    attention_mask = (torch.arange(8) < torch.tensor([[8], [6], [7], [8]])).long()
    packed = pack_pairs(attention_mask, completion_mask)
    with torch.no_grad():
        padded = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        found = model(**packed.model_inputs(input_ids), use_cache=False).logits[0]
    expected = padded.flatten(end_dim=1)[packed.places]
    return bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, row_lengths=None, row_masks=None, **settings
) -> tuple[Any, None]:  # fmt: skip
    """Attention of transformers' kind, of each row of `pack` or `pack_pairs` by itself; of padded rows as in sdpa."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if row_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    rows = zip(*(states.split(row_lengths, dim=2) for states in (query, key, value)), row_masks, strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, **settings)[0] for row in rows], dim=1), None


def _padding_mask(*, attention_mask: Any = None, **settings) -> Any:
    """Without padding `attend` masks by itself: a mask of all tokens by all tokens is never made."""
    from transformers.masking_utils import sdpa_mask

    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **settings)


@dataclass(frozen=True)
class Packed:
    """Tokens of a padded batch in their new order."""

    places: Any  # of each token in the padded batch, row by row: row * width + column
    row_lengths: list[int]  # tokens
    row_masks: list[Any]  # of tokens by tokens, True where one sees the other; None: what is before it

    def model_inputs(self, input_ids: Any) -> dict[str, Any]:
        positions = self.places % input_ids.shape[1]
        return {
            "input_ids": self.take(input_ids), "position_ids": positions[None], "row_lengths": self.row_lengths,
            "row_masks": self.row_masks,
        }  # fmt: skip

    def take(self, padded: Any) -> Any:
        """[rows, width] -> [1, tokens]"""
        return padded.flatten()[self.places][None]

    def put_back(self, of_predicted: Any, like: Any) -> Any:
        """[1, tokens - 1], of all tokens but the first -> [rows, width - 1] of `like`; 0 where there is none."""
        padded = of_predicted.new_zeros(like.numel()).scatter(0, self.places[1:], of_predicted[0])
        return padded.view_as(like)[:, 1:]


def pack(inputs: dict[str, Any]) -> dict[str, Any]:
    """A padded batch of SFT -> the inputs of the model for the same rows end to end."""
    import torch

    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    packed = Packed(inputs["attention_mask"].flatten().nonzero()[:, 0], lengths, [None] * len(lengths))
    labels = packed.take(inputs["labels"])
    labels[:, torch.tensor([0, *lengths[:-1]]).cumsum(0)] = -100  # the token before it is another row's
    others = {name: value for name, value in inputs.items() if name != "attention_mask"}
    return others | packed.model_inputs(inputs["input_ids"]) | {"labels": labels}


def pack_pairs(attention_mask: Any, completion_mask: Any) -> Packed:
    """A padded batch of DPO, all chosen rows before all rejected ones -> a row for each pair: prompt, chosen, rejected.

    The prompt's last token stands before the rejected answer once more, at its old position, so that each token of
    both answers is predicted from the token before it.
    """
    import torch

    half, width = len(attention_mask) // 2, attention_mask.shape[1]
    starts = completion_mask.argmax(dim=1)[:half].tolist()
    ends = attention_mask.sum(dim=1).tolist()
    places, lengths, masks = [], [], []
    for pair, (start, chosen_end, rejected_end) in enumerate(zip(starts, ends[:half], ends[half:], strict=True)):
        offsets = (pair * width, (half + pair) * width)
        places += [torch.arange(chosen_end) + offsets[0], torch.arange(start - 1, rejected_end) + offsets[1]]
        lengths.append(chosen_end + rejected_end - start + 1)
        mask = torch.ones(lengths[-1], lengths[-1], dtype=torch.bool).tril()
        mask[chosen_end:, start - 1 : chosen_end] = False
        masks.append(mask[None, None])
    return Packed(torch.cat(places), lengths, masks)


def without_padding(trainer_class: type) -> type:
    """An `SFTTrainer` whose model is given each batch without its padding."""

    class WithoutPadding(trainer_class):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, pack(inputs), *args, **kwargs)

    return WithoutPadding


def sharing_prompts(trainer_class: type) -> type:
    """A `DPOTrainer` whose model is given the prompt of a pair once, without padding."""

    class SharingPrompts(trainer_class):
        def _get_per_token_logps_and_entropies(self, model, model_kwargs, input_ids, completion_mask):
            packed = pack_pairs(model_kwargs["attention_mask"], completion_mask)
            others = {name: value for name, value in model_kwargs.items() if name != "attention_mask"}
            inputs = others | packed.model_inputs(input_ids)
            *found, outputs = super()._get_per_token_logps_and_entropies(
                model, inputs, inputs["input_ids"], packed.take(completion_mask)
            )
            return *(packed.put_back(values, input_ids) for values in found), outputs

    return SharingPrompts
