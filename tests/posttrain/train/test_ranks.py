"""Two ranks on the CPU, over gloo. They are forked: torch and trl are imported once for all of them."""

import hashlib
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain import dpo, sft
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows import chat
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step.digests import digest
from posttrain.train import backend, callbacks, ranks, stage
from posttrain.train.checkpoints import Checkpoints
from tests.posttrain.train.forked_ranks import in_ranks

pytestmark = pytest.mark.long

NUM_RANKS = 2
# 16 rows in batches of 2 are 8 batches, so 4 steps for two ranks with a batch each as for one that accumulates two.
COMMON = {"max_seq_length": 256, "lora_r": 4, "batch_size": 2, "gradient_accumulation": 2, "save_steps": 2}
SFT = SftConfig(learning_rate=0.01, epochs=1, lora_dropout=0.0, **COMMON)
DPO = DpoConfig(learning_rate=0.01, epochs=1, lora_dropout=0.0, **COMMON)
Config = SftConfig | DpoConfig
Rows = dict[type, dict[str, str]]


class Killed(BaseException):
    """Nothing in the product catches this."""


@pytest.fixture(scope="module")
def rows(task_api_files, tmp_path_factory) -> Rows:
    folder = tmp_path_factory.mktemp("rows")
    files = {}
    for kind, name in ((SftConfig, "sft"), (DpoConfig, "preferences")):
        files[kind] = {part: str(folder / f"{name}-{part}.jsonl") for part in ("train", "eval")}
        all_rows = read_jsonl(task_api_files / f"{name}.jsonl")
        write_jsonl(files[kind]["train"], all_rows[:16])
        write_jsonl(files[kind]["eval"], all_rows[16:20])
    return files


def train(model: Path, rows: Rows, folder: Path, config: Config) -> dict:
    """Trains as a stage does: every rank gets the same folders for outputs and storage."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    outputs = {name: str(out / name) for name in ("adapter", "metrics", "curve", "logs")}
    checkpoints = Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="run", limit=3)
    module, step = (sft, SftStep(sft=config)) if isinstance(config, SftConfig) else (dpo, DpoStep(dpo=config))
    return module.train(str(model), files=rows[type(config)], outputs=outputs, step=step, checkpoints=checkpoints)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "adapter" / "adapter_model.safetensors")


def same_files(one: Path, other: Path) -> bool:
    return digest(one / "out") == digest(other / "out")


@pytest.fixture(scope="module", params=[SFT.model_copy(update={"lora_dropout": 0.2}), DPO], ids=["sft", "dpo"])
def whole(request, tiny_model, rows, tmp_path_factory) -> tuple[Config, Path, dict]:
    """Settings, outputs and metrics of a training in two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    backend.prepare()
    first, second = in_ranks(lambda rank: train(tiny_model, rows, folder, request.param))
    assert first == second
    return request.param, folder, first


def test_what_one_rank_sees_all_see_and_what_the_first_does_all_know(tmp_path):
    def agree(rank: int) -> list:
        ranks.join("cpu")
        with ranks.shared_folder() as folder:
            Path(folder, str(rank)).touch()
            ranks.wait()
            names = sorted(path.name for path in folder.iterdir())
        return [ranks.any_of(rank == 1, False), ranks.from_first(lambda: rank), ranks.gather(rank), names]

    assert in_ranks(agree) == [[[True, False], 0, [0, 1], ["0", "1"]]] * NUM_RANKS


@pytest.mark.parametrize("config", [SFT, DPO], ids=["sft", "dpo"])
def test_two_ranks_learn_what_one_process_learns(tiny_model, rows, tmp_path, config):
    def learn(rank: int) -> list:
        digests = []

        def look(trainer, *args, **kwargs):
            weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
            text = b"".join(weight.detach().numpy().tobytes() for weight in weights)
            digests.append(hashlib.sha256(text).hexdigest())
            write(trainer, *args, **kwargs)

        write, stage.write_results = stage.write_results, look
        return [train(tiny_model, rows, tmp_path / "two", config), digests]

    alone = train(tiny_model, rows, tmp_path / "one", config)
    first, second = in_ranks(learn)
    assert first == second
    assert first[0] == pytest.approx(alone, rel=0.03)  # held out: means of batches, not of their tokens
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_one_rank_is_killed_and_both_go_on_to_the_same_bytes(whole, tiny_model, rows, tmp_path):
    config, undisturbed, metrics = whole

    def die(rank: int) -> dict:
        def log_step(args, state, logs, dataloader):
            if rank == 1 and state.global_step == 3:
                raise Killed

        callbacks.log_step = log_step
        return train(tiny_model, rows, tmp_path, config)

    first, second = in_ranks(die)
    assert second == ["Killed", ""] and first[0] == "RuntimeError"  # its peer is gone
    resumed = in_ranks(lambda rank: train(tiny_model, rows, tmp_path, config))
    assert resumed == [metrics] * NUM_RANKS and same_files(tmp_path, undisturbed)


