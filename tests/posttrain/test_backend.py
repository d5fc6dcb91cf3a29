import pytest
import torch

from posttrain import backend
from posttrain.config import SftConfig


@pytest.fixture(autouse=True)
def decided_anew():
    backend.current.cache_clear()
    yield
    backend.current.cache_clear()


def test_without_a_gpu_peft_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.current() == backend.Backend(library="peft", device="cpu", dtype="float32")
    arguments = backend.training_arguments(SftConfig(gradient_checkpointing=True))
    assert arguments == {
        "use_cpu": True, "bf16": False, "fp16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_that_only_emulates_bfloat16_trains_in_float16(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert backend.current().dtype == dtype
    arguments = backend.training_arguments(SftConfig())
    assert (arguments["bf16"], arguments["fp16"]) == (native, not native)
    assert arguments["gradient_checkpointing"] and not arguments["use_cpu"]


def test_unknown_library_is_refused(monkeypatch):
    monkeypatch.setenv(backend.BACKEND_ENV, "unslot")
    with pytest.raises(ValueError, match="POSTTRAIN_BACKEND='unslot': give peft or unsloth"):
        backend.current()


def test_asked_for_unsloth_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    monkeypatch.setenv(backend.BACKEND_ENV, "unsloth")
    with pytest.raises(ValueError, match="not installed: pip install unsloth"):
        backend.current()


def test_model_to_judge_has_the_adapter_on_it(tiny_model, tiny_adapter):
    backend.prepare()
    tokens = torch.tensor([backend.load_tokenizer(tiny_model)("hello")["input_ids"]])
    plain, adapted = backend.load_model(tiny_model), backend.load_model(tiny_model, tiny_adapter)
    assert plain.dtype == torch.float32 and not plain.training and not adapted.training
    with torch.no_grad():
        assert not torch.allclose(plain(tokens).logits, adapted(tokens).logits, atol=1e-3)


def test_lora_settings_come_from_the_configuration(tiny_model):
    backend.prepare()
    _, lora = backend.load_for_training(tiny_model, SftConfig(lora_r=3, lora_dropout=0.25, target_modules=["q_proj"]))
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (3, 32, 0.25, {"q_proj"})


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    backend.prepare()
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        backend.load_model(tmp_path)
