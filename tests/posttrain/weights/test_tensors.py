import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain.model import read_config
from posttrain.weights import tensors
from posttrain.weights.tensors import Tensor, check_unquantised, first_non_finite, read_weight_file, read_weights


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float16)},
        file,
        metadata={"format": "pt"},
    )
    return file


def write(path: Path, header: dict | bytes, num_bytes: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))
    return path


def entry(begin: int, end: int, *, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_header_gives_names_shapes_and_places(path):
    file = read_weight_file(path)
    assert file.tensors["a"] == Tensor("a", "F32", (2, 3), file.data_start, file.data_start + 24)
    assert file.tensors["b"].shape == (4,)
    assert file.metadata == {"format": "pt"}
    assert file.num_bytes == 32


def test_truncated_file_is_refused(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ValueError, match="tensors end at byte .* truncated"):
        read_weight_file(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 1 << 40) + b"{}", b"version https://git-lfs"])
def test_what_is_not_safetensors_is_refused(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.safetensors: header of \d+ bytes"):
        read_weight_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1, 2]  ", "not a JSON object"),
        (b'{"a": }', "not valid JSON"),
        (b'{"a": {}, "a": {}}', "occurs twice"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "b overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, "b leaves a hole"),
        ({"a": entry(4, 12)}, "a leaves a hole"),
        ({"a": entry(0, 4)}, "cannot lie at bytes"),
        ({"a": entry(8, 0)}, "cannot lie at bytes"),
        ({"a": entry(0, 8, shape=(-2,))}, "cannot lie at bytes"),
        ({"a": entry(0, 800, shape=(200,))}, "tensors end at byte"),
        ({"a": entry(0, 8, dtype="Q4")}, "not understood"),
        ({"a": 3}, "not understood"),
    ],
)
def test_damaged_header_is_refused(header, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_weight_file(write(tmp_path / "x.safetensors", header, 20))


@pytest.fixture
def sharded(path: Path) -> Path:
    folder = path.parent
    path.rename(folder / "model-1.safetensors")
    save_file({"c": np.zeros(2, np.float32)}, folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def change_index(folder: Path, **changes: str) -> None:
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": json.loads(file.read_text())["weight_map"] | changes}))


def test_shards_are_those_of_the_index(sharded):
    (sharded / "consolidated.safetensors").write_bytes(b"not part of the model")
    assert [file.path.name for file in read_weights(sharded)] == ["model-1.safetensors", "model-2.safetensors"]


def test_missing_shard_is_refused(sharded):
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match="shard model-2.safetensors is not there"):
        read_weights(sharded)


@pytest.mark.parametrize("changes", [{"c": "model-1.safetensors"}, {"d": "model-2.safetensors"}])
def test_index_that_disagrees_is_refused(changes, sharded):
    change_index(sharded, **changes)
    with pytest.raises(ValueError, match="index says"):
        read_weights(sharded)


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/x.safetensors", "model-1.bin"])
def test_index_cannot_lead_elsewhere(shard, sharded):
    change_index(sharded, c=shard)
    with pytest.raises(ValueError, match="is not the name of a safetensors file"):
        read_weights(sharded)


def test_quantised_models_are_refused(path):
    folder = path.parent
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    with pytest.raises(ValueError, match=r"quantization_config \(bitsandbytes\); give the 16-bit model"):
        check_unquantised(folder, [])
    (folder / "config.json").write_text("{}")
    check_unquantised(folder, read_weights(folder))
    save_file({"a": np.zeros(4, np.uint8)}, path)
    with pytest.raises(ValueError, match="a is U8"):
        check_unquantised(folder, read_weights(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_first_non_finite_value_is_found(value, dtype, path):
    array = np.full(3_000_000, 1, dtype)
    save_file({"a": array}, path)
    tensor = read_weight_file(path).tensors["a"]
    with open(path, "rb") as file:
        assert first_non_finite(file, tensor) is None
    array[2_500_000] = value
    save_file({"a": array}, path)
    with open(path, "rb") as file:
        assert first_non_finite(file, tensor) == 2_500_000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_a_header_or_a_configuration_in_another_encoding_is_refused(encoding, tmp_path):
    header = "{}".encode(encoding)
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="header is not valid JSON"):
        tensors.read_weight_file(tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_bytes(header)
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        tensors.read_json(tmp_path / "config.json")


def test_a_key_that_stands_twice_in_a_configuration_is_refused_wherever_it_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"rope": {"theta": 1, "theta": 2}}')
    for read, given in ((tensors.read_json, tmp_path / "config.json"), (read_config, str(tmp_path))):
        with pytest.raises(ValueError, match=r"config\.json: 'rope\.theta' appears twice"):
            read(given)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"base_model: .*config\.json: holds a list"):
        read_config(str(tmp_path))


def test_json_that_is_nested_too_deep_is_an_error_on_one_line(tmp_path):
    deep = b'{"a":' * 100_000
    (tmp_path / "config.json").write_bytes(deep)
    (tmp_path / "a.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    for read in (tensors.read_json, tensors.read_weight_file):
        for file in tmp_path.iterdir():
            with pytest.raises(ValueError, match="not valid JSON|header|200 levels"):
                read(file)


@pytest.mark.timeout(20)
def test_a_shape_of_thousands_of_long_numbers_is_refused_at_once(tmp_path):
    entry = {"dtype": "F32", "shape": [int("9" * 4000)] * 5000, "data_offsets": [0, 4]}
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    with pytest.raises(ValueError, match="header entry of w is not understood"):
        tensors.read_weight_file(tmp_path / "a.safetensors")
