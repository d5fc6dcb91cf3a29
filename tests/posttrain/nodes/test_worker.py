"""Workers on two "nodes" of two ranks, which have a disk each and share the storage alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import FRESH_ENV, HALVINGS_ENV, RUN_ID_ENV, DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.nodes import worker
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step.digests import digest
from posttrain.step.run import Unfinished
from posttrain.train import backend, callbacks, stage
from posttrain.train.checkpoints import COMPLETE, Diverged, Manifest
from posttrain.train.order import PROGRESS, Ending, Kept, Order, read_ending, write_ending, write_order
from tests.posttrain.train.forked_ranks import in_ranks

# 32 rows in batches of 2 are 16 batches: 4 steps of a batch for each of four ranks.
COMMON = {"max_seq_length": 256, "lora_r": 4, "batch_size": 2, "gradient_accumulation": 4, "save_steps": 2}
SFT = SftConfig(learning_rate=0.01, epochs=1, lora_dropout=0.2, **COMMON)
DPO = DpoConfig(learning_rate=0.01, epochs=1, lora_dropout=0.2, **COMMON)
RUN = "run-1"


@pytest.fixture(autouse=True)
def environment_as_it_was(monkeypatch) -> None:
    for name in (RUN_ID_ENV, FRESH_ENV, HALVINGS_ENV):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def inputs(tiny_model, task_api_files, tmp_path_factory) -> dict[type, dict[str, Kept]]:
    folder, result = tmp_path_factory.mktemp("inputs"), {}
    for kind, model, name in ((SftConfig, "base", "sft"), (DpoConfig, "model", "preferences")):
        all_rows = read_jsonl(task_api_files / f"{name}.jsonl")
        paths = {part: folder / f"{name}-{part}.jsonl" for part in ("train", "eval")}
        write_jsonl(paths["train"], all_rows[:28])
        write_jsonl(paths["eval"], all_rows[28:32])
        result[kind] = {part: Kept(uri=str(path), sha256=digest(path)) for part, path in paths.items()}
        result[kind][model] = Kept(uri=str(tiny_model), sha256=digest(tiny_model))
    return result


def order(root: Path, inputs, config: SftConfig | DpoConfig, *, shape: tuple[int, int] = (2, 2), **others) -> Order:
    """An order for so many nodes with so many ranks each."""
    kind = "sft" if isinstance(config, SftConfig) else "dpo"
    section = SftStep if kind == "sft" else DpoStep
    step = section(**{kind: config}, training={"num_processes": shape[0] * shape[1]})
    fields = {"run_id": RUN, "step": f"train_{kind}", "attempt": 1, "fingerprint": "f" * 64, "limit_seconds": 600}
    fields |= {"storage_root": str(root), "inputs": inputs[type(config)], "config": step.model_dump(mode="json")}
    fields |= {"num_nodes": shape[0], "num_processes_per_node": shape[1], "lapse_seconds": 600}
    return Order(**fields | others)


def attempt(order: Order, disks: Path, *, change: Callable[[int], None] = lambda rank: None) -> tuple[list, Ending]:
    """Works as ordered in forked ranks, where `change` may do something to each before; returns how it ended."""
    backend.prepare()
    kept = write_order(order)

    def work(rank: int) -> str:
        change(rank)
        worker.main([kept.uri, kept.sha256])
        return "finished"

    shape = {"num_nodes": order.num_nodes, "per_node": order.num_processes_per_node}
    ended = in_ranks(work, disks=disks, **shape)
    for disk in disks.iterdir():
        shutil.rmtree(disk)  # the next attempt may run anywhere
    return ended, read_ending(order)


def outputs(order: Order) -> Path:
    return Path(order.uri("outputs"))


def losses(order: Order) -> list[float]:
    entries = [json.loads(line) for line in (outputs(order) / "logs" / stage.HISTORY).read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def at_step(number: int, rank: int, do: Callable[[], None]) -> Callable[[int], None]:
    """Makes one rank do something after an optimizer step."""

    def change(this: int) -> None:
        def log_step(args, state, logs, dataloader) -> None:
            if this == rank and state.global_step == number and "loss" in logs:
                do()

        callbacks.log_step = log_step

    return change


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_error(error: BaseException) -> None:
    raise error


@dataclass(frozen=True)
class Whole:
    """An attempt that nothing disturbed."""

    config: SftConfig | DpoConfig
    order: Order
    ending: Ending


@pytest.fixture(scope="module")
def whole_of(inputs, tmp_path_factory) -> Callable[[str], Whole]:
    """Makes, once, the attempt of `sft` or `dpo` that nothing disturbs."""

    @cache
    def make(kind: str) -> Whole:
        folder, config = tmp_path_factory.mktemp("whole"), {"sft": SFT, "dpo": DPO}[kind]
        ordered = order(folder / "store", inputs, config)
        ended, ending = attempt(ordered, folder / "disks")
        assert ended == ["finished"] * 4
        return Whole(config, ordered, ending)

    return make


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_outputs_lie_in_the_storage_with_their_digests_and_say_what_was_learnt(whole_of, kind):
    whole = whole_of(kind)
    ending = whole.ending
    assert (ending.outcome, ending.rank, ending.num_ranks, ending.num_nodes) == ("finished", 0, 4, 2)
    assert ending.outputs == {name: digest(outputs(whole.order) / name) for name in stage.OUTPUTS}
    assert ending.measured == json.loads((outputs(whole.order) / "metrics").read_text())
    assert ending.measured["total_steps"] == 4
    assert Path(whole.order.uri(PROGRESS)).read_text().startswith(("joined: 4 ranks on 2 nodes", "step"))


@pytest.mark.long
def test_checkpoints_are_whole_and_say_of_how_many_ranks_they_are(whole_of):
    manifests = list(Path(whole_of("sft").order.storage_root, "checkpoints").rglob(COMPLETE))
    assert len(manifests) == 2
    for file in manifests:
        manifest = Manifest.model_validate_json(file.read_bytes())
        assert manifest.world_size == 4
        assert {f"rng_state_{rank}.pth" for rank in range(4)} < set(manifest.files)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_two_nodes_learn_what_one_learns(whole_of, inputs, tmp_path, kind):
    whole = whole_of(kind)
    alone = order(tmp_path / "store", inputs, whole.config, shape=(1, 4))
    assert attempt(alone, tmp_path / "disks")[0] == ["finished"] * 4
    assert losses(whole.order) == pytest.approx(losses(alone), rel=1e-4)
    one, two = (load_file(outputs(which) / "adapter" / "adapter_model.safetensors") for which in (alone, whole.order))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "limit", "reason", "killed"),
    [
        ("sft", {"lapse_seconds": 0.01}, "stopped at step 1/4: its lease has lapsed", 0),
        ("dpo", {"limit_seconds": 0.01}, "stopped at step 1/4: the time limit is near", 3),
    ],
    ids=["sft", "dpo"],
)
def test_after_leaving_and_a_killed_rank_the_weights_are_the_same(
    whole_of, inputs, tmp_path, kind, limit, reason, killed
):
    whole = whole_of(kind)
    ordered, disks = order(tmp_path / "store", inputs, whole.config), tmp_path / "disks"
    ended, ending = attempt(ordered.model_copy(update=limit), disks)
    message = ending.reason
    assert ended == [["Unfinished", message]] * 4 and ending.outcome == "unfinished"
    assert message.startswith(reason) and message.endswith("the next attempt resumes from step 1")

    ended, ending = attempt(ordered.model_copy(update={"attempt": 2}), disks, change=at_step(3, killed, kill))
    assert ended[killed] == "killed" and not {"finished", "hangs"} & set(map(str, ended))
    assert ending.outcome == "failed" and ending.rank != killed

    ended, ending = attempt(ordered.model_copy(update={"attempt": 3}), disks)
    assert ended == ["finished"] * 4
    assert (ending.outputs, ending.measured) == (whole.ending.outputs, whole.ending.measured)


def shard_on_cpu() -> None:
    """accelerate shards models on GPUs alone; what it does there it can do here."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


