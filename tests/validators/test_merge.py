import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.task_api.tiny import build_tiny_model
from posttrain.config import MergeLimits
from posttrain.merge import merge
from posttrain.rows.chat import load_tokenizer
from posttrain.rows.formats import write_jsonl
from posttrain.verdict import Check, Verdict
from posttrain.weights.tensors import read_weight_file
from validators import merge as gate
from validators import parity
from validators.measuring import Timeouts, in_order

LIMITS = MergeLimits()
WEIGHTS = "model.safetensors"
GOOD = {
    "wrong_names": [],
    "wrong_shapes": [],
    "wrong_dtypes": [],
    "non_finite": [],
    "num_targets": 14,
    "num_changed_targets": 14,
    "unchanged_targets": [],
    "wrong_updates": [],
    "changed_others": [],
    "quantised": [],
    "changed_config": [],
    "changed_tokenizer": [],
    "changed_chat_template": [],
    "changed_generation_config": [],
    "changed_eos": [],
    "strange_files": [],
    "num_bytes": 100,
    "base_bytes": 100,
    "size_deviation": 0.0,
    "kl_of_rows": [0.01, 0.02] * 3,
    "num_agreeing_of_rows": [500, 498] * 3,
    "loss_difference_of_rows": [0.0, 1.0] * 3,
    "num_positions_of_rows": [500] * 6,
    "num_answer_tokens_of_rows": [500] * 6,
    "num_positions": 3000,
    "not_loaded": [],
    "logits_finite": True,
}
FILE_PARTS = ["weights_compared", "files_compared", "size_compared"]
MODEL_PARTS = ["adapter_loads", "updates_compared", "adapter_measured", "merged_measured", "loads_without_peft"]


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "model"
    merge(tiny_model, tiny_adapter, path)
    return path


@pytest.fixture
def copy(merged: Path, tmp_path: Path) -> Path:
    shutil.copytree(merged, tmp_path / "model")
    return tmp_path / "model"


def rows(num_rows: int = 6) -> list[dict]:
    return [
        {
            "id": str(i),
            "prompt": [{"role": "user", "content": f"task {i}, which is to be done with as much care as the others"}],
            "completion": [{"role": "assistant", "content": "it is done, and with care"}],
        }
        for i in range(num_rows)
    ]


def overwrite(path: Path, name: str, value: int) -> None:
    """Sets the first element of a bfloat16 tensor to the bits of `value`."""
    tensor = read_weight_file(path).tensors[name]
    with open(path, "r+b") as file:
        file.seek(tensor.start)
        file.write(np.uint16(value).tobytes())


def failed(numbers: dict) -> list[str]:
    return [check.name for check in judged(numbers) if check.status == "failed"]


def judged(numbers: dict) -> list[Check]:
    return gate.judge(gate.Numbers(**numbers), LIMITS)


def stopping(base: Path, adapter: Path, model: Path) -> dict[str, str]:
    """Checks that stop the run, by name, as the gate puts them together."""
    measured = gate.measure(base, adapter, model, rows(), timeouts=Timeouts(60))
    checks = [*gate.judge(measured.read(gate.Numbers), LIMITS), *measured.failures]
    return {check.name: check.status for check in checks if check.status != "passed"}


