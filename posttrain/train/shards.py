"""Checkpoints of a model that FSDP shards over the ranks: each rank writes its own rows; nothing is gathered.

trained parameters, state of the optimizer -> shard-<rank>.safetensors in each rank, and back

torch.distributed.checkpoint and the trainer's own files would be pickles. A shard is a safetensors file, whose metadata
says which rows of each tensor it has. So another number of ranks can read its own rows from them as well.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.train import ranks
from posttrain.train.overrides import overrides

SHARD, SCHEDULER = "shard-{rank:05}.safetensors", "scheduler.pt"
RATES = ("lr", "initial_lr")  # of a group of parameters, the only values there that change or are added
PARAMETER = "parameter"  # beside the optimizer's own names, such as exp_avg


def keeping_shards(trainer_class: type) -> type:
    """Extends a trainer of a sharded model so that its checkpoints are those of this module."""

    class KeepsShards(trainer_class):
        @overrides(trainer_class)
        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            import torch

            write_shard(self.model, self.optimizer, Path(output_dir))
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER))

        @overrides(trainer_class)
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            pass  # the weights come with the state of the optimizer

        @overrides(trainer_class)
        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            import torch

            if checkpoint is None:
                return
            read_shards(self.model, self.optimizer, Path(checkpoint))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER), weights_only=True))

    return KeepsShards


def write_shard(model: Any, optimizer: Any, folder: Path) -> None:
    """Writes this rank's rows of all trained parameters and of the optimizer's state."""
    from safetensors.torch import save_file

    tensors, rows = {}, {}
    for name, parameter in _trained(model):
        rows[name] = _own_rows(parameter)
        for key, value in {PARAMETER: parameter, **optimizer.state[parameter]}.items():
            tensors[f"{name}/{key}"] = _local(value).detach().cpu().clone()
    rates = [{key: group[key] for key in RATES if key in group} for group in optimizer.param_groups]
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"rows": json.dumps(rows), "rates": json.dumps(rates)}
    save_file(tensors, folder / SHARD.format(rank=ranks.rank()), metadata=metadata)


def read_shards(model: Any, optimizer: Any, folder: Path) -> None:
    """Reads this rank's rows from the shards of a checkpoint, which may be of another number of ranks.

    Raises:
        ValueError: the shards lack rows of a parameter.
    """
    import torch

    shards = [Shard(path) for path in sorted(folder.glob("shard-*.safetensors"))]
    with torch.no_grad():
        for name, parameter in _trained(model):
            start, stop = _own_rows(parameter)
            _local(parameter).copy_(_read(shards, f"{name}/{PARAMETER}", start, stop, folder))
            optimizer.state[parameter] = state = {}
            for key in shards[0].keys_of(name):
                value = torch.zeros_like(parameter)
                if shards[0].is_single(f"{name}/{key}"):
                    value = shards[0].whole(f"{name}/{key}").to(_local(parameter).device)
                else:
                    _local(value).copy_(_read(shards, f"{name}/{key}", start, stop, folder))
                state[key] = value
    for group, rates in zip(optimizer.param_groups, shards[0].rates, strict=True):
        group.update(rates)


class Shard:
    """The file of one rank, of which only what is needed is read."""

    def __init__(self, path: Path):
        from safetensors import safe_open

        self.file = safe_open(path, framework="pt")
        self.names, metadata = list(self.file.keys()), self.file.metadata()
        self.rows, self.rates = json.loads(metadata["rows"]), json.loads(metadata["rates"])

    def keys_of(self, name: str) -> list[str]:
        """Lists what the optimizer keeps of a parameter."""
        keys = [key.rpartition("/")[2] for key in self.names if key.rpartition("/")[0] == name]
        return [key for key in keys if key != PARAMETER]

    def is_single(self, key: str) -> bool:
        """Tells whether this is one number, which all ranks have: how many steps the optimizer has taken."""
        return not self.file.get_slice(key).get_shape()

    def whole(self, key: str) -> Any:
        return self.file.get_tensor(key)

    def part(self, key: str, start: int, stop: int) -> Any | None:
        """Returns the rows of the whole tensor from `start` to `stop` that this shard has, if it has any."""
        first, last = self.rows[key.rpartition("/")[0]]
        start, stop = max(start, first), min(stop, last)
        return self.file.get_slice(key)[start - first : stop - first] if start < stop else None


def _read(shards: list[Shard], key: str, start: int, stop: int, folder: Path) -> Any:
    """Returns rows of a tensor, put together from the shards that have them."""
    import torch

    if start == stop:  # a tensor with fewer rows than there are ranks
        return shards[0].file.get_slice(key)[0:0]
    parts = [part for shard in shards if (part := shard.part(key, start, stop)) is not None]
    if sum(len(part) for part in parts) != stop - start:
        raise ValueError(f"{folder}: the shards lack rows {start} to {stop} of {key}: remove this checkpoint")
    return torch.cat(parts)


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _local(tensor: Any) -> Any:
    """Returns this rank's rows of a sharded tensor, or a tensor that is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _own_rows(parameter: Any) -> tuple[int, int]:
    """Returns which rows of a parameter this rank has: FSDP deals them out in chunks of equal size, as torch.chunk."""
    start = min(len(parameter), ranks.rank() * -(-len(parameter) // ranks.count()))
    return start, start + len(_local(parameter))
