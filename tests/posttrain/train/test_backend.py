import json
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from posttrain.config import DpoConfig, SftConfig
from posttrain.rows import chat
from posttrain.train import backend


@pytest.fixture(autouse=True)
def decided_anew():
    backend.current.cache_clear()
    yield
    backend.current.cache_clear()


def test_without_a_gpu_peft_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.current() == backend.Backend(library="peft", device="cpu", dtype="float32")
    arguments = backend.device_args(SftConfig(gradient_checkpointing=True))
    on = {name for name, value in arguments.items() if value}
    assert on == {"use_cpu"}
    names = {"use_cpu", "bf16", "fp16", "gradient_checkpointing", "dataloader_pin_memory", "dataloader_num_workers"}
    assert arguments.keys() == names


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_that_only_emulates_bfloat16_trains_in_float16(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert backend.current().dtype == dtype
    arguments = backend.device_args(SftConfig())
    assert (arguments["bf16"], arguments["fp16"]) == (native, not native)
    assert arguments["gradient_checkpointing"] and not arguments["use_cpu"]


def test_unknown_library_is_refused(monkeypatch):
    monkeypatch.setenv(backend.BACKEND_ENV, "unslot")
    with pytest.raises(ValueError, match="POSTTRAIN_BACKEND='unslot': set it to peft or unsloth"):
        backend.current()


def test_asked_for_unsloth_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    monkeypatch.setenv(backend.BACKEND_ENV, "unsloth")
    with pytest.raises(ValueError, match="not installed: pip install unsloth"):
        backend.current()


def test_model_to_judge_has_the_adapter_on_it(tiny_model, tiny_adapter):
    backend.prepare()
    tokens = torch.tensor([chat.load_tokenizer(tiny_model)("hello")["input_ids"]])
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


def decide(monkeypatch, *, device: str = "cuda", dtype: str = "bfloat16", library: str = "peft") -> None:
    decided = backend.Backend(library=library, device=device, dtype=dtype)
    monkeypatch.setattr(backend, "current", lambda: decided)


def install(monkeypatch, *names: str) -> None:
    """These, and no others of those that the backend looks for."""
    monkeypatch.setattr(backend, "find_spec", lambda name: name in names or None)


def test_several_gpus_are_trained_on_with_peft(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    install(monkeypatch, "unsloth")
    assert backend.current().library == "unsloth"
    backend.current.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with caplog.at_level(logging.INFO):
        assert backend.current().library == "peft"
    assert "unsloth trains on one GPU: peft trains on these 4" in caplog.text
    backend.current.cache_clear()
    monkeypatch.setenv(backend.BACKEND_ENV, "unsloth")
    with pytest.raises(ValueError, match="POSTTRAIN_BACKEND=unsloth, but it trains on one GPU and this step has 4"):
        backend.current()


@pytest.mark.parametrize(("parallelism", "num_ranks"), [("ddp", 1), ("fsdp", 1), ("ddp", 4), ("fsdp", 4)])
def test_a_model_is_sharded_where_asked_and_where_there_is_somebody_to_share_with(monkeypatch, parallelism, num_ranks):
    decide(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    arguments = backend.device_args(SftConfig(parallelism=parallelism))
    is_sharded = (parallelism, num_ranks) == ("fsdp", 4)
    assert arguments.get("fsdp", False) == is_sharded
    assert arguments["gradient_checkpointing"] != is_sharded  # then it is FSDP's to do
    fsdp = {"activation_checkpointing": True, "state_dict_type": "SHARDED_STATE_DICT"}
    assert arguments.get("fsdp_config") == (fsdp if is_sharded else None)
    assert ("ddp_find_unused_parameters" in arguments) == ((parallelism, num_ranks) == ("ddp", 4))


def test_without_a_gpu_the_base_keeps_its_bits(monkeypatch, caplog):
    decide(monkeypatch, device="cpu", dtype="float32")
    assert not backend.quantises(SftConfig(load_in_4bit=True))
    assert "sft.load_in_4bit is ignored: there is no GPU, so the base stays in float32" in caplog.text


def test_a_base_is_quantised_where_sft_asks_for_it_alone(monkeypatch):
    decide(monkeypatch)
    install(monkeypatch, "bitsandbytes")
    assert backend.quantises(SftConfig(load_in_4bit=True))
    assert not backend.quantises(SftConfig()) and not backend.quantises(DpoConfig())


@pytest.mark.parametrize(
    ("dtype", "installed", "words"),
    [
        ("bfloat16", [], "sft.load_in_4bit needs bitsandbytes, which is not installed"),
        ("float16", ["bitsandbytes"], "sft.load_in_4bit: this GPU has no bfloat16"),
    ],
)
def test_what_cannot_quantise_says_so(monkeypatch, dtype, installed, words):
    decide(monkeypatch, dtype=dtype)
    install(monkeypatch, *installed)
    with pytest.raises(ValueError, match=words):
        backend.quantises(SftConfig(load_in_4bit=True))


def test_peft_is_given_nf4_on_this_rank_s_gpu(monkeypatch, tiny_model):
    load_args = {}
    decide(monkeypatch)
    install(monkeypatch, "bitsandbytes")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda path, **how: load_args.update(how))
    backend.load_for_training(tiny_model, SftConfig(load_in_4bit=True))
    settings = load_args["quantization_config"]
    assert settings.load_in_4bit and settings.bnb_4bit_quant_type == "nf4" and settings.bnb_4bit_use_double_quant
    assert settings.bnb_4bit_compute_dtype == load_args["dtype"] == torch.bfloat16 and load_args["device_map"] == {
        "": 3
    }


def test_a_model_of_one_rank_is_loaded_to_its_gpu(monkeypatch, tiny_model):
    decide(monkeypatch)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    model_class = transformers.AutoModelForCausalLM
    monkeypatch.setattr(model_class, "from_pretrained", lambda path, **how: how.get("device_map"))
    assert backend.load_for_training(tiny_model, DpoConfig())[0] == {"": 3}
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert backend.load_for_training(tiny_model, DpoConfig())[0] == {"": 3}
    assert backend.load_for_training(tiny_model, DpoConfig(parallelism="fsdp"))[0] is None  # sharded first


def test_dropout_of_the_model_is_off_in_dpo_alone(tiny_model, tmp_path):
    path = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"attention_dropout": 0.1}))
    rates = [
        backend.load_for_training(path, config)[0].model.layers[0].self_attn.attention_dropout
        for config in (SftConfig(), DpoConfig())
    ]
    assert rates == [0.1, 0.0]


@pytest.mark.parametrize("config", [SftConfig(load_in_4bit=True), SftConfig(), DpoConfig()])
def test_unsloth_quantises_only_if_asked(monkeypatch, tiny_model, config):
    load_args, adapter_args = {}, {}
    library = SimpleNamespace(
        from_pretrained=lambda path, **how: (load_args.update(how), None),
        get_peft_model=lambda model, **how: adapter_args.update(how),
    )
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=library))
    decide(monkeypatch, library="unsloth")
    install(monkeypatch, "bitsandbytes")
    backend.load_for_training(tiny_model, config)
    assert {"q_proj", "v_proj", "o_proj"} < set(adapter_args["target_modules"])
    assert load_args["load_in_4bit"] == (config == SftConfig(load_in_4bit=True))
