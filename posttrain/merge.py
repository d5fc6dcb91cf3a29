"""Merge a LoRA adapter into its base model chunk by chunk, in less than 64 MB of memory for a model of any size.

base folder, adapter folder -> model folder, merge_info.json (base_model, adapter_path, merged_path, size_gb,
merge_time_seconds, num_merged_tensors)

W + scale * B @ A (arXiv:2106.09685) is computed in float32, rounded to the base's dtype, and written to the same place
of the file; the kernel copies tensors without an update. The result equals peft's merge_and_unload(), without torch.
"""

import argparse
import errno
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from posttrain import config, storage
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running
from posttrain.weights.adapter import Addition, LowRank, Plan, Whole, plan_merge, read_adapter
from posttrain.weights.folder import side_files
from posttrain.weights.targets import HEAD, is_embedding
from posttrain.weights.tensors import (
    EXPONENT,
    FLOAT_BYTES,
    INDEX,
    Tensor,
    WeightFile,
    check_unquantised,
    read_json,
    read_weights,
)

# BLAS reads this once, when numpy is imported. Threads of its own would compete with ours for the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np  # noqa: E402

NUM_THREADS = 2
CHUNK_ELEMENTS = 1 << 17  # 0.5 MB as float32: fits a core's own cache, and is worth a system call
COPY_BYTES = 1 << 26

logger = logging.getLogger(__name__)


class Buffers(threading.local):
    """Scratch memory of each thread, which grows to its largest chunk and is reused from chunk to chunk.

    This is no dataclass with slots, because threads share the slots of a `local`.
    """

    def __init__(self):
        self.arrays: dict[str, np.ndarray] = {}

    def get(self, name: str, dtype: type, num_elements: int) -> np.ndarray:
        """Returns an array of `num_elements` with arbitrary content."""
        array = self.arrays.get(name)
        if array is None or array.size < num_elements or array.dtype != dtype:
            array = self.arrays[name] = np.empty(num_elements, dtype)
        return array[:num_elements]