@pytest.mark.long
def test_a_sharded_model_resumes_on_as_many_ranks_to_the_same_bytes_and_on_more_if_elastic(inputs, tmp_path):
    config = SFT.model_copy(update={"parallelism": "fsdp", "elastic": True})
    disks, undisturbed = tmp_path / "disks", order(tmp_path / "whole", inputs, config, shape=(2, 1))

    def sharding(rank: int) -> None:
        shard_on_cpu()

    assert attempt(undisturbed, disks, change=sharding)[0] == ["finished"] * 2

    def leave_sharded(rank: int) -> None:
        shard_on_cpu()
        at_step(2, 1, partial(os.kill, os.getpid(), signal.SIGTERM))(rank)

    ordered = order(tmp_path / "store", inputs, config, shape=(2, 1))
    ended, ending = attempt(ordered, disks, change=leave_sharded)
    assert ending.reason == "stopped at step 3/4: SIGTERM; the next attempt resumes from step 3", ended
    (newest,) = Path(ordered.storage_root).glob("checkpoints/*/*/step-00000003/*")
    manifest = Manifest.model_validate_json((newest / COMPLETE).read_bytes())
    assert {f"shard-{rank:05}.safetensors" for rank in range(2)} < set(manifest.files)
    assert not any(name.endswith(".bin") or name.startswith("optimizer") for name in manifest.files)
    shutil.copytree(tmp_path / "store", tmp_path / "more")

    _, ending = attempt(ordered.model_copy(update={"attempt": 2}), disks, change=sharding)
    assert (ending.outputs, ending.measured) == (read_ending(undisturbed).outputs, read_ending(undisturbed).measured)
    more = order(tmp_path / "more", inputs, config, attempt=2)
    assert attempt(more, disks, change=sharding)[0] == ["finished"] * 4
    assert losses(more) == pytest.approx(losses(undisturbed), rel=0.01)
    assert losses(more)[:3] == losses(undisturbed)[:3]


