"""Turns float weights into the number formats of GGUF.

tensor of a safetensors file, type -> its values in that type

Q8_0 and the 16-bit types are computed by the package gguf. The K-quants of q4_k_m are computed by llama.cpp itself, in
xllamacpp; which tensor gets which type is llama.cpp's own choice (`llama_tensor_get_type` in llama-quant.cpp).
"""

import ctypes
import re
from typing import Any

from posttrain.weights.tensors import FLOAT_BYTES, Place

# Format of the configuration -> llama.cpp's number of the file type.
KINDS = {"f16": 1, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
UNIFORM = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
K_BLOCK, BLOCK = 256, 32  # values that share their scales; a row is a multiple of them
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are no multiple of K_BLOCK
SENSITIVE = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")


def type_of(name: str, shape: tuple[int, ...], *, kind: str, num_layers: int, is_head: bool) -> Any:
    """Returns the type of a tensor in a file of this format. Norms, biases and their like stay float32."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = UNIFORM.get(kind) or _mixed(name, num_layers=num_layers, is_head=is_head)
    if wanted in FALLBACKS and shape[-1] % K_BLOCK:
        wanted = FALLBACKS[wanted]
    if wanted in ("Q8_0", "Q5_0") and shape[-1] % BLOCK:
        wanted = "F16"
    return GGMLQuantizationType[wanted]


def _mixed(name: str, *, num_layers: int, is_head: bool) -> str:
    """The mixture of q4_k_m: more bits for the head, and for the values and outputs of some layers."""
    if is_head:
        return "Q6_K"
    if not (match := SENSITIVE.fullmatch(name)):
        return "Q4_K"
    layer, eighth = int(match[1]), num_layers // 8
    has_more = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if has_more else "Q4_K"


def info(name: str, shape: tuple[int, ...], qtype: Any) -> tuple[Any, ...]:
    """Returns what `GGUFWriter.add_tensor_info` asks of a tensor."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    widths = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    if qtype in widths:
        dtype = np.dtype(widths[qtype])
        return name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, qtype
    stored = quant_shape_to_byte_shape(shape, qtype)
    return name, stored, np.dtype(np.uint8), int(np.prod(stored)), qtype


def quantise(values: Any, qtype: Any) -> Any:
    """Computes the stored form of float32 values."""
    from gguf.quants import quantize

    if qtype.name in FALLBACKS:
        return _by_llama_cpp(values, qtype)
    return quantize(values, qtype)


def read_float32(place: Place) -> Any:
    """Reads a tensor as float32."""
    import numpy as np

    path, tensor = place
    kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.dtype]
    count = tensor.num_bytes // FLOAT_BYTES[tensor.dtype]
    stored = np.fromfile(path, kind, count, offset=tensor.start).reshape(tensor.shape)
    if tensor.dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _by_llama_cpp(values: Any, qtype: Any) -> Any:
    """Quantises rows by `ggml_quantize_chunk` of the library inside xllamacpp."""
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    chunk = library.ggml_quantize_chunk
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    chunk.restype = ctypes.c_size_t
    values = np.ascontiguousarray(values, np.float32)
    stored = np.empty(quant_shape_to_byte_shape(values.shape, qtype), np.uint8)
    num_rows, width = values.size // values.shape[-1], values.shape[-1]
    num_bytes = chunk(qtype.value, values.ctypes.data, stored.ctypes.data, 0, num_rows, width, None)
    assert num_bytes == stored.nbytes, (num_bytes, stored.nbytes)
    return stored