def merge(base: Path | str, adapter: Path | str, model: Path | str) -> dict:
    """Writes the merged model to the folder `model`, which does not appear before it is whole.

    Returns what merge_info.json says.

    Raises:
        ValueError: something in the base or the adapter is damaged, does not fit, or cannot be merged.
    """
    base, adapter, model = Path(base), Path(adapter), Path(model)
    start = time.monotonic()
    _check_target(model)
    files = read_weights(base)
    check_unquantised(base, files)
    source = read_adapter(adapter)
    plan = plan_merge(base, files, adapter, source)
    partial = model.with_name(model.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_weights(files, source, plan, partial)
        _write_side_files(base, files, plan, partial)
        partial.replace(model)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    return {
        "base_model": str(base),
        "adapter_path": str(adapter),
        "merged_path": str(model),
        "size_gb": round(size / 1e9, 6),
        "merge_time_seconds": round(time.monotonic() - start, 3),
        "num_merged_tensors": len(plan.updates) + bool(plan.addition and plan.addition.update),
    }


def _check_target(model: Path) -> None:
    if model.exists() and (not model.is_dir() or any(model.iterdir())):
        raise ValueError(f"{model}: exists and is not an empty folder; give a new one for the merged model")


def _write_weights(files: list[WeightFile], source: WeightFile, plan: Plan, folder: Path) -> None:
    """Writes every shard, with `NUM_THREADS` tensors at a time."""
    buffers = Buffers()
    with open(source.path, "rb") as adapter_file, ThreadPoolExecutor(NUM_THREADS) as pool:
        for file in files:
            addition = plan.addition if plan.addition and plan.addition.like.name in file.tensors else None
            with open(file.path, "rb") as old, open(folder / file.path.name, "wb+") as new:
                shard = Shard(file, old, new, adapter_file, buffers)
                jobs = _jobs(shard, plan, _write_header(shard, addition), addition)
                for _ in pool.map(lambda job: job(), jobs):
                    pass
            num_changed = len(plan.updates.keys() & file.tensors)
            logger.info("wrote %s, %d of %d tensors changed", file.path.name, num_changed, len(file.tensors))


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of the base and the open files to merge it: the base's, the new one, the adapter's."""

    file: WeightFile
    old: BinaryIO
    new: BinaryIO
    adapter: BinaryIO
    buffers: Buffers


def _write_header(shard: Shard, addition: Addition | None) -> int:
    """Writes the header, the base's byte for byte unless there is an addition; returns the position of the data."""
    file = shard.file
    num_bytes = file.data_start + file.num_bytes
    if addition is None:
        _resize(shard.new, num_bytes)
        _copy(shard.old, shard.new, 0, 0, file.data_start)
        return file.data_start
    end = num_bytes + addition.like.num_bytes
    added = replace(addition.like, name=addition.name, start=num_bytes, end=end)
    header = {"__metadata__": file.metadata} if file.metadata else {}
    for entry in (*file.tensors.values(), added):
        offsets = [entry.start - file.data_start, entry.end - file.data_start]
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _resize(shard.new, 8 + len(text) + end - file.data_start)
    _write(shard.new, memoryview(len(text).to_bytes(8, "little") + text), 0)
    return 8 + len(text)


def _jobs(shard: Shard, plan: Plan, data_start: int, addition: Addition | None) -> list[Callable[[], None]]:
    """Makes one job per tensor, in the order of the file."""
    shift = data_start - shard.file.data_start
    tensors = shard.file.tensors.items()
    jobs = [partial(_put, shard, tensor, tensor.start + shift, plan.updates.get(name)) for name, tensor in tensors]
    if addition:
        jobs.append(partial(_put, shard, addition.like, data_start + shard.file.num_bytes, addition.update))
    return jobs


def _put(shard: Shard, tensor: Tensor, position: int, update: LowRank | Whole | None) -> None:
    """Writes `tensor`, with its update, at byte `position` of the new shard."""
    if isinstance(update, LowRank):
        _add(shard, tensor, position, update)
    elif isinstance(update, Whole):
        _convert(shard, tensor, position, update.tensor)
    else:
        _copy(shard.old, shard.new, tensor.start, position, tensor.num_bytes)
    if hasattr(os, "posix_fadvise"):
        # On Linux this starts writing the pages to disk, which then goes on while the next tensors are computed.
        os.posix_fadvise(shard.new.fileno(), position, tensor.num_bytes, os.POSIX_FADV_DONTNEED)


def _add(shard: Shard, tensor: Tensor, position: int, update: LowRank) -> None:
    """Writes W + scale * left @ right, some rows at a time."""
    left, right = _matrix(shard.adapter, update.left), _matrix(shard.adapter, update.right)
    if update.transposed:
        left, right = np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    left *= np.float32(update.scale)
    num_rows, num_columns = tensor.shape
    step = max(1, CHUNK_ELEMENTS // num_columns)
    width = FLOAT_BYTES[tensor.dtype]
    for row in range(0, num_rows, step):
        count = min(step, num_rows - row) * num_columns
        offset = row * num_columns * width
        raw = shard.buffers.get("raw", _stored(tensor), count)
        values = shard.buffers.get("values", np.float32, count)
        scratch = shard.buffers.get("scratch", np.float32, count)
        _read(shard.old, raw, tensor.start + offset)
        _widen(raw, tensor.dtype, values)
        np.matmul(left[row : row + step], right, out=scratch.reshape(-1, num_columns))
        np.add(values, scratch, out=values)
        _narrow(values, scratch, raw, tensor)
        _write(shard.new, memoryview(raw).cast("B"), position + offset)


def _convert(shard: Shard, tensor: Tensor, position: int, source: Tensor) -> None:
    """Writes a tensor of the adapter in the base's dtype."""
    total = source.num_bytes // FLOAT_BYTES[source.dtype]
    for start in range(0, total, CHUNK_ELEMENTS):
        count = min(CHUNK_ELEMENTS, total - start)
        adapter_raw = shard.buffers.get("adapter_raw", _stored(source), count)
        values = shard.buffers.get("values", np.float32, count)
        scratch = shard.buffers.get("scratch", np.float32, count)
        raw = shard.buffers.get("raw", _stored(tensor), count)
        _read(shard.adapter, adapter_raw, source.start + start * FLOAT_BYTES[source.dtype])
        _widen(adapter_raw, source.dtype, values)
        _narrow(values, scratch, raw, tensor)
        _write(shard.new, memoryview(raw).cast("B"), position + start * FLOAT_BYTES[tensor.dtype])


def _matrix(file: BinaryIO, tensor: Tensor) -> np.ndarray:
    """Reads a whole tensor, which must be small, as float32."""
    raw = np.empty(tensor.num_bytes // FLOAT_BYTES[tensor.dtype], _stored(tensor))
    _read(file, raw, tensor.start)
    values = np.empty(raw.size, np.float32)
    _widen(raw, tensor.dtype, values)
    return values.reshape(tensor.shape)


def _stored(tensor: Tensor) -> type:
    """Returns numpy's dtype of a stored tensor; numpy has no bfloat16, so its bits are uint16."""
    return {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.dtype]


def _widen(raw: np.ndarray, dtype: str, values: np.ndarray) -> None:
    if dtype == "BF16":
        np.left_shift(raw, 16, out=values.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(values, raw)


def _narrow(values: np.ndarray, scratch: np.ndarray, raw: np.ndarray, tensor: Tensor) -> None:
    """Rounds float32 to the base's dtype, to nearest even, and refuses NaN and infinity. Overwrites its inputs."""
    if tensor.dtype == "BF16":
        bits, half = values.view(np.uint32), scratch.view(np.uint32)
        np.right_shift(bits, 16, out=half)
        np.bitwise_and(half, 1, out=half)
        np.add(half, 0x7FFF, out=half)
        np.add(bits, half, out=bits)
        np.right_shift(bits, 16, out=bits)
        np.copyto(raw, bits, casting="unsafe")
    else:
        with np.errstate(over="ignore"):
            np.copyto(raw, values, casting="same_kind")
    exponents = raw.view(np.uint32 if tensor.dtype == "F32" else np.uint16)
    mask = exponents.dtype.type(EXPONENT[tensor.dtype])
    if np.bitwise_and(exponents, mask, out=scratch.view(exponents.dtype)[: raw.size]).max() == mask:
        raise ValueError(f"{tensor.name}: not finite in {tensor.dtype} once merged; train again, or on a bfloat16 base")


def _resize(file: BinaryIO, num_bytes: int) -> None:
    with storage.naming(file.name):
        os.truncate(file.fileno(), num_bytes)


def _read(file: BinaryIO, array: np.ndarray, position: int) -> None:
    view = memoryview(array).cast("B")
    while view:
        with storage.naming(file.name):
            count = os.preadv(file.fileno(), [view], position)
        if count == 0:
            reason = f"file ends at byte {position}: it was truncated during the merge"
            raise OSError(errno.EIO, reason, file.name)
        view, position = view[count:], position + count


def _write(file: BinaryIO, view: memoryview, position: int) -> None:
    while view:
        with storage.naming(file.name):
            count = os.pwrite(file.fileno(), view, position)
        view, position = view[count:], position + count


def _copy(old: BinaryIO, new: BinaryIO, start: int, position: int, num_bytes: int) -> None:
    """Copies bytes inside the kernel, or through memory if the file system cannot."""
    end = start + num_bytes
    while start < end:
        try:
            wanted = min(end - start, COPY_BYTES)
            count = os.copy_file_range(old.fileno(), new.fileno(), wanted, start, position)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise OSError(error.errno, error.strerror, new.name) from None
            count = 0
        if count == 0:
            block = np.empty(min(end - start, 1 << 20), np.uint8)
            _read(old, block, start)
            _write(new, memoryview(block), position)
            count = block.size
        start, position = start + count, position + count


def _write_side_files(base: Path, files: list[WeightFile], plan: Plan, folder: Path) -> None:
    """Writes configuration, tokenizer, chat template and index, and unties head and embedding if they now differ."""
    storage.check_links(base)
    for name in side_files(base):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(base / name, folder / name)
    if (base / INDEX).is_file():
        _write_index(base, files, plan.addition, folder)
    if plan.addition or any(name == HEAD or is_embedding(name) for name in plan.updates):
        _write_json(folder / "config.json", _untied(read_json(base / "config.json")))


def _write_index(base: Path, files: list[WeightFile], addition: Addition | None, folder: Path) -> None:
    index = read_json(base / INDEX)
    if addition:
        shard = next(file.path.name for file in files if addition.like.name in file.tensors)
        index["weight_map"][addition.name] = shard
        sizes = index.setdefault("metadata", {})
        sizes["total_size"] = sum(file.num_bytes for file in files) + addition.like.num_bytes
        if "total_parameters" in sizes:
            sizes["total_parameters"] += math.prod(addition.like.shape)
    _write_json(folder / INDEX, index)


def _untied(settings: dict) -> dict:
    sections = {name: settings[name] | {"tie_word_embeddings": False} for name in ("text_config",) if name in settings}
    return settings | sections | {"tie_word_embeddings": False}


def _write_json(path: Path, content: dict) -> None:
    storage.write_text(path, json.dumps(content, indent=2) + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the LoRA adapter")
    parser.add_argument("--model", required=True, help="folder for the merged model")
    parser.add_argument("--info", required=True, help="file for merge_info.json")
    parser.add_argument("--metrics", required=True, help="file for the numbers among them")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    def work(_: Running) -> dict:
        info = merge(args.base, args.adapter, args.model)
        numbers = {name: value for name, value in info.items() if not isinstance(value, str)}
        _write_json(Path(args.info), info)
        _write_json(Path(args.metrics), numbers)
        return numbers

    settings = config.parse_step(config.StepSection, args.config)
    inputs = {"base": args.base, "adapter": args.adapter}
    outputs = {"model": args.model, "info": args.info, "metrics": args.metrics}
    frame.run_step(args, inputs=inputs, outputs=outputs, config=settings, work=work)


if __name__ == "__main__":
    main()
