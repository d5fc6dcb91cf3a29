"""Writes a model in FP8, as vLLM loads it: weights of linear layers in 8 bits with a scale for each row.

model folder -> model folder in the format `float-quantized` of compressed-tensors, which servers read; no torch

A row's largest value becomes 448, the largest of E4M3. Activations are scaled while serving, token by token; no data is
needed to calibrate. Embedding, norms and head stay as they are: FP8_DYNAMIC of llm-compressor.
"""

import json
import shutil
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.serving.quantise import read_float32
from posttrain.weights.folder import side_files
from posttrain.weights.targets import WEIGHT, Layout
from posttrain.weights.tensors import SINGLE, Place, pieces, read_json, read_places

LARGEST = 448.0  # of E4M3
SCALE = "weight_scale"
OTHER_FORMAT = "leave fp8 out of export.formats"
PER_ROW = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
PER_TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}


def check(layout: Layout) -> None:
    """Refuses a model whose linear layers are not known, or are quantised already.

    Raises:
        ValueError: naming why.
    """
    if layout.has_experts:
        raise ValueError(f"{layout.source}: has experts, which are not linear layers of their own; {OTHER_FORMAT}")
    if not layout.linear:
        raise ValueError(f"{layout.source}: has no linear layer inside its numbered layers; {OTHER_FORMAT}")


def write(model: Path, folder: Path) -> None:
    """Writes the folder `folder`."""
    layout = Layout.of(model)
    check(layout)
    folder.mkdir(parents=True)
    for name in side_files(model):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, folder / name)
    _write_config(model, folder)
    _write_weights(read_places(model), set(layout.linear), folder / SINGLE)


def _write_config(model: Path, folder: Path) -> None:
    group = {"targets": ["Linear"], "weights": PER_ROW, "input_activations": PER_TOKEN, "output_activations": None}
    quantised = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    config = read_json(model / "config.json") | {"quantization_config": quantised}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_weights(places: dict[str, Place], linear: set[str], file: Path) -> None:
    """Writes one safetensors file, tensor by tensor: header first, whose sizes are known before the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, num_bytes in _entries(places, linear):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, place in places.items():
            if name.removesuffix(WEIGHT) in linear:
                for array in quantised(read_float32(place)):
                    out.write(array.tobytes())
            else:
                out.writelines(pieces(place))


def _entries(places: dict[str, Place], linear: set[str]) -> Iterator[tuple[str, str, list[int], int]]:
    """Yields name, dtype, shape and size of each tensor of the file, in its order."""
    for name, (_, tensor) in places.items():
        module = name.removesuffix(WEIGHT)
        if module not in linear:
            yield name, tensor.dtype, list(tensor.shape), tensor.num_bytes
            continue
        num_rows, width = tensor.shape
        yield name, "F8_E4M3", [num_rows, width], num_rows * width
        yield f"{module}.{SCALE}", "F32", [num_rows, 1], num_rows * 4


def quantised(values: Any) -> tuple[Any, Any]:
    """Returns a matrix in E4M3, as bytes, and the scale of each of its rows."""
    import numpy as np

    scales = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12).astype(np.float32) / np.float32(LARGEST)
    return rounded(values / scales), scales


def rounded(values: Any) -> Any:
    """Rounds to the nearest value of E4M3, on a tie to the even one; larger ones become the largest."""
    import numpy as np

    middles = (levels()[1:] + levels()[:-1]) / 2
    magnitudes = np.abs(values)
    codes = np.searchsorted(middles, magnitudes, side="left").astype(np.uint8)
    is_tie = middles[np.minimum(codes, middles.size - 1)] == magnitudes
    codes += (is_tie & (codes % 2 == 1)).astype(np.uint8)
    return codes | (np.signbit(values).astype(np.uint8) << 7)


@cache
def levels() -> Any:
    """The values of E4M3 from 0 up, by code: 4 bits of exponent with bias 7, 3 of mantissa; 127 is NaN and left out."""
    import numpy as np

    codes = np.arange(127)
    exponents, mantissas = codes >> 3, codes & 7
    normal = (8 + mantissas) * 2.0 ** (exponents - 10)
    return np.where(exponents == 0, mantissas * 2.0**-9, normal).astype(np.float32)