def swap(folder: Path, one: str, other: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def outputs(base: Path, adapter: Path, model: Path, rows: list[dict]) -> dict:
    sequences = parity.token_sequences(load_tokenizer(base), rows)
    reference = parity.log_probabilities(parity.load_adapted(base, adapter), sequences)
    return parity.compare_outputs(reference, parity.log_probabilities(parity.load(model), sequences), sequences)


def test_a_good_merge_passes(tiny_model, tiny_adapter, merged):
    measured = gate.measure(tiny_model, tiny_adapter, merged, rows(), timeouts=Timeouts(60))
    assert measured.failures == []
    numbers = measured.read(gate.Numbers)
    assert {check.status for check in gate.judge(numbers, LIMITS)} == {"passed"}
    assert list(measured.seconds) == [*FILE_PARTS, *MODEL_PARTS]
    numbers = gate.numbers_of(numbers)
    assert numbers["num_changed_targets"] == numbers["num_targets"] == 14
    assert numbers["size_deviation"] == 0
    assert numbers["adapter_loss"] == pytest.approx(numbers["merged_loss"], abs=0.01)


def test_a_tied_model_passes(tmp_path, tiny_adapter):
    tied = build_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    merge(tied, tiny_adapter, tmp_path / "merged")
    assert stopping(tied, tiny_adapter, tmp_path / "merged") == {}


def test_a_tied_base_whose_embedding_is_trained_gets_a_head_and_nothing_else_is_new(tmp_path, tiny_adapter):
    tied = build_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    adapter = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    embedding = load_file(tied / WEIGHTS)["model.embed_tokens.weight"] * 1.5
    tensors = load_file(adapter / "adapter_model.safetensors") | {
        "base_model.model.model.embed_tokens.weight": embedding
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"modules_to_save": ["embed_tokens"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    merge(tied, adapter, tmp_path / "merged")
    numbers = gate.compare_weights(tied, adapter, tmp_path / "merged")
    assert (numbers["wrong_names"], numbers["changed_others"], numbers["num_changed_targets"]) == ([], [], 15)
    assert gate.compare_files(tied, tmp_path / "merged")["changed_config"] == []


def test_kl_is_that_of_the_library_and_counts_every_position(tiny_model, tiny_adapter):
    numbers = outputs(tiny_model, tiny_adapter, tiny_model, rows())
    sequences = parity.token_sequences(load_tokenizer(tiny_model), rows())
    assert numbers["num_positions_of_rows"] == [len(ids) - 1 for ids, _ in sequences]
    reference = torch.cat(list(parity.log_probabilities(parity.load_adapted(tiny_model, tiny_adapter), sequences)))
    base = torch.cat(list(parity.log_probabilities(parity.load(tiny_model), sequences)))
    kl = torch.nn.functional.kl_div(base, reference, reduction="batchmean", log_target=True).item()
    assert sum(numbers["kl_of_rows"]) / numbers["num_positions"] == pytest.approx(kl, rel=1e-3)
    assert kl > 1e-4


def test_the_loss_is_that_of_the_answers_whatever_happens_to_prompts(tiny_model):
    [sequence] = parity.token_sequences(load_tokenizer(tiny_model), rows(1))
    scores = next(parity.log_probabilities(parity.load(tiny_model), [sequence]))
    num_prompt = len(sequence.ids) - 1 - sequence.num_answer
    others = [scores.clone(), scores.clone()]
    others[0][:num_prompt] -= 1.0
    others[1][num_prompt:] -= 1.0
    first, last = (parity.compare_outputs([scores], [other], [sequence]) for other in others)
    assert first["loss_difference_of_rows"] == [0.0]
    assert last["loss_difference_of_rows"] == [pytest.approx(sequence.num_answer)]
    assert last["merged_loss"] - last["adapter_loss"] == pytest.approx(1.0)


def test_preference_rows_are_compared_on_the_chosen_answer(tiny_model):
    pair = {"id": "a", "prompt": rows(1)[0]["prompt"], "rejected": [{"role": "assistant", "content": "no"}]}
    chosen = pair | {"chosen": rows(1)[0]["completion"]}
    tokenizer = load_tokenizer(tiny_model)
    assert parity.token_sequences(tokenizer, [chosen]) == parity.token_sequences(tokenizer, rows(1))


@pytest.mark.parametrize("is_tied", [True, False])
def test_ties_that_no_weights_account_for_are_a_change(is_tied, tmp_path, tiny_model, tiny_adapter):
    base = build_tiny_model(tmp_path / "tied", tie_word_embeddings=True) if is_tied else tiny_model
    merge(base, tiny_adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert gate.compare_files(base, tmp_path / "merged")["changed_config"] == []
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": not is_tied}))
    assert gate.compare_files(base, tmp_path / "merged")["changed_config"] == ["tie_word_embeddings"]


def test_a_key_that_only_one_of_the_two_has_is_a_change(tiny_model, copy, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"only_the_model": 1}))
    theirs = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(theirs | {"only_the_base": 1}))
    assert gate.compare_files(base, copy)["changed_config"] == ["only_the_base", "only_the_model"]


def test_ties_of_which_the_model_says_nothing_are_not_undone(tiny_model, copy, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    for folder, ties in ((base, {"tie_word_embeddings": True}), (copy, {})):
        settings = json.loads((folder / "config.json").read_text())
        settings.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(settings | ties))
    assert gate.compare_files(base, copy)["changed_config"] == ["tie_word_embeddings"]


def test_base_unchanged_fails(tiny_model, tiny_adapter):
    numbers = GOOD | gate.compare_weights(tiny_model, tiny_adapter, tiny_model)
    numbers["wrong_updates"] = parity.compare_updates(parity.load_adapted(tiny_model, tiny_adapter), tiny_model)
    assert failed(numbers) == ["num_changed_targets", "updates_applied", "updates_exact"]
    assert len(numbers["wrong_updates"]) == 14


def test_change_outside_the_targets_fails(tiny_model, tiny_adapter, copy):
    overwrite(copy / WEIGHTS, "model.norm.weight", 0x3F00)
    numbers = GOOD | gate.compare_weights(tiny_model, tiny_adapter, copy)
    assert numbers["changed_others"] == ["model.norm.weight"]
    assert failed(numbers) == ["others_untouched"]


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_nan_and_infinity_fail(bits, tiny_model, tiny_adapter, copy):
    overwrite(copy / WEIGHTS, "model.layers.0.mlp.up_proj.weight", bits)
    assert failed(GOOD | gate.compare_weights(tiny_model, tiny_adapter, copy)) == ["finite_weights"]


def test_other_dtype_and_missing_tensor_fail(tiny_model, tiny_adapter, copy):
    tensors = load_file(copy / WEIGHTS)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].to(
        torch.float16
    )
    tensors["model.layers.1.self_attn.q_proj.weight"] = tensors["model.layers.1.self_attn.q_proj.weight"][:32].clone()
    tensors["counts"] = torch.tensor([1])  # integers are finite
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    numbers = GOOD | gate.compare_weights(tiny_model, tiny_adapter, copy)
    assert (numbers["wrong_names"], numbers["num_changed_targets"]) == (["counts", "model.norm.weight"], 14)
    assert failed(numbers) == ["tensor_names", "tensor_shapes", "tensor_dtypes"]


