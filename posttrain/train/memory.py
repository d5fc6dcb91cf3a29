"""Estimates the GPU memory that a training takes, before it takes it.

config.json of the model, settings of the training -> bytes of weights, adapter, activations and head

The same estimate decides about gradient checkpointing, lets preflight warn, and makes the table of docs/memory.md. It
counts what the code of transformers, peft and `posttrain.train.fast` keeps for the backward pass; rows are taken to be
as long as `max_seq_length`. No torch is needed.
"""

from dataclasses import asdict, dataclass
from typing import Any

from posttrain.config import DpoConfig, LoraTraining, SftConfig

HALF, SINGLE = 2, 4  # bytes of a number in 16 and in 32 bit
NF4 = 0.516  # bytes of a weight in 4 bits, with its share of doubly quantised scales
TRAINED = 4 * SINGLE  # bytes of a trained parameter: itself, its gradient, two averages of AdamW
CONTEXT = 1.0e9  # bytes of CUDA's context, libraries and workspaces
USABLE = 0.95  # share of a GPU's memory that a training whose estimate fits may take
FRAGMENTED = 1.05  # memory that the allocator reserves, as a multiple of what is used
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FUSED = {"qkv_proj": ATTENTION[:3], "gate_up_proj": ("gate_proj", "up_proj")}  # of Phi-3
SFT_CHUNK = 256  # tokens whose logits trl's loss computes at once
DPO_CHUNK = (2048, 8192)  # tokens and entries of the vocabulary whose logits trl's DPO computes at once


@dataclass(frozen=True)
class Shape:
    """The widths of a dense decoder with gated layers, such as Llama or Qwen."""

    num_layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    is_tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape | None":
        """Reads the shape from the content of config.json; returns None if the model is of another kind."""
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        is_sparse = any(key.startswith(("num_experts", "num_local_experts", "n_routed_experts")) for key in config)
        if is_sparse or not all(isinstance(config.get(name), int) for name in names):
            return None
        num_layers, hidden, intermediate, heads, vocabulary = (config[name] for name in names)
        width = config.get("head_dim") or hidden // heads
        keys = width * (config.get("num_key_value_heads") or heads)
        is_tied = bool(config.get("tie_word_embeddings", False))
        return cls(num_layers, hidden, intermediate, width * heads, keys, vocabulary, is_tied)

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def num_in_layers(self) -> int:
        """Number of weights in the linear layers of all blocks, which are what 4 bits are for."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.linear.values())

    @property
    def num_around_layers(self) -> int:
        """Number of weights in the embedding, and in the head unless that is the embedding."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one GPU, by what they are for."""

    weights: float
    adapter: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return CONTEXT + FRAGMENTED * sum(asdict(self).values())


def estimate(shape: Shape, config: LoraTraining, *, num_ranks: int = 1, checkpointing: bool) -> Estimate:
    """Estimates the memory of each GPU.

    Args:
        checkpointing: whether activations are recomputed, where the configuration leaves that open.
    """
    is_sharded = num_ranks > 1 and config.parallelism == "fsdp"
    num_tokens = config.batch_size * config.max_seq_length * (2 if isinstance(config, DpoConfig) else 1)
    parts = num_ranks if is_sharded else 1
    return Estimate(
        weights=_weights(shape, config) / parts + (2 * _block(shape) if is_sharded else 0),
        adapter=TRAINED * _num_trained(shape, config) / parts,
        activations=num_tokens * _bytes_per_token(shape, config, checkpointing),
        head=_head(shape, config, num_tokens),
    )


def _weights(shape: Shape, config: LoraTraining) -> float:
    in_4bit = isinstance(config, SftConfig) and config.load_in_4bit
    return (NF4 if in_4bit else HALF) * shape.num_in_layers + HALF * shape.num_around_layers


def _block(shape: Shape) -> float:
    """Bytes of one block, of which FSDP gathers the next while it computes with another."""
    return HALF * shape.num_in_layers / shape.num_layers


def _adapted(shape: Shape, config: LoraTraining) -> dict[str, tuple[int, int]]:
    named = {"auto": shape.linear, "all-linear": shape.linear, "attention": ATTENTION}
    names = config.target_modules if isinstance(config.target_modules, list) else named[config.target_modules]
    names = {part for name in names for part in FUSED.get(name, [name])}
    return {name: widths for name, widths in shape.linear.items() if name in names}


def _num_trained(shape: Shape, config: LoraTraining) -> int:
    return shape.num_layers * config.lora_r * sum(map(sum, _adapted(shape, config).values()))


def _bytes_per_token(shape: Shape, config: LoraTraining, checkpointing: bool) -> float:
    """Bytes of activations that a token leaves for the backward pass."""
    norms = 2 * (SINGLE + HALF) * shape.hidden  # what goes into each in 32 bit, and what comes out
    attention = HALF * (2 * shape.queries + 2 * shape.keys)  # queries, keys, values and what comes out
    gate = HALF * 4 * shape.intermediate  # gate, its activation, up, their product
    of_layer = norms + attention + gate + _of_adapters(shape, config)
    if checkpointing:
        return HALF * shape.hidden * shape.num_layers + 2 * of_layer
    return of_layer * shape.num_layers


def _of_adapters(shape: Shape, config: LoraTraining) -> float:
    """Bytes of each token in a block that the adapters keep beside the layers.

    With dropout each adapter has its own copy of the input, and its own mask of a byte; without, the fused layers keep
    the input that is there.
    """
    if not config.lora_dropout:
        return 0
    return (HALF + 1) * sum(inputs for inputs, _ in _adapted(shape, config).values())


def _head(shape: Shape, config: LoraTraining, num_tokens: int) -> float:
    """Bytes of states and logits of the head: the hidden states with their gradient, and one chunk of logits."""
    states = num_tokens * shape.hidden * (HALF + SINGLE)
    if isinstance(config, DpoConfig):
        return states + DPO_CHUNK[0] * DPO_CHUNK[1] * (HALF + 3 * SINGLE)
    return states + SFT_CHUNK * shape.vocabulary * (HALF + 4 * SINGLE)


def too_small(needed: Estimate, config: LoraTraining, *, section: str, card_gb: float) -> str:
    """Says that a GPU is too small, for what, and what to change."""
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in asdict(needed).items())
    remedies = [f"{section}.batch_size (now {config.batch_size})", f"max_seq_length (now {config.max_seq_length})"]
    remedy = "lower " + " or ".join(remedies)
    if config.gradient_checkpointing is False:
        remedy += f", turn {section}.gradient_checkpointing on"
    if isinstance(config, SftConfig) and not config.load_in_4bit:
        remedy += f", set {section}.load_in_4bit"
    return (
        f"it will take about {needed.total / 1e9:.0f} GB of a GPU's {card_gb:.0f} GB ({parts}): {remedy}, "
        "or choose a larger GPU"
    )
