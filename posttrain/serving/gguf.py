"""Writes a model as GGUF, the file that llama.cpp serves, tensor by tensor.

model folder, format -> one .gguf file with weights, tokenizer and chat template

The file says what llama.cpp's own convert_hf_to_gguf.py would say of the same folder, for the architectures of
`ARCHITECTURES`. Whatever else a model has is refused by name: llama.cpp would load it and compute something else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.serving import quantise, vocabulary
from posttrain.weights.adapter import HEAD
from posttrain.weights.targets import Layout
from posttrain.weights.tensors import Place, read_json, read_places

# By model_type: llama.cpp's name, and whether it keeps the two halves of a head's rotary dimensions interleaved.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
NUMBERS = (  # keys of config.json that the file repeats
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER = "model.layers."
ROPE_FREQS = "rope_freqs.weight"  # how Llama 3 stretches its rotary wave lengths
ROPE_TYPES = ("default", "linear", "llama3")
OTHER_FORMAT = "leave GGUF out of export.formats, or give a model of another architecture"


@dataclass(frozen=True)
class Shape:
    """The numbers of config.json that the file repeats."""

    architecture: str  # llama.cpp's name
    is_interleaved: bool
    num_layers: int
    width: int
    feed_forward: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    context: int  # tokens
    epsilon: float  # of the norms
    rope: dict[str, Any]

    @classmethod
    def of(cls, config: dict[str, Any], *, source: str) -> "Shape":
        """Reads config.json.

        Raises:
            ValueError: naming what llama.cpp would not compute as transformers does.
        """
        check_config(config, source=source)
        architecture, is_interleaved = ARCHITECTURES[config["model_type"]]
        width, num_heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            architecture, is_interleaved, config["num_hidden_layers"], width, config["intermediate_size"], num_heads,
            config.get("num_key_value_heads") or num_heads, config.get("head_dim") or width // num_heads,
            config["max_position_embeddings"], config["rms_norm_eps"], rope_of(config),
        )  # fmt: skip


def check(folder: Path, layout: Layout) -> None:
    """Refuses a model that cannot be written as GGUF, from its configuration, the names of its tensors, its tokenizer.

    Raises:
        ValueError: naming the first thing that this writer does not know.
    """
    check_config(layout.config, source=layout.source)
    for name in layout.shapes:
        gguf_name(name, source=layout.source)
    vocabulary.read(folder, num_rows=layout.config["vocab_size"], source=layout.source)


def check_config(config: dict[str, Any], *, source: str) -> None:
    """Refuses an architecture, or a setting of one, that llama.cpp computes otherwise."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{source}: model_type {kind!r} is not one of {', '.join(ARCHITECTURES)}; {OTHER_FORMAT}")
    if missing := [key for key in NUMBERS if key not in config]:
        raise ValueError(f"{source}: config.json has no {missing[0]}; save the model again with save_pretrained")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"{source}: hidden_act {activation!r} is not silu; {OTHER_FORMAT}")
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", kind == "mistral")
    if slides and window and window < config["max_position_embeddings"]:
        raise ValueError(f"{source}: sliding_window {window}, which llama.cpp would ignore; {OTHER_FORMAT}")
    if (rope_type := rope_of(config).get("rope_type")) not in ROPE_TYPES:
        raise ValueError(f"{source}: rope_type {rope_type!r} is not one of {', '.join(ROPE_TYPES)}; {OTHER_FORMAT}")


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the rotary parameters, which older versions of transformers wrote under two keys."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return rope | {"rope_type": kind, "rope_theta": float(theta)}


def gguf_name(name: str, *, source: str) -> str:
    """Returns llama.cpp's name of a tensor: `model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if module in OUTSIDE:
            return f"{OUTSIDE[module]}.{kind}"
        number, _, inside = module.removeprefix(LAYER).partition(".")
        if module.startswith(LAYER) and number.isdigit() and inside in INSIDE:
            return f"blk.{number}.{INSIDE[inside]}.{kind}"
    raise ValueError(f"{source}: tensor {name} has no place in GGUF; {OTHER_FORMAT}")


def write(model: Path, file: Path, *, kind: str) -> None:
    """Writes `file`, which holds the model in one of `quantise.KINDS`."""
    from gguf import GGUFWriter

    config = read_json(model / "config.json")
    shape = Shape.of(config, source=str(model))
    writer = GGUFWriter(file, shape.architecture)
    _add_numbers(writer, shape, kind=kind)
    vocabulary.read(model, num_rows=config["vocab_size"], source=str(model)).add_to(writer)
    tensors = list(_tensors(model, config, shape))
    for one in tensors:
        words = {"kind": kind, "num_layers": shape.num_layers, "is_head": one.is_head}
        one.qtype = quantise.type_of(one.name, one.shape, **words)
        writer.add_tensor_info(*quantise.info(one.name, one.shape, one.qtype))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in tensors:
            writer.write_tensor_data(quantise.quantise(one.values(), one.qtype))
    finally:
        writer.close()


@dataclass
class Source:
    """A tensor of the model, under its name in the file."""

    name: str
    place: Place | None  # None: the stretched rotary wave lengths, which the model has only as a formula
    shape: tuple[int, ...]
    rotary: tuple[int, ...] = ()  # the rows of each of its heads, if the halves of each are to be interleaved
    is_head: bool = False  # gives the logits: the head, or the embedding that is used as one
    made: Any = None  # the values, where there is no place
    qtype: Any = None

    def values(self) -> Any:
        """Reads the tensor, as float32."""
        if self.place is None:
            return self.made
        values = quantise.read_float32(self.place)
        return interleaved(values, *self.rotary) if self.rotary else values


def _tensors(model: Path, config: dict[str, Any], shape: Shape) -> Iterator[Source]:
    """Yields every tensor of the file; a head that repeats the embedding is left out, as llama.cpp does."""
    places = read_places(model)
    is_tied = config.get("tie_word_embeddings") is True or HEAD not in places
    for name, place in places.items():
        if is_tied and name == HEAD:
            continue
        own = gguf_name(name, source=str(model))
        heads = {"attn_q": shape.num_heads, "attn_k": shape.num_kv_heads}.get(own.split(".")[-2])
        rotary = (heads,) if heads and shape.is_interleaved else ()
        is_head = own.startswith("token_embd." if is_tied else "output.")
        yield Source(own, place, place[1].shape, rotary, is_head)
    if shape.rope["rope_type"] == "llama3":
        factors = stretching(shape)
        yield Source(ROPE_FREQS, None, factors.shape, made=factors)


def interleaved(values: Any, num_heads: int) -> Any:
    """Puts the two halves of each head's rotary dimensions by turns, as llama.cpp keeps them for Llama."""
    rows = values.shape[0]
    return values.reshape(num_heads, 2, rows // num_heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def stretching(shape: Shape) -> Any:
    """By how much Llama 3 stretches each rotary wave length: short ones not at all, long ones by `factor`, and those in
    between by degrees (transformers' `_compute_llama3_parameters`).
    """
    import numpy as np

    rope = shape.rope
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, shape.head_width, 2, dtype=np.float64) / shape.head_width)
    lengths = 2 * np.pi / frequencies
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((context / lengths - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _add_numbers(writer: Any, shape: Shape, *, kind: str) -> None:
    """Adds the file's general keys, and those of its architecture."""
    from gguf import GGML_QUANT_VERSION, RopeScalingType

    writer.add_type("model")
    writer.add_file_type(quantise.KINDS[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.rope["rope_theta"])
    if shape.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope["factor"])
