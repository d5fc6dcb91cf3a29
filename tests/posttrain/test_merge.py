import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.task_api.tiny import build_tiny_model
from posttrain import merge as merging
from posttrain.merge import merge
from posttrain.step import digests
from posttrain.step.records import read_records

Make = Callable[..., tuple[Path, Path]]


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    """Folders of a base and of a peft adapter on it, all of the adapter's values random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def build(*, dtype: str = "bfloat16", tied: bool = False, shard: str = "5GB", **lora) -> tuple[Path, Path]:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        if tied:
            build_tiny_model(base, tie_word_embeddings=True)
        else:
            copy(tiny_model, base)
        if dtype != "bfloat16" or shard != "5GB":
            model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
            (base / "model.safetensors").unlink()
            model.save_pretrained(base, max_shard_size=shard)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            adapted = get_peft_model(model, LoraConfig(**settings | lora))
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.05)
        adapted.save_pretrained(adapter)
        return base, adapter

    return build


def merged_by_peft(base: Path, adapter: Path, dtype: str) -> dict:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().to(getattr(torch, dtype))
    model.save_pretrained(adapter.parent / "peft")
    return tensors(adapter.parent / "peft")


# peft's own, on adapters that hold an embedding or a head of a tied model.
TIED_WARNINGS = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied"),
]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"r": 3, "lora_alpha": 5},
        {"dtype": "float16"},
        {"dtype": "float32"},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6}, "alpha_pattern": {"v_proj": 3}},
        {"rank_pattern": {r"^model.layers.0.self_attn.k_proj": 5}},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"shard": "100KB"},
        {"shard": "100KB", "dtype": "float32", "modules_to_save": ["lm_head"]},
        {"tied": True},
        pytest.param({"tied": True, "modules_to_save": ["lm_head"]}, marks=TIED_WARNINGS),
        pytest.param({"tied": True, "modules_to_save": ["embed_tokens"]}, marks=TIED_WARNINGS),
        pytest.param(
            {"tied": True, "shard": "100KB", "modules_to_save": ["embed_tokens", "lm_head"]}, marks=TIED_WARNINGS
        ),
    ],
    ids=str,
)
def test_equal_to_peft(values, make, tmp_path):
    import torch

    dtype = values.get("dtype", "bfloat16")
    base, adapter = make(**values)
    info = merge(base, adapter, tmp_path / "model")
    ours, theirs = tensors(tmp_path / "model"), merged_by_peft(base, adapter, dtype)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        # The two libraries add up the r products in an order of their own, which can move the last bit.
        rounding = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=rounding, atol=1e-8)
        if dtype != "float32":
            assert (ours[name] != theirs[name]).float().mean() < 1e-3
    assert info["num_merged_tensors"] == sum(
        name not in (old := tensors(base)) or not torch.equal(ours[name], old[name])
        for name in ours
        if name != "lm_head.weight" or "lm_head" in values.get("modules_to_save", []) or not values.get("tied")
    )


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_tied_model_with_a_head_of_its_own_loads_untied(shard, make, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    base, adapter = make(tied=True, shard=shard, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    merge(base, adapter, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert torch.equal(model.lm_head.weight, tensors(base)["model.embed_tokens.weight"])
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert not model.config.tie_word_embeddings


def test_transposed_weights_are_merged_as_peft_does(tmp_path):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(settings).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "model")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_many_chunks_and_threads_give_the_same_bytes(tiny_model, tiny_adapter, tmp_path, monkeypatch):
    merge(tiny_model, tiny_adapter, tmp_path / "whole")
    monkeypatch.setattr(merging, "CHUNK_ELEMENTS", 200)
    monkeypatch.setattr(merging, "NUM_THREADS", 8)
    for at in range(5):
        merge(tiny_model, tiny_adapter, tmp_path / f"chunks{at}")
        assert digests.digest(tmp_path / f"chunks{at}") == digests.digest(tmp_path / "whole")


def test_file_systems_without_copy_in_the_kernel_work(tiny_model, tiny_adapter, tmp_path, monkeypatch):
    merge(tiny_model, tiny_adapter, tmp_path / "kernel")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(merging.os, "copy_file_range", refuse)
    merge(tiny_model, tiny_adapter, tmp_path / "memory")
    assert digests.digest(tmp_path / "memory") == digests.digest(tmp_path / "kernel")


def test_the_model_folder_holds_the_model_and_nothing_else(tiny_model, tiny_adapter, tmp_path):
    base = copy(tiny_model, tmp_path / "base")
    for name in ("pytorch_model.bin", "adapter_config.json", "modeling_x.py", "README.md", "consolidated.safetensors"):
        (base / name).write_text("{}")
    (base / "LICENSE").write_text("Apache-2.0")
    info = merge(base, tiny_adapter, tmp_path / "model")
    expected = {path.name for path in tiny_model.iterdir()} | {"LICENSE"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == expected
    assert {path.name for path in tmp_path.iterdir()} == {"base", "model"}
    paths, numbers = {"base_model", "adapter_path", "merged_path"}, {"size_gb", "merge_time_seconds"}
    assert set(info) == paths | numbers | {"num_merged_tensors"}
    assert info["num_merged_tensors"] == 14


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("trainable_token_indices", [1, 2]),
        ("lora_bias", True),
        ("bias", "all"),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("ensure_weight_tying", True),
        ("alora_invocation_tokens", [5]),
        ("a_key_of_tomorrow", 3),
        ("peft_type", "LOHA"),
        ("r", 0),
        ("lora_alpha", "16"),
        ("rank_pattern", {"(": 4}),
        ("modules_to_save", ["lm_head"]),
    ],
)
def test_settings_that_cannot_be_merged_are_refused(key, value, tiny_model, tiny_adapter, tmp_path):
    adapter = copy(tiny_adapter, tmp_path / "adapter")
    edit(adapter / "adapter_config.json", **{key: value})
    with pytest.raises(ValueError, match=key) as caught:
        merge(tiny_model, adapter, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_unknown_settings_without_effect_are_fine(tiny_model, tiny_adapter, tmp_path):
    adapter = copy(tiny_adapter, tmp_path / "adapter")
    edit(adapter / "adapter_config.json", a_key_of_tomorrow=None, another={}, lora_dropout=0.5)
    merge(tiny_model, adapter, tmp_path / "model")


def change_adapter(adapter: Path, change: Callable[[dict], None]) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    content = load_file(file)
    change(content)
    save_file(content, file)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({Q + "A.weight": t[Q + "A.weight"][:, :5].contiguous()}), r"q_proj.weight is \[64, 5\]"),
        (lambda t: t.update({Q + "A.weight": t[Q + "A.weight"][:2].contiguous()}), "not the rank 4"),
        (lambda t: t.pop(Q + "B.weight"), "has only lora_A"),
        (lambda t: t[Q + "B.weight"].view(-1)[7].fill_(float("nan")), "q_proj.lora_B.weight is NaN .* element 7"),
        (lambda t: t[Q + "A.weight"].view(-1)[0].fill_(float("-inf")), "NaN or infinite at element 0"),
        (lambda t: [t.update({k.replace("layers.0", "layers.7"): t.pop(k)}) for k in list(t)], "not in the base"),
        (lambda t: t.update({"other.weight": t[Q + "A.weight"].clone()}), "other.weight .* cannot be merged"),
        (lambda t: t.update({Q + "magnitude_vector": t[Q + "A.weight"].clone()}), "magnitude_vector cannot be merged"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_damaged_adapters_are_refused(change, message, tiny_model, tiny_adapter, tmp_path):
    adapter = copy(tiny_adapter, tmp_path / "adapter")
    change_adapter(adapter, change)
    with pytest.raises(ValueError, match=message):
        merge(tiny_model, adapter, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_lora_on_embedding_or_head_is_refused(target, make, tmp_path):
    base, adapter = make(target_modules=["q_proj", target])
    with pytest.raises(ValueError, match=f"{target}.base_layer.weight .* leave them out of target_modules"):
        merge(base, adapter, tmp_path / "model")


def test_an_adapter_is_on_the_layers_that_its_configuration_names(tiny_model, tiny_adapter, tmp_path):
    adapter = copy(tiny_adapter, tmp_path / "adapter")
    named = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    fewer = [name for name in named if not name.endswith("q_proj")]
    for values, message in (
        ({"target_modules": fewer}, "changes .*0.self_attn.q_proj.weight"),
        ({"target_modules": [*named, "experts"]}, "target_modules: experts: no linear layer has this name"),
        ({"target_modules": r".*\.(q|k|v|o)_proj"}, "changes .*mlp.down_proj.weight"),
    ):
        edit(adapter / "adapter_config.json", **values)
        with pytest.raises(ValueError, match=message):
            merge(tiny_model, adapter, tmp_path / "model")
    edit(adapter / "adapter_config.json", target_modules=named)
    change_adapter(adapter, lambda t: [t.pop(Q + one + ".weight") for one in "AB"])
    with pytest.raises(ValueError, match="name model.layers.0.self_attn.q_proj.weight, for which the adapter has no"):
        merge(tiny_model, adapter, tmp_path / "model")
    edit(adapter / "adapter_config.json", layers_to_transform=[1])
    merge(tiny_model, adapter, tmp_path / "narrowed")
    edit(adapter / "adapter_config.json", target_modules=r".*\.(q|k|v|o|gate|up|down)_proj")
    merge(tiny_model, adapter, tmp_path / "by pattern")


def test_pickled_adapter_is_refused(tiny_model, tiny_adapter, tmp_path):
    adapter = copy(tiny_adapter, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.safetensors: is missing"):
        merge(tiny_model, adapter, tmp_path / "model")


def test_quantised_base_is_refused(tiny_model, tiny_adapter, tmp_path):
    base = copy(tiny_model, tmp_path / "base")
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match="quantization_config .bitsandbytes.; give the 16-bit model"):
        merge(base, tiny_adapter, tmp_path / "model")


def test_links_out_of_the_base_are_refused(tiny_model, tiny_adapter, tmp_path):
    base = copy(tiny_model, tmp_path / "base")
    (tmp_path / "secret").write_text("{}")
    (base / "generation_config.json").unlink()
    (base / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="generation_config.json: is a link that leads out"):
        merge(base, tiny_adapter, tmp_path / "model")


def test_a_disk_that_is_full_is_an_error_with_the_file(tiny_model, tiny_adapter, tmp_path):
    """A limit on the size of files ends the same calls as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.partial/model\.safetensors"):
            merge(tiny_model, tiny_adapter, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*tmp_path.iterdir()] == []


