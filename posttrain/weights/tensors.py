"""Reads what a folder of safetensors weights contains, and validates it before anything relies on it.

folder or file -> names, dtypes, shapes and byte ranges of its tensors

The format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from posttrain.config.documents import Refused, parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bytes per element. Only the first three can be merged into; the others mark a quantised or foreign file.
FLOAT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
DTYPE_BYTES = FLOAT_BYTES | {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
# The limit of safetensors itself: a longer header is an attack or garbage.
MAX_HEADER_BYTES = 100_000_000
FIRST_BYTES = 100_000  # hold the header of most files
MAX_DIMENSIONS = 64  # as many as PyTorch allows
EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor in a file: `start` and `end` are absolute byte positions."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


Place = tuple[Path, Tensor]  # a tensor's file, and its position there


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file: its header, and the byte position at which the data starts."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None
    data_start: int

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_weight_file(path: Path) -> WeightFile:
    """Reads and checks the header: length, JSON, dtypes, bounds, no holes and no overlaps."""
    with open(path, "rb") as file:
        header, data_start = _read_header(file, path)
    metadata = header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_layout(path, tensors, data_start)
    return WeightFile(path, {tensor.name: tensor for tensor in tensors}, metadata, data_start)


def read_shapes(read_start: Callable[[int], bytes], *, source: str) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of a file's tensors from its first bytes alone, by tensor name.

    Args:
        read_start: returns as many of the file's first bytes as it is asked for.
    """
    start = read_start(FIRST_BYTES)
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError(f"{source}: header of {length} bytes: not safetensors, or damaged; copy it again")
    start = start if len(start) >= 8 + length else read_start(8 + length)
    try:
        header = json.loads(start[8 : 8 + length])
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source}: its header is not that of safetensors ({error!r}); copy it again") from None


def weight_file_names(folder: Path) -> list[str]:
    """Lists the files of the model's weights: the shards of the index, or the single file without one."""
    index = folder / INDEX
    if index.is_file():
        return sorted(set(read_weight_map(index).values()))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    raise ValueError(f"{folder}: no {SINGLE} and no {INDEX}; save the model with save_pretrained (safetensors)")


def read_weights(folder: Path) -> list[WeightFile]:
    """Reads the headers of all shards of a model, and refuses an index that disagrees with them."""
    names = weight_file_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder / INDEX}: shard {missing[0]} is not there ({len(missing)} missing); copy the folder whole"
        )
    files = [read_weight_file(folder / name) for name in names]
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX, files)
    return files


def read_places(folder: Path) -> dict[str, Place]:
    """Returns the place of each tensor of a folder, by name."""
    return {name: (file.path, tensor) for file in read_weights(folder) for name, tensor in file.tensors.items()}


def check_unquantised(folder: Path, files: list[WeightFile]) -> None:
    """Refuses quantised weights: a merge into them changes the model (https://github.com/huggingface/peft/issues/2321)."""
    remedy = "give the 16-bit model that it was made from"
    config = read_json(folder / "config.json")
    for section in (config, config.get("text_config") or {}):
        if section.get("quantization_config"):
            method = section["quantization_config"].get("quant_method", "unknown")
            raise ValueError(f"{folder / 'config.json'}: quantization_config ({method}); {remedy}")
    for file in files:
        for tensor in file.tensors.values():
            if tensor.dtype not in FLOAT_BYTES:
                raise ValueError(
                    f"{file.path}: {tensor.name} is {tensor.dtype}, not one of {', '.join(FLOAT_BYTES)}; {remedy}"
                )


def read_weight_map(index: Path) -> dict[str, str]:
    """Reads tensor name -> shard name from an index file. Shard names must be plain file names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no weight_map; save the model again with save_pretrained")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{index}: {name} -> {shard!r} is not the name of a safetensors file in this folder")
    return weight_map


def read_json(path: Path) -> dict:
    """Reads a JSON object; raises ValueError if the file is missing or holds anything else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; the folder is incomplete") from None
    return json_object(content, source=str(path))


