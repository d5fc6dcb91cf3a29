"""Each shortcut is really taken, gives the losses and gradients of trl, and stays off where it does not fit."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl

from posttrain import dpo, sft
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.train import backend
from posttrain.train.checkpoints import Checkpoints
from posttrain.train.fast import lora, packing, trainers
from posttrain.train.fast.chosen import may_take
from posttrain.train.fast.trainers import dpo_trainer, sft_trainer, sparing_logits
from tests.posttrain.train.fast.test_attention import take_kernel

# 14 rows in batches of 3 are 5 batches, and the 5 held-out rows are 2.
COMMON = {
    "max_seq_length": 256,
    "lora_r": 4,
    "lora_dropout": 0.0,
    "epochs": 1,
    "batch_size": 3,
    "gradient_accumulation": 2,
    "learning_rate": 0.01,
    "save_steps": 100,
}
LINEAR = ["q_proj", "v_proj", "down_proj"]
NUM_LAYERS = 2 * len(LINEAR)  # the tiny model has two blocks
METHODS = {"compute_loss", "compute_ref_log_probs", "_get_per_token_logps_and_entropies", "_precompute_ref_logps"}


def train(config: SftConfig | DpoConfig, model: Path, rows: Path, folder: Path) -> tuple[list[dict], dict]:
    """Returns the log of the steps, and the metrics."""
    out = folder / "out"
    out.mkdir(parents=True)
    kind, module = ("sft", sft) if isinstance(config, SftConfig) else ("preferences", dpo)
    all_rows = read_jsonl(rows / f"{kind}.jsonl")
    files = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    write_jsonl(files["train"], all_rows[:14])
    write_jsonl(files["eval"], all_rows[14:19])
    metrics = module.train(
        str(model),
        files=files,
        outputs={name: str(out / name) for name in ("adapter", "metrics", "curve", "logs")},
        step=SftStep(sft=config) if kind == "sft" else DpoStep(dpo=config),
        checkpoints=Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="run", limit=3),
    )
    (state,) = folder.glob("store/checkpoints/train/*/step-*/*/trainer_state.json")
    return [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry], metrics


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Counts how often the code of each shortcut runs, from here on."""
    counter = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            counter[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(packing, "inputs_of_rows")
    count(packing, "pack_rows")
    count(packing, "pack_pairs")
    count(lora._adds_update(), "apply")
    count(trl.DPOTrainer, "_get_per_token_logps_and_entropies")
    return counter


def test_sft_takes_each_shortcut_in_every_batch(tiny_model, task_api_files, tmp_path, calls, caplog):
    caplog.set_level("INFO")
    train(SftConfig(target_modules=LINEAR, **COMMON), tiny_model, task_api_files, tmp_path)
    # The one call of `pack_pairs` is from the comparison with padded batches that decides about packing.
    assert calls == {"inputs_of_rows": 5 + 2, "pack_rows": 5 + 2, "pack_pairs": 1, "apply": (5 + 2) * NUM_LAYERS}
    assert "shortcuts: rows, lora\n" in caplog.text


def test_dpo_takes_each_shortcut_in_every_batch(tiny_model, task_api_files, tmp_path, calls, caplog):
    caplog.set_level("INFO")
    train(DpoConfig(target_modules=LINEAR, **COMMON), tiny_model, task_api_files, tmp_path)
    assert calls == {
        "pack_pairs": 1 + 2 * (5 + 2),  # twice: the reference sees all batches first
        "_get_per_token_logps_and_entropies": 2 * (5 + 2),
        "apply": (5 + 2) * NUM_LAYERS,  # the reference has no adapter
    }
    assert "shortcuts: rows, lora, logits\n" in caplog.text


def test_a_resume_that_reads_the_reference_takes_them_too(tiny_model, task_api_files, tmp_path, calls):
    config = DpoConfig(target_modules=LINEAR, **COMMON)
    train(config, tiny_model, task_api_files, tmp_path / "first")
    (kept,) = (tmp_path / "first").glob("store/checkpoints/train/*")
    for part in ("train", "eval"):
        copy = tmp_path / "second" / kept.relative_to(tmp_path / "first") / f"reference-{part}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((kept / copy.name).read_bytes())
    calls.clear()
    train(config, tiny_model, task_api_files, tmp_path / "second")
    assert calls["pack_pairs"] == 1 + 5 + 2 and calls["_get_per_token_logps_and_entropies"] == 5 + 2


@pytest.mark.parametrize(
    "config",
    [
        SftConfig(target_modules=LINEAR, **COMMON),
        DpoConfig(target_modules=LINEAR, **COMMON),
        DpoConfig(target_modules=LINEAR, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 4.0], **COMMON),
    ],
    ids=["sft", "dpo", "dpo with sft"],
)
def test_steps_have_the_loss_and_gradient_of_trl_s_own(
    config, tiny_model, task_api_files, tmp_path, monkeypatch, calls
):
    ours, our_metrics = train(config, tiny_model, task_api_files, tmp_path / "ours")
    calls.clear()
    monkeypatch.setattr(backend, "leaves_trainer_alone", lambda config: False)
    plain, metrics = train(config, tiny_model, task_api_files, tmp_path / "plain")
    assert not calls
    for name in ("loss", "grad_norm"):
        assert [entry[name] for entry in ours] == pytest.approx([entry[name] for entry in plain], rel=1e-4)
    assert our_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "kernel", "loss"),
    [(SftConfig, "varlen", "chunked_nll"), (SftConfig, "flex", "nll"), (DpoConfig, "flex", None)],
    ids=["sft, varlen, no logits", "sft, flex", "dpo, flex"],
)
def test_steps_on_the_kernels_of_a_gpu_have_them_too(
    kind, kernel, loss, tiny_model, task_api_files, tmp_path, monkeypatch, calls
):
    config = kind(target_modules=LINEAR, **COMMON)
    with monkeypatch.context() as on_gpu:
        take_kernel(on_gpu, kernel)
        on_gpu.setattr(trainers, "_sft_loss", lambda model: loss)
        ours, our_metrics = train(config, tiny_model, task_api_files, tmp_path / "ours")
    assert calls["inputs_of_rows" if kind is SftConfig else "pack_pairs"] >= 5 + 2
    monkeypatch.setattr(backend, "leaves_trainer_alone", lambda config: False)
    plain, metrics = train(config, tiny_model, task_api_files, tmp_path / "plain")
    for name in ("loss", "grad_norm"):
        assert [entry[name] for entry in ours] == pytest.approx([entry[name] for entry in plain], rel=1e-4)
    assert our_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_dpo_holds_no_logits_of_prompts(tiny_model, task_api_files, tmp_path, monkeypatch):
    import transformers

    def all_logits(model, *args, forward=transformers.LlamaForCausalLM.forward, **inputs):
        assert not model.training
        return forward(model, *args, **inputs)

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", all_logits)
    train(DpoConfig(target_modules=LINEAR, **COMMON), tiny_model, task_api_files, tmp_path)