def test_a_large_tensor_differs_wherever_it_does(tmp_path):
    places = []
    for number in range(2):
        tensor = torch.zeros((1 << 20) + 1)  # one element more than is read at once
        tensor[0] = number
        save_file({"w": tensor}, tmp_path / f"{number}.safetensors")
        places.append(
            (tmp_path / f"{number}.safetensors", *read_weight_file(tmp_path / f"{number}.safetensors").tensors.values())
        )
    assert gate._differ(*places)


def test_weights_of_twice_the_size_fail(tiny_model, copy):
    wide = {name: tensor.to(torch.float32) for name, tensor in load_file(copy / WEIGHTS).items()}
    save_file(wide, copy / WEIGHTS, metadata={"format": "pt"})
    numbers = GOOD | gate.compare_size(tiny_model, copy)
    assert numbers["size_deviation"] == 1
    assert failed(numbers) == ["size_deviation"]


def test_a_tied_base_that_stores_its_head_is_the_measure(tiny_model, copy, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    for folder in (base, copy):
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    assert gate.compare_size(base, copy)["size_deviation"] == 0
    tensors = load_file(base / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    assert gate.compare_size(base, copy)["size_deviation"] == 0  # the adapter has untied them


def test_poisoned_truncated_weights(tiny_model, tiny_adapter, copy):
    with open(copy / WEIGHTS, "r+b") as file:
        file.truncate(5000)
    stopped = stopping(tiny_model, tiny_adapter, copy)
    assert {name for name, status in stopped.items() if status == "failed"} == {
        "weights_compared",
        "size_compared",
        "files_compared",
    }
    assert stopped.items() >= dict.fromkeys((*MODEL_PARTS, "merge_kl", "loads_whole"), "not run").items()


def test_poisoned_nan_model_is_not_loaded(tiny_model, tiny_adapter, copy):
    overwrite(copy / WEIGHTS, "model.layers.0.mlp.up_proj.weight", 0x7FC0)
    stopped = stopping(tiny_model, tiny_adapter, copy)
    assert [name for name, status in stopped.items() if status == "failed"] == ["finite_weights"]
    assert stopped.items() >= dict.fromkeys((*MODEL_PARTS, "merge_kl", "loads_whole"), "not run").items()


@pytest.mark.parametrize("kind", ["self_attn.q_proj", "mlp.down_proj"])
def test_poisoned_one_tensor_swapped(tiny_model, tiny_adapter, copy, kind):
    swap(copy, *(f"model.layers.{layer}.{kind}.weight" for layer in (0, 1)))
    assert stopping(tiny_model, tiny_adapter, copy)["updates_exact"] == "failed"


def test_poisoned_embedding_and_head_exchanged(tiny_model, tiny_adapter, copy):
    swap(copy, "model.embed_tokens.weight", "lm_head.weight")
    stopped = stopping(tiny_model, tiny_adapter, copy)
    assert stopped["others_untouched"] == stopped["merge_kl"] == "failed"


def test_poisoned_merged_into_another_base_of_the_same_shape(tmp_path, tiny_model, tiny_adapter):
    other = build_tiny_model(tmp_path / "other", seed=1)
    merge(other, tiny_adapter, tmp_path / "merged")
    stopped = stopping(tiny_model, tiny_adapter, tmp_path / "merged")
    assert stopped["others_untouched"] == stopped["updates_exact"] == stopped["merge_agreement"] == "failed"


def test_poisoned_zero_adapter(tmp_path, tiny_model, tiny_adapter):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor.zero_() for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    merge(tiny_model, adapter, tmp_path / "merged")
    assert stopping(tiny_model, adapter, tmp_path / "merged") == {"num_changed_targets": "failed"}


def test_poisoned_wrong_eos(tiny_model, tiny_adapter, copy):
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(settings | {"eos_token_id": 0}))
    assert stopping(tiny_model, tiny_adapter, copy) == {
        "config_unchanged": "failed",
        "generation_config_unchanged": "failed",
        "eos_unchanged": "failed",
    }


def test_a_model_that_needs_peft_does_not_load(tiny_adapter):
    parity.load(tiny_adapter)  # with peft it does
    parts = {"loads_without_peft": lambda: parity.load_without_peft(tiny_adapter, rows(1))}
    [check] = in_order(parts, Timeouts(60)).failures
    assert check.name == "loads_without_peft" and "peft" in check.detail


def test_poisoned_adapter_left_in_the_folder(tiny_model, tiny_adapter, copy):
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # with peft it would be applied a second time
        shutil.copy(tiny_adapter / name, copy)
    assert stopping(tiny_model, tiny_adapter, copy).items() >= {"loads_without_peft": "failed"}.items()


def test_nothing_of_peft_is_there_to_be_imported(copy):
    def imports_peft():
        parity.load_without_peft(copy, rows(1))
        import peft.tuners.lora  # noqa: F401

    [check] = in_order({"peft": imports_peft}, Timeouts(60)).failures
    assert "ModuleNotFoundError" in check.detail


def test_a_tensor_that_is_drawn_anew_is_not_loaded(copy):
    tensors = load_file(copy / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    measured = in_order({"loads_without_peft": lambda: parity.load_without_peft(copy, rows(1))}, Timeouts(60))
    assert measured.numbers == {"not_loaded": ["lm_head.weight"], "logits_finite": True}
    assert failed(GOOD | measured.numbers) == ["loads_whole"]


@pytest.mark.parametrize(
    ("name", "key", "value", "check"),
    [
        ("config.json", "quantization_config", {"quant_method": "bitsandbytes"}, ["not_quantised"]),
        ("config.json", "rms_norm_eps", 1.0, ["config_unchanged"]),
        ("config.json", "eos_token_id", 0, ["config_unchanged", "eos_unchanged"]),
        ("generation_config.json", "eos_token_id", 0, ["generation_config_unchanged", "eos_unchanged"]),
        ("tokenizer_config.json", "eos_token", "<|endoftext|>", ["tokenizer_unchanged", "eos_unchanged"]),
    ],
)
def test_changed_files_fail(name, key, value, check, tiny_model, copy):
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | {key: value}))
    assert failed(GOOD | gate.compare_files(tiny_model, copy)) == check