def json_object(content: bytes, *, source: str) -> dict:
    """Parses a JSON object, strictly: a key that appears twice, or a number that JSON does not have, is refused.

    Raises:
        ValueError: naming `source`.
    """
    try:
        value = parse_json(content.decode("utf-8-sig"))
    except Refused as error:
        raise ValueError(f"{source}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{source}: holds a {type(value).__name__}, expected a JSON object")
    return value


def chunks(num_bytes: int, chunk_bytes: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of pieces of a byte range. No piece ends inside an element of any dtype."""
    for offset in range(0, num_bytes, chunk_bytes):
        yield offset, min(chunk_bytes, num_bytes - offset)


def pieces(place: Place) -> Iterator[bytes]:
    """Reads the bytes of a tensor, a chunk at a time."""
    path, tensor = place
    with open(path, "rb") as file:
        file.seek(tensor.start)
        for _, length in chunks(tensor.num_bytes):
            yield file.read(length)


def is_zero(place: Place) -> bool:
    """Tells whether every element is 0 or -0."""
    import numpy as np

    width = FLOAT_BYTES[place[1].dtype]
    kind = {2: np.uint16, 4: np.uint32}[width]
    magnitude = kind((1 << (8 * width - 1)) - 1)  # all bits but the sign's
    return not any((np.frombuffer(piece, kind) & magnitude).any() for piece in pieces(place))


def first_non_finite(file: BinaryIO, tensor: Tensor) -> int | None:
    """Returns the flat index of the first NaN or infinity of a float tensor, which has all exponent bits set."""
    import numpy as np

    width = FLOAT_BYTES[tensor.dtype]
    kind = {2: np.uint16, 4: np.uint32}[width]
    mask = kind(EXPONENT[tensor.dtype])
    for offset, length in chunks(tensor.num_bytes):
        file.seek(tensor.start + offset)
        bad = (np.frombuffer(file.read(length), kind) & mask) == mask
        if bad.any():
            return offset // width + int(bad.argmax())
    return None


def _read_header(file: BinaryIO, path: Path) -> tuple[dict, int]:
    num_bytes = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(num_bytes - 8, MAX_HEADER_BYTES):
        raise ValueError(
            f"{path}: header of {length} bytes in a file of {num_bytes}; truncated or not safetensors, copy it again"
        )
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: header is not valid JSON ({error}); copy the file again") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: header is not a JSON object; copy the file again")
    return header, 8 + length


def _unique(pairs: list[tuple[str, object]]) -> dict:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _tensor(path: Path, name: str, entry: object, data_start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        _check_shape(shape)
        sane = all(type(number) is int and number >= 0 for number in (*shape, begin, end)) and begin <= end
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: header entry of {name} is not understood: {str(entry)[:200]}") from None
    if not sane or end - begin != expected:
        raise ValueError(
            f"{path}: {name} ({dtype} {list(shape)}) cannot lie at bytes [{begin}, {end}]; copy the file again"
        )
    return Tensor(name, dtype, shape, data_start + begin, data_start + end)


def _check_shape(shape: tuple) -> None:
    """Refuses shapes of no tensor before they are multiplied: thousands of long numbers take minutes."""
    if len(shape) > MAX_DIMENSIONS or any(type(number) is not int or number >= 1 << 63 for number in shape):
        raise ValueError("shape")


def _check_layout(path: Path, tensors: list[Tensor], data_start: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise ValueError(f"{path}: {tensor.name} {fault} at byte {tensor.start}; copy the file again")
        position = tensor.end
    num_bytes = path.stat().st_size
    if position != num_bytes:
        raise ValueError(f"{path}: tensors end at byte {position}, the file at {num_bytes}; truncated, copy it again")


def _check_index(index: Path, files: list[WeightFile]) -> None:
    listed = read_weight_map(index)
    actual = {name: file.path.name for file in files for name in file.tensors}
    if sum(len(file.tensors) for file in files) != len(actual):
        raise ValueError(f"{index}: a tensor is in two shards; save the model again with save_pretrained")
    wrong = sorted(name for name in listed.keys() | actual.keys() if listed.get(name) != actual.get(name))
    if wrong:
        where = f"{wrong[0]}: index says {listed.get(wrong[0])}, shards say {actual.get(wrong[0])}"
        raise ValueError(f"{index}: {where} ({len(wrong)} differ); save the model again with save_pretrained")