@pytest.mark.parametrize(
    ("extend", "method"),
    [
        (lambda trainer_class: packing.without_padding(trainer_class, "rows"), "compute_loss"),
        (lambda trainer_class: packing.sharing_prompts(trainer_class, "rows"), "_get_per_token_logps_and_entropies"),
        (sparing_logits, "_get_per_token_logps_and_entropies"),
        (sparing_logits, "compute_ref_log_probs"),
        (lambda trainer_class: dpo.keeping_reference(trainer_class, None), "_precompute_ref_logps"),
    ],
)
def test_a_trainer_class_without_the_method_is_refused(extend: Callable, method: str):
    def trainer_class(methods: set[str]) -> type:
        return type("DPOTrainer", (), dict.fromkeys(methods, print))

    extend(trainer_class(METHODS))
    words = rf"DPOTrainer of trl {trl.__version__} has no method {method}, .*: install the version of trl"
    with pytest.raises(ValueError, match=words):
        extend(trainer_class(METHODS - {method}))


def model_on(monkeypatch, device: str) -> SimpleNamespace:
    """A model that no shortcut may touch: it has no more than its device decides."""
    monkeypatch.setattr(backend, "current", lambda: backend.Backend(library="peft", device=device, dtype="bfloat16"))
    return SimpleNamespace()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_unsloth_and_fsdp_get_the_trainers_of_trl(monkeypatch, device):
    model = model_on(monkeypatch, device)
    monkeypatch.setattr(backend, "leaves_trainer_alone", lambda config: False)
    assert sft_trainer(model, SftConfig()) is trl.SFTTrainer
    assert dpo_trainer(model, DpoConfig()) is trl.DPOTrainer


def test_only_the_shortcuts_that_are_named_are_taken(tiny_model, task_api_files, tmp_path, monkeypatch, calls):
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "lora")
    train(SftConfig(target_modules=LINEAR, **COMMON), tiny_model, task_api_files, tmp_path)
    assert calls == {"apply": (5 + 2) * NUM_LAYERS}


def test_batches_collated_by_a_process_of_its_own_are_the_same(
    tiny_model, task_api_files, tmp_path, monkeypatch, calls
):
    config = SftConfig(target_modules=LINEAR, **COMMON)
    whole, metrics = train(config, tiny_model, task_api_files, tmp_path / "here")
    calls.clear()
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "rows,lora,workers")
    log, same_metrics = train(config, tiny_model, task_api_files, tmp_path / "workers")
    assert calls["pack_rows"] == 0 and calls["inputs_of_rows"] == 5 + 2  # packed, but not by this process
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [entry[name] for entry in log] == [entry[name] for entry in whole]
    assert same_metrics == metrics


def test_a_shortcut_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "lora, flash")
    with pytest.raises(ValueError, match=r"POSTTRAIN_SHORTCUTS='lora, flash': 'flash' is none of varlen, .*: correct"):
        may_take("lora")
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "none")
    assert not may_take("lora")