@pytest.mark.parametrize("name", ["modeling_own.py", "pytorch_model.bin", "model-00002.safetensors", "more/notes.txt"])
def test_a_file_that_is_not_the_base_s_fails(name, tiny_model, copy):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    assert gate.compare_files(tiny_model, copy)["strange_files"] == [name]
    assert failed(GOOD | gate.compare_files(tiny_model, copy)) == ["no_other_files"]


def test_poisoned_second_weights_beside_the_judged_ones(tiny_model, copy):
    """The gate would judge the file that the index names; a loader that prefers a single file would serve another."""
    (copy / WEIGHTS).rename(copy / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(tiny_model / WEIGHTS), "model-00001-of-00001.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert gate.compare_files(tiny_model, copy)["strange_files"] == []
    shutil.copy(tiny_model / WEIGHTS, copy)
    assert gate.compare_files(tiny_model, copy)["strange_files"] == [WEIGHTS]


def test_a_licence_that_changed_fails(tiny_model, tmp_path, copy):
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "LICENSE").write_text("yours")
    assert gate.compare_files(base, copy)["strange_files"] == ["LICENSE"]


def test_poisoned_adapter_with_an_extra_tensor(tmp_path, tiny_model, tiny_adapter):
    """The merge takes it in; no training of the configured targets could have made it."""
    adapter = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    norm = load_file(tiny_model / WEIGHTS)["model.norm.weight"]
    tensors["base_model.model.model.norm.weight"] = norm * 1.01
    save_file(tensors, adapter / "adapter_model.safetensors")
    merge(tiny_model, adapter, tmp_path / "merged")
    numbers = gate.compare_weights(tiny_model, adapter, tmp_path / "merged")
    assert numbers["changed_others"] == ["model.norm.weight"]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"modules_to_save": ["norm"]}))
    assert gate.compare_weights(tiny_model, adapter, tmp_path / "merged")["changed_others"] == []


