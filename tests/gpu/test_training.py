"""Training on a GPU: the losses of the CPU, with each library; resumes, a GPU that is too small, NaN, QLoRA's merge."""

import math

import pytest
import torch

from posttrain.merge import merge
from posttrain.rows import chat
from posttrain.rows.formats import read_jsonl
from posttrain.train import backend, callbacks
from posttrain.train.checkpoints import Diverged
from tests.stages import adapter, killed_and_resumed, poison, same_files, tensors, train

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

BFLOAT16 = 2**-8  # relative rounding error; later steps carry on what earlier ones rounded


def of_steps(log: list[dict], name: str) -> list[float]:
    return [entry[name] for entry in log]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_each_step_has_the_loss_and_gradient_of_the_cpu(tiny_model, rows, tmp_path, ended, monkeypatch, kind):
    _, cpu, _ = ended(f"{kind} on the CPU")
    logs = []
    monkeypatch.setattr(callbacks, "log_step", lambda args, state, entry, dataloader: logs.append(entry))
    train(kind, tiny_model, rows, tmp_path, lora_dropout=0.0)
    gpu = [entry for entry in logs if "loss" in entry]
    assert of_steps(gpu, "loss") == pytest.approx(of_steps(cpu, "loss"), rel=4 * BFLOAT16)
    assert of_steps(gpu, "grad_norm") == pytest.approx(of_steps(cpu, "grad_norm"), rel=0.1)
    assert of_steps(gpu, "learning_rate") == pytest.approx(of_steps(cpu, "learning_rate"))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_each_step_of_unsloth_has_the_loss_and_gradient_of_the_cpu(ended, kind):
    _, log, text = ended(kind)
    _, cpu, _ = ended(f"{kind} on the CPU")
    assert "Unsloth" in text and "should be imported before" not in text
    assert of_steps(log, "loss") == pytest.approx(of_steps(cpu, "loss"), rel=4 * BFLOAT16)
    assert of_steps(log, "grad_norm") == pytest.approx(of_steps(cpu, "grad_norm"), rel=0.1)