@pytest.mark.long
def test_the_rank_that_ends_an_attempt_says_why_and_its_peers_do_not(inputs, tmp_path):
    change = at_step(1, 2, partial(raise_error, torch.OutOfMemoryError("CUDA out of memory")))
    ended, ending = attempt(order(tmp_path / "store", inputs, SFT), tmp_path / "disks", change=change)
    assert ended[2][0] == "MemoryError" and ended[0][0] == "RuntimeError"  # its peer is gone
    assert (ending.outcome, ending.rank) == ("out_of_memory", 2)
    assert ending.reason.startswith("out of memory with batch_size 2 on each of 4 GPUs")


def alone(root: Path, inputs, **others) -> Order:
    return order(root, inputs, SFT, shape=(1, 1), **others)


def test_an_input_that_was_changed_is_refused(inputs, tmp_path):
    changed = {**inputs[SftConfig], "eval": inputs[SftConfig]["train"].model_copy(update={"sha256": "0" * 64})}
    ordered = alone(tmp_path, inputs).model_copy(update={"inputs": changed})
    with pytest.raises(ValueError, match=f"sft-train.jsonl: has SHA-256 .*, and {'0' * 64} was ordered"):
        worker.bring(ordered, tmp_path)


def test_inputs_are_brought_by_the_first_rank_of_a_node_alone(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(worker.ranks, "is_first_of_node", lambda: False)
    model, files = worker.bring(alone(tmp_path, inputs), tmp_path)
    assert (model, files["train"]) == (str(tmp_path / "base"), str(tmp_path / "train"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "per_node"), [(2, 2), (4, 4), (4, 1)])
def test_other_ranks_than_ordered_do_not_begin(inputs, tmp_path, monkeypatch, size, per_node):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))
    started = f"started: {size // per_node} nodes with {per_node} ranks each; ordered: 2 with 2"
    with pytest.raises(ValueError, match=started):
        worker.check_ranks(order(tmp_path, inputs, SFT))


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Unfinished("stopped at step 1/4: SIGTERM"), "unfinished", "stopped at step 1/4: SIGTERM"),
        (Diverged("diverged at step 3/4: loss nan"), "diverged", "diverged at step 3/4: loss nan"),
        (MemoryError("out of memory with batch_size 2"), "out_of_memory", "out of memory with batch_size 2"),
        (ValueError("none of 3 rows fits"), "bad_input", "none of 3 rows fits"),
        (OSError("gs://bucket: away"), "failed", "OSError: gs://bucket: away"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt: "),
    ],
)
def test_how_an_attempt_ended_is_written_by_the_first_that_ends_it(inputs, tmp_path, error, outcome, reason):
    ordered = alone(tmp_path, inputs)
    for raised in (error, RuntimeError("the peer is gone")):
        with pytest.raises(type(raised)), worker.recording(ordered):
            raise raised
    assert read_ending(ordered) == Ending(outcome=outcome, reason=reason, rank=0, num_ranks=1, num_nodes=1)