def test_lost_chat_template_fails(tiny_model, copy):
    (copy / "chat_template.jinja").unlink()
    assert failed(GOOD | gate.compare_files(tiny_model, copy)) == ["chat_template_unchanged"]


@pytest.mark.parametrize(
    ("number", "check", "status"),
    [
        ({"size_deviation": 0.021}, "size_deviation", "failed"),
        ({"wrong_updates": ["x"]}, "updates_exact", "failed"),
        ({"kl_of_rows": [5.5, 5.6] * 3}, "merge_kl", "failed"),
        ({"kl_of_rows": [1.0, 6.0] * 3}, "merge_kl", "undecided"),
        ({"kl_of_rows": [float("nan"), 0.0] * 3}, "merge_kl", "failed"),
        ({"kl_of_rows": None}, "merge_kl", "not run"),
        ({"num_agreeing_of_rows": [470, 480] * 3}, "merge_agreement", "failed"),
        ({"num_agreeing_of_rows": [480, 500] * 3}, "merge_agreement", "undecided"),
        ({"num_agreeing_of_rows": None}, "merge_agreement", "not run"),
        ({"loss_difference_of_rows": [11.0, 12.0] * 3}, "merge_loss_difference", "failed"),
        ({"not_loaded": ["lm_head.weight"]}, "loads_whole", "failed"),
        ({"logits_finite": False}, "logits_finite", "failed"),
        ({"logits_finite": None}, "logits_finite", "not run"),
    ],
)
def test_each_limit_can_stop_alone(number, check, status):
    stopped = {one.name: one.status for one in judged(GOOD | number) if one.status != "passed"}
    assert stopped == {check: status}


def test_good_numbers_pass_and_none_at_all_do_not():
    assert {check.status for check in judged(GOOD | {"num_changed_targets": 1})} == {"passed"}
    assert {check.status for check in judged({})} == {"not run"}
    assert len(judged({})) == len(judged(GOOD))
    details = {check.name: check.detail for check in judged(GOOD | {"num_targets": None, "num_bytes": None})}
    assert details["num_changed_targets"] == details["size_deviation"] == ""


def test_command_writes_a_passed_verdict(tiny_model, tiny_adapter, merged, tmp_path):
    write_jsonl(tmp_path / "eval.jsonl", rows())
    gate.main(
        [
            "--step",
            "check_sft_merge",
            "--storage-root",
            str(tmp_path / "root"),
            "--base",
            str(tiny_model),
            "--adapter",
            str(tiny_adapter),
            "--model",
            str(merged),
            "--eval",
            str(tmp_path / "eval.jsonl"),
            "--verdict",
            str(tmp_path / "v.json"),
            "--report",
            str(tmp_path / "r.html"),
            "--summary",
            str(tmp_path / "s.md"),
            "--metrics",
            str(tmp_path / "m.json"),
            "--passed",
            str(tmp_path / "passed"),
        ]
    )
    verdict = Verdict.read((tmp_path / "v.json").read_bytes())
    assert verdict.passed, [check.sentence for check in verdict.failed_checks]
    assert (tmp_path / "passed").read_text() == "true"
    assert set(verdict.subject) == {"base", "adapter", "model", "eval"}


