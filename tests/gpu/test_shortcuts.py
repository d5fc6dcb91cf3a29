"""On a GPU every kernel of packed batches is taken, gives the gradients of padded ones, and so do Liger's kernels."""

from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.train.fast import attention, layers, lora, packing
from tests.gpu.card import Card
from tests.posttrain.train.fast.test_packing import model_of

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64, "vocab_size": 1000}
LENGTHS = [300, 17, 129, 256]  # of two chosen and two rejected sequences


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two pairs as DPO has them, whose prompts begin alike."""
    torch.manual_seed(0)
    columns, lengths = torch.arange(max(LENGTHS)), torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, 1000, (4, max(LENGTHS)))
    ids[2:, :10], ids[:, :5] = ids[:2, :10], 7
    attention_mask = (columns < lengths).long()
    return {"ids": ids * attention_mask, "mask": attention_mask, "answers": attention_mask * (columns >= 10)}


def adapted(card: Card, **settings) -> tuple[torch.nn.Module, torch.nn.Module]:
    model = model_of("Qwen2", **WIDE | settings).to(card.device, torch.bfloat16)
    return model, get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def gradients(net: torch.nn.Module, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    net.zero_grad()
    (states.float() * weights[..., None]).pow(2).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize(("kernel", "pairs"), [("varlen", False), ("flex", False), ("flex", True), ("rows", True)])
def test_packed_batches_have_the_gradients_of_padded_ones(batch, monkeypatch, card, kernel, pairs):
    model, net = adapted(card)
    ids, mask, answers = (batch[name].to(card.device) for name in ("ids", "mask", "answers"))
    with torch.autocast(card.device, torch.bfloat16):
        padded = gradients(net, net(input_ids=ids, attention_mask=mask, use_cache=False).logits, answers)
        card.take(monkeypatch, kernel)
        assert packing.turn_on(model, pairs=pairs) == kernel
        lora.turn_on(net)
        pack = packing.pack_pairs if pairs else packing.pack_rows
        packed = pack(batch["ids"], batch["mask"], batch["answers"], kernel=kernel).to(card.device)
        logits = net(**packed.model_inputs(ids), use_cache=False).logits
        # The prompt's last token, which a pair has twice, is no answer and has no weight.
        assert_close(gradients(net, logits, packed.take(answers)), padded)


def test_rows_of_one_length_have_the_logits_of_a_batch(monkeypatch, card):
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "varlen,dense")
    model, _ = adapted(card)
    ids = torch.randint(1, 1000, (3, 256))
    with torch.no_grad():
        expected = model(input_ids=ids.to(card.device), use_cache=False).logits.flatten(end_dim=1)
        card.take(monkeypatch, "varlen")
        assert packing.turn_on(model, pairs=False) == "varlen"
        packed = packing.pack_rows(ids, torch.ones_like(ids), torch.ones_like(ids), kernel="varlen").to(card.device)
        inputs = packed.model_inputs(ids.to(card.device))
        assert inputs["num_rows"] == 3
        assert_close(model(**inputs, use_cache=False).logits[0], expected)


def test_this_gpu_gets_every_kernel(card):
    expected = ["rows"] if card.device == "cpu" else ["varlen", "flex", "rows"]
    assert attention.kernels(model_of("Qwen2", **WIDE).config) == expected


@pytest.mark.skipif(not find_spec("liger_kernel"), reason="liger-kernel is not installed")
def test_liger_is_taken_and_has_the_logits_and_gradients_of_the_model(batch, card):
    model, net = adapted(card)
    ids, answers = batch["ids"][:1].to(card.device), batch["answers"][:1].to(card.device)
    with torch.autocast(card.device, torch.bfloat16):
        plain = gradients(net, net(input_ids=ids, use_cache=False).logits, answers)
        assert layers.use_liger(model)
        assert_close(gradients(net, net(input_ids=ids, use_cache=False).logits, answers), plain)


def test_compiled_layers_have_the_gradients_of_the_model(batch, monkeypatch, card):
    monkeypatch.setenv("POSTTRAIN_SHORTCUTS", "lora,compile")
    model, net = adapted(card, num_hidden_layers=3)
    ids, answers = batch["ids"][:1].to(card.device), batch["answers"][:1].to(card.device)
    with torch.autocast(card.device, torch.bfloat16):
        plain = gradients(net, net(input_ids=ids, use_cache=False).logits, answers)
        layers.compile_layers(model)
        lora.turn_on(net)
        assert_close(gradients(net, net(input_ids=ids, use_cache=False).logits, answers), plain)