def test_overflow_of_float16_is_refused(make, tmp_path):
    base, adapter = make(dtype="float16", target_modules=["q_proj"])
    change_adapter(adapter, lambda t: t[Q + "B.weight"].fill_(1e6))
    with pytest.raises(ValueError, match="q_proj.weight: not finite in F16 once merged"):
        merge(base, adapter, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "model.partial").exists()


def test_a_folder_that_holds_something_is_not_overwritten(tiny_model, tiny_adapter, tmp_path):
    (tmp_path / "model").mkdir()
    merge(tiny_model, tiny_adapter, tmp_path / "model")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        merge(tiny_model, tiny_adapter, tmp_path / "model")


def test_command_writes_info_and_is_reused(tiny_model, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "r")
    for attempt in ("first", "second"):
        out = tmp_path / attempt
        paths = {"storage-root": tmp_path / "root", "base": tiny_model, "adapter": tiny_adapter}
        paths |= {name: out / name for name in ("model", "info", "metrics")}
        flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        merging.main(["--step", "merge_sft", *flags])
        assert json.loads((out / "info").read_text())["num_merged_tensors"] == 14
    records = read_records(str(tmp_path / "root"), "r")
    assert [one.status for one in records] == ["succeeded", "reused"]
    assert records[0].outputs["model"] == records[1].outputs["model"] == digests.digest(tmp_path / "second/model")