def test_an_adapter_that_lost_a_layer_fails(tiny_model, tiny_adapter, merged, tmp_path):
    """A merge of it would be its base with what is left of it, tensor by tensor."""
    adapter = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    save_file(left, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="target_modules name .*layers.1.*, for which the adapter has no matrices"):
        gate.compare_weights(tiny_model, adapter, merged)


def test_a_module_to_save_is_named_whole(tiny_model, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    for saved, may_change in ((["head"], False), (["lm_head"], True), (["norm", "lm_head"], True)):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": saved}))
        assert ("lm_head.weight" in gate.targets(tiny_model, adapter)[1]) is may_change


def is_rounded(stored: torch.Tensor, expected: list[float], folder: Path) -> bool:
    save_file({"w": stored}, folder / "w.safetensors")
    (tensor,) = read_weight_file(folder / "w.safetensors").tensors.values()
    return parity._is_rounded((folder / "w.safetensors", tensor), torch.tensor(expected))


@pytest.mark.parametrize(
    ("dtype", "within", "off"), [("bfloat16", 2**-7, 2**-6), ("float16", 2**-10, 2**-9), ("float32", 1.8e-6, 2**-18)]
)
def test_what_is_stored_is_the_expected_value_up_to_the_rounding_of_its_dtype(dtype, within, off, tmp_path):
    expected, kind = torch.linspace(1, 2, 64).tolist(), getattr(torch, dtype)
    for share, is_same in ((0.0, True), (off, False)):
        assert is_rounded((torch.tensor(expected).double() * (1 + share)).to(kind), expected, tmp_path) is is_same
    assert is_rounded(torch.tensor([1 + within], dtype=kind), [1.0], tmp_path)


def test_what_is_next_to_nothing_is_rounded_by_the_largest_value(tmp_path):
    assert is_rounded(torch.zeros(2), [0.0, 0.0], tmp_path)
    assert is_rounded(torch.tensor([9e-7, 1.0]), [0.0, 1.0], tmp_path)
    assert not is_rounded(torch.tensor([2e-6, 1.0]), [0.0, 1.0], tmp_path)
    assert not is_rounded(torch.zeros(3), [0.0, 0.0], tmp_path)


def test_as_many_rows_are_compared_as_fit_and_of_a_long_one_its_end(tiny_model, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)
    length = len(parity.token_sequences(tokenizer, rows(1))[0].ids)
    for most, num in ((2 * length, 2), (2 * length - 1, 1), (1, 1)):
        monkeypatch.setattr(parity, "MAX_TOKENS", most)
        assert len(parity.token_sequences(tokenizer, rows(1) * 3)) == num
    long = rows(1)[0] | {"completion": [{"role": "assistant", "content": "and on " * 300}]}
    [(ids, num_answer)] = parity.token_sequences(tokenizer, [long])
    assert (len(ids), num_answer) == (256, 255)  # the first token is predicted by none
    with pytest.raises(ValueError, match="no held-out rows to compare the models on; raise data.eval_fraction"):
        parity.token_sequences(tokenizer, [])


def test_a_model_is_loaded_without_bars_and_measured_without_dropout(tiny_model):
    from transformers.utils import logging

    logging.enable_progress_bar()
    model = parity.load(tiny_model).train()
    assert not logging.is_progress_bar_enabled()
    next(parity.log_probabilities(model, [parity.Sequence([1, 2], 1)]))
    assert not model.training


def test_one_logit_that_is_not_finite_is_enough(copy, monkeypatch):
    overwrite(copy / WEIGHTS, "lm_head.weight", 0x7FC0)
    monkeypatch.setattr(parity.sys, "modules", dict(parity.sys.modules))
    assert parity.load_without_peft(copy, rows(1)) == {"not_loaded": [], "logits_finite": False}


def test_tensors_of_another_shape_are_not_loaded(tiny_model, monkeypatch):
    load = parity.load

    def with_mismatch(*arguments, **options):
        model, loading = load(*arguments, **options)
        return model, loading | {"mismatched_keys": [("lm_head.weight", (2, 2), (4, 4))]}

    monkeypatch.setattr(parity, "load", with_mismatch)
    monkeypatch.setattr(parity.sys, "modules", dict(parity.sys.modules))
    assert parity.load_without_peft(tiny_model, rows(1))["not_loaded"] == ["('lm_head.weight', (2, 2), (4, 4))"]