def test_dpo_starts_from_its_reference(tiny_model, rows, tmp_path):
    metrics = train("dpo", tiny_model, rows, tmp_path)
    assert metrics["start_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert metrics["eval_loss"] < math.log(2)
    (kept,) = tmp_path.glob("store/checkpoints/train_dpo/*/reference-train.json")
    assert len(read_jsonl(rows["dpo"]["train"])) == len(kept.read_text().split("], ["))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_training_gives_the_same_bytes_twice(tiny_model, rows, tmp_path, kind):
    """Without this, no resume could: kernels that add in any order would show here."""
    metrics = [train(kind, tiny_model, rows, tmp_path / name) for name in ("one", "other")]
    assert largest_difference(tmp_path / "one", tmp_path / "other") == 0
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_killed_and_resumed_gives_the_same_bytes(tiny_model, rows, tmp_path, monkeypatch, caplog, kind):
    """With dropout, whose random numbers come from the GPU's own generator."""
    whole = train(kind, tiny_model, rows, tmp_path / "whole")
    resumed = killed_and_resumed(kind, tiny_model, rows, tmp_path / "killed", monkeypatch, caplog)
    assert largest_difference(tmp_path / "whole", tmp_path / "killed") == 0
    assert resumed == whole
    assert same_files(tmp_path / "whole" / "out", tmp_path / "killed" / "out")


def largest_difference(one, other) -> float:
    ours, theirs = adapter(one), adapter(other)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def test_a_gpu_that_is_too_small_halves_the_batch(deep_model, rows, tmp_path, caplog, card):
    """`gpu_memory_fraction` makes it too small: the error is the real one, of CUDA's allocator."""
    total = card.memory()
    settings = {"gradient_checkpointing": False, "lora_dropout": 0.0}

    def peak(name: str, **changes) -> tuple[int, dict]:
        backend.free_memory()
        card.forget_peak()
        fraction = changes.pop("gpu_memory_fraction", 1.0)
        training = {"gpu_memory_fraction": fraction}
        metrics = train("sft", deep_model, rows, tmp_path / name, training=training, **settings | changes)
        return card.peak(), metrics

    whole, _ = peak("whole", batch_size=16)
    half, undisturbed = peak("half", batch_size=8, gradient_accumulation=2)
    assert half < 0.8 * whole
    fraction = (half + whole) / 2 / total
    with caplog.at_level("WARNING"):
        used, metrics = peak("too small", batch_size=16, gpu_memory_fraction=fraction)
    assert "out of memory with batch_size 16: continuing with batch_size 8 and gradient_accumulation 2" in caplog.text
    assert used <= fraction * total
    assert metrics["total_steps"] == undisturbed["total_steps"] == 1
    assert metrics["final_loss"] == pytest.approx(undisturbed["final_loss"], rel=1e-3)


def test_a_training_that_does_not_fit_its_fraction_of_the_gpu_ends(deep_model, rows, tmp_path, card):
    """Where no smaller batch is left, although the rest of the GPU is free."""
    settings = {"batch_size": 1, "gradient_checkpointing": True, "training": {"gpu_memory_fraction": 1e-4}}
    with pytest.raises(torch.OutOfMemoryError):
        train("sft", deep_model, rows, tmp_path, **settings)
    assert not any((tmp_path / "out").iterdir())
    backend.prepare(1.0)


def test_the_first_nan_ends_the_run(tiny_model, rows, tmp_path):
    model, poisoned, bad_id = poison(tiny_model, rows["sft"], tmp_path)
    with pytest.raises(Diverged, match=r"^diverged at step \d/4: loss nan, .*learning rate .*, rows .*") as caught:
        train("sft", model, rows | {"sft": poisoned}, tmp_path, batch_size=2, gradient_accumulation=2)
    assert bad_id in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("library", ["peft", "unsloth"])
def test_an_adapter_learned_on_four_bits_merges_into_the_base(tiny_model, rows, tmp_path, ended, card, library):
    pytest.importorskip("bitsandbytes")
    if library == "peft":
        folder = tmp_path
        metrics = train("sft", tiny_model, rows, folder, load_in_4bit=True)
        assert metrics["final_loss"] < metrics["first_loss"]
    else:
        folder, log, _ = ended("sft in 4 bits")
        assert log[-1]["loss"] < log[0]["loss"]
    dtypes = {tensor.dtype for tensor in adapter(folder).values()}  # on 4 bits trl makes it bfloat16
    assert dtypes == {torch.bfloat16} if library == "peft" else dtypes <= {torch.bfloat16, torch.float32}
    merge(tiny_model, folder / "out" / "adapter", tmp_path / "merged")
    merged, base = tensors(tmp_path / "merged"), tensors(tiny_model)
    assert {name: tensor.dtype for name, tensor in merged.items()} == {name: base[name].dtype for name in base}
    assert sum(not torch.equal(merged[name], base[name]) for name in base) == 14
    assert_same_predictions(
        tiny_model, folder / "out" / "adapter", tmp_path / "merged", rows["sft"]["eval"], card.device
    )


def assert_same_predictions(base, adapter, merged, path, device) -> None:
    """The merged weights predict on the GPU what the 16-bit base with the adapter on it does."""
    tokenizer, row = chat.load_tokenizer(base), read_jsonl(path)[0]
    tokens = torch.tensor([chat.render(tokenizer, row["prompt"], row["completion"])], device=device)
    with torch.no_grad():
        adapted, ours = (
            torch.log_softmax(model(tokens).logits.float(), dim=-1)
            for model in (backend.load_model(base, adapter), backend.load_model(merged))
        )
    assert (adapted.exp() * (adapted - ours)).sum(dim=-1).mean() < 1e-3  # nats per token