def test_sigterm_to_one_rank_stops_both_at_the_same_step(whole, tiny_model, rows, tmp_path):
    config, undisturbed, metrics = whole

    def stop_second(rank: int) -> dict:
        def log_step(args, state, logs, dataloader):
            if rank == 1 and state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        callbacks.log_step = log_step
        return train(tiny_model, rows, tmp_path, config)

    stopped = ["Unfinished", "stopped at step 2/4: SIGTERM; the next attempt resumes from step 2"]
    assert in_ranks(stop_second) == [stopped] * NUM_RANKS
    resumed = in_ranks(lambda rank: train(tiny_model, rows, tmp_path, config))
    assert resumed == [metrics] * NUM_RANKS and same_files(tmp_path, undisturbed)


def test_a_loss_that_is_not_finite_in_one_rank_ends_both(tiny_model, rows, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    token = chat.load_tokenizer(model).convert_tokens_to_ids("<|endoftext|>")
    weights["model.embed_tokens.weight"][token] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    poisoned = read_jsonl(rows[SftConfig]["train"])
    poisoned[7]["prompt"][-1]["content"] += "<|endoftext|>"
    write_jsonl(tmp_path / "train.jsonl", poisoned)
    rows = {SftConfig: rows[SftConfig] | {"train": str(tmp_path / "train.jsonl")}}

    first, second = in_ranks(lambda rank: train(model, rows, tmp_path, SFT))
    assert first == second and first[0] == "Diverged" and "loss nan" in first[1]
    assert poisoned[7]["id"] in first[1] and first[1].count("sft-") == 4  # two batches of two
    assert in_ranks(lambda rank: train(tiny_model, rows, tmp_path, SFT)) == [first] * NUM_RANKS
    assert not any((tmp_path / "out").iterdir())


def test_out_of_memory_names_the_remedy(tiny_model, rows, tmp_path):
    def run_out(rank: int) -> dict:
        def log_step(args, state, logs, dataloader):
            if rank == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        callbacks.log_step = log_step
        return train(tiny_model, rows, tmp_path, SFT)

    remedy = "out of memory with batch_size 2 on each of 2 GPUs: set batch_size to 1 and gradient_accumulation to 4"
    assert in_ranks(run_out)[1] == ["MemoryError", remedy]


@pytest.mark.parametrize(
    ("num_rows", "accumulation", "expected"),
    [(64, 4, (2, 1)), (64, 8, (2, 2)), (14, 8, (2, 2)), (3, 8, (2, 1)), (1, 4, (1, 1))],
)
def test_an_optimizer_step_takes_the_same_rows_on_any_number_of_gpus(monkeypatch, num_rows, accumulation, expected):
    config, step = SFT.model_copy(update={"gradient_accumulation": accumulation}), SftStep().training
    monkeypatch.setenv("WORLD_SIZE", "4")
    args = stage.training_args(config, step, num_train_rows=num_rows, output="")
    assert (args["per_device_train_batch_size"], args["gradient_accumulation_steps"]) == expected


def shard_on_cpu() -> None:
    """accelerate shards models on GPUs alone; what it does there it can do here."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


@pytest.mark.parametrize("config", [SFT, DPO], ids=["sft", "dpo"])
def test_a_sharded_model_learns_the_same(tiny_model, rows, tmp_path, config):
    sharded = config.model_copy(update={"parallelism": "fsdp"})

    def learn(rank: int) -> dict:
        shard_on_cpu()
        return train(tiny_model, rows, tmp_path / "two", sharded)

    def leave(rank: int) -> dict:
        def log_step(args, state, logs, dataloader):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        callbacks.log_step = log_step
        return learn(rank)

    assert [kind for kind, _ in in_ranks(leave)] == ["Unfinished"] * NUM_RANKS
    first, second = in_ranks(learn)
    assert first == second == pytest.approx(train(tiny_model, rows, tmp_path / "one", config), rel=0.03)
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
