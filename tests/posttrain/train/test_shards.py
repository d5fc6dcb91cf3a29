from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from posttrain.train.shards import keeping_shards, read_shards, write_shard

ROWS = 5  # of a parameter: more than four ranks can share evenly


@contextmanager
def rank_of(number: int, size: int, monkeypatch) -> Iterator[torch.nn.Module]:
    """A model with one parameter of which this rank has its rows, as FSDP shards it; nothing is sent to the others."""
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(size))
    torch.distributed.init_process_group("fake", rank=number, world_size=size, store=FakeStore())
    try:
        yield model_with(torch.zeros(ROWS, 3), number, size)
    finally:
        torch.distributed.destroy_process_group()


def model_with(whole: torch.Tensor, number: int, size: int) -> torch.nn.Module:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(sharded(whole, number, size))
    model.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    return model


def sharded(whole: torch.Tensor, number: int, size: int) -> DTensor:
    chunks = whole.chunk(size)
    own = chunks[number] if number < len(chunks) else whole[:0]
    mesh = init_device_mesh("cpu", (size,))
    return DTensor.from_local(own.clone(), mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())


def save(folder: Path, weight: torch.Tensor, average: torch.Tensor, size: int, monkeypatch) -> None:
    for number in range(size):
        with rank_of(number, size, monkeypatch):
            model = model_with(weight, number, size)
            optimizer = torch.optim.AdamW([model.weight], lr=0.5)
            optimizer.state[model.weight] = {
                "step": torch.tensor(7.0),
                "exp_avg": sharded(average, number, size),
                "exp_avg_sq": sharded(average * 2, number, size),
            }
            optimizer.param_groups[0] |= {"lr": 0.125, "initial_lr": 0.5}
            write_shard(model, optimizer, folder)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_any_number_of_ranks_reads_its_rows_from_the_shards_of_four(size, tmp_path, monkeypatch):
    weight, average = torch.randn(ROWS, 3), torch.randn(ROWS, 3)
    save(tmp_path, weight, average, 4, monkeypatch)
    parts = []
    for number in range(size):
        with rank_of(number, size, monkeypatch) as model:
            optimizer = torch.optim.AdamW([model.weight], lr=0.5)
            read_shards(model, optimizer, tmp_path)
            state = optimizer.state[model.weight]
            assert sorted(state) == ["exp_avg", "exp_avg_sq", "step"] and state["step"] == 7
            assert [optimizer.param_groups[0][key] for key in ("lr", "initial_lr")] == [0.125, 0.5]
            parts.append([value.to_local().detach() for value in (model.weight, state["exp_avg"], state["exp_avg_sq"])])
    for wholes, expected in zip(zip(*parts, strict=True), (weight, average, average * 2), strict=True):
        assert torch.equal(torch.cat(wholes), expected)


def test_shards_that_lack_rows_are_refused(tmp_path, monkeypatch):
    save(tmp_path, torch.randn(ROWS, 3), torch.randn(ROWS, 3), 4, monkeypatch)
    (tmp_path / "shard-00001.safetensors").unlink()
    with rank_of(0, 1, monkeypatch) as model:
        optimizer = torch.optim.AdamW([model.weight])
        with pytest.raises(ValueError, match="the shards lack rows 0 to 5 of weight/parameter: remove this checkpoint"):
            read_shards(model, optimizer, tmp_path)


def test_a_trainer_without_the_methods_that_it_extends_is_refused():
    with pytest.raises(ValueError, match="has no method _save_optimizer_and_scheduler, which posttrain relies on"):
        keeping_shards(type("Trainer", (), {}))
