"""LoRA in fewer passes gives the outputs and gradients of peft's own, and leaves alone what it does not know."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.train.fast import lora
from tests.posttrain.train.fast.test_packing import model_of


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8, bias=False), torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def lora_net(**settings) -> torch.nn.Module:
    torch.manual_seed(0)
    net = get_peft_model(Net(), LoraConfig(r=2, lora_alpha=6, target_modules=["first", "second"], **settings))
    for name, parameter in net.named_parameters():
        if "lora_B" in name:  # peft starts it at zero, which would hide A
            torch.nn.init.normal_(parameter)
    return net


def gradients(net: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = net(x)
    out.square().sum().backward()
    by_name = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.requires_grad}
    return by_name | {"x": x.grad, "out": out.detach()}


def layers(net: torch.nn.Module) -> list[torch.nn.Module]:
    return [net.base_model.model.first, net.base_model.model.second]


def is_fused(layer: torch.nn.Module) -> bool:
    return type(layer) is lora._fused_linear()


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"second": 1}}])
def test_outputs_and_gradients_are_peft_s(shape, settings):
    net, x = lora_net(**settings), torch.randn(shape)
    expected = gradients(net, x)
    lora.turn_on(net)
    assert all(map(is_fused, layers(net)))
    actual = gradients(net, x)
    assert actual.keys() == expected.keys() and len(actual) == 6
    for name, values in expected.items():
        assert torch.allclose(actual[name], values, rtol=1e-5, atol=1e-5), name


def test_an_input_without_a_gradient_is_given_none():
    net, x = lora_net(), torch.randn(5, 6)
    lora.turn_on(net)
    net(x).sum().backward()
    assert x.grad is None and layers(net)[0].lora_A["default"].weight.grad is not None


def test_switched_off_or_merged_it_is_peft_s_own():
    net, x = lora_net(), torch.randn(5, 6)
    with torch.no_grad():
        on = net(x)
        with net.disable_adapter():
            off = net(x)
        lora.turn_on(net)
        with net.disable_adapter():
            assert torch.equal(net(x), off)
        assert not torch.allclose(on, off)
        net.merge_adapter()
        assert torch.allclose(net(x), on, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_lora_are_left_to_peft(settings):
    net = lora_net(**settings)
    lora.turn_on(net)
    assert not any(map(is_fused, layers(net)))


def test_a_layer_with_two_adapters_is_left_to_peft():
    net = lora_net()
    net.add_adapter("reference", LoraConfig(r=2, target_modules=["first"]))
    lora.turn_on(net)
    assert [is_fused(layer) for layer in layers(net)] == [False, True]


@pytest.mark.parametrize("autocasts", [True, False])
def test_in_16_bit_under_autocast_the_adapter_stays_in_32(autocasts, monkeypatch):
    net, x = lora_net(), torch.randn(5, 6, dtype=torch.bfloat16)
    for layer in layers(net):
        layer.base_layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
        expected = gradients(net, x)
        lora.turn_on(net)
        fused, calls = lora._adds_update().apply, []
        monkeypatch.setattr(lora._adds_update(), "apply", lambda *args: calls.append(1) or fused(*args))
        actual = gradients(net, x)
    assert len(calls) == (2 if autocasts else 0)
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype
        assert torch.allclose(
            actual[name].float(), values.float(), rtol=5e-2, atol=5e-2 * values.float().abs().max()
        ), name


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_layers_share_the_code_that_torch_compiles():
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = model_of("Qwen2", num_hidden_layers=4)
    for layer in model.model.layers:
        layer.compile(backend=count)
    net = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    lora.turn_on(net)
    for length in (8, 12, 16):
        net(inputs_embeds=torch.randn(1, length, 32, requires_grad=True), use_cache=False)
    assert len(compiled) == 2  # of one length, and of any