def test_an_error_is_raised_also_where_it_cannot_be_written(inputs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(worker, "write_ending", lambda *_: raise_error(OSError("gs://bucket: away")))
    with pytest.raises(KeyError, match="loss"), worker.recording(alone(tmp_path, inputs)):
        raise KeyError("loss")
    assert "how this attempt ended could not be written: gs://bucket: away" in caplog.text


def test_an_order_that_somebody_changed_starts_nothing(inputs, tmp_path):
    kept = write_order(alone(tmp_path, inputs))
    with pytest.raises(ValueError, match="is not the order that this worker was started for"):
        worker.main([kept.uri, "0" * 64])


def test_an_attempt_that_has_ended_is_not_begun_again(inputs, tmp_path, monkeypatch):
    """Trainer makes another JobSet when somebody has deleted the first."""
    ordered = alone(tmp_path, inputs)
    kept, ending = write_order(ordered), Ending(outcome="unfinished", num_ranks=1, num_nodes=1)
    write_ending(ordered, ending)
    monkeypatch.setattr(worker, "work", lambda order: None)
    with pytest.raises(RuntimeError, match=r"attempt 1 has ended already \(unfinished\), and starts only once"):
        worker.main([kept.uri, kept.sha256])
    assert read_ending(ordered) == ending


def test_a_worker_has_the_environment_of_the_attempt(inputs, tmp_path, monkeypatch):
    kept = write_order(alone(tmp_path, inputs, num_halvings=1, is_fresh=True))
    monkeypatch.setattr(worker, "work", lambda order: None)
    worker.main([kept.uri, kept.sha256])
    assert [os.environ[name] for name in (RUN_ID_ENV, FRESH_ENV, HALVINGS_ENV)] == [RUN, "1", "1"]


@pytest.mark.long
def test_torchrun_starts_workers_by_the_variables_of_kubeflow_trainer(inputs, tmp_path):
    ordered = order(tmp_path / "store", inputs, SFT, shape=(2, 1))
    kept = write_order(ordered)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "posttrain.nodes.worker", kept.uri, kept.sha256]
    common = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": f"{port}",
    }
    nodes = []
    for node in range(2):
        (tmp_path / f"disk-{node}").mkdir()
        own = {"PET_NODE_RANK": str(node), "TMPDIR": str(tmp_path / f"disk-{node}")}
        nodes.append(subprocess.Popen(command, env=os.environ | common | own, stderr=subprocess.PIPE, text=True))
    logs = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], logs
    ending = read_ending(ordered)
    assert (ending.outcome, ending.num_ranks, ending.num_nodes) == ("finished", 2, 2)
    assert ending.outputs == {name: digest(outputs(ordered) / name) for name in stage.OUTPUTS}
    assert [log.count("step 4/4 loss") for log in logs] == [1, 0]  # the first rank logs for all
    assert not any((tmp_path / f"disk-{node}" / name).exists() for node in range(2) for name in ("base", "outputs"))
