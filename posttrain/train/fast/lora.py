"""Computes LoRA's linear layers in fewer passes over memory, by adding the update in place, forward and backward.

peft model -> the same model, with the same losses and gradients up to rounding
"""

from functools import cache
from typing import Any


def in_fewer_passes(trainer_class: type) -> type:
    """Extends a trainer so that it fuses the LoRA layers which its constructor adds to its model."""

    class InFewerPasses(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            turn_on(self.model)

    return InFewerPasses


def turn_on(model: Any) -> None:
    """Fuses each linear layer that has a plain LoRA update without dropout.

    Each gets another class, not a method of its own, for which torch.compile would compile every layer by itself.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.__class__ = _fused_linear()


def _is_plain(module: Any) -> bool:
    """Tells whether the layer computes W x + scale * B A x, and nothing else."""
    import torch

    (adapter, *others), dropouts = module.lora_A, module.lora_dropout.values()
    has_bias = module.lora_B[adapter].bias is not None
    is_linear = type(module.base_layer) is torch.nn.Linear and not module.fan_in_fan_out
    has_dropout = any(not isinstance(dropout, torch.nn.Identity) for dropout in dropouts)
    return is_linear and not (others or has_bias or has_dropout or module.lora_variant)


@cache
def _fused_linear() -> type:
    """Defines peft's linear layer with a forward of its own, which calls peft's if the update is off or merged."""
    import torch
    from peft.tuners.lora import Linear

    adds_update = _adds_update()

    class FusedLinear(Linear):
        def forward(self, x, *args, **kwargs):
            ((adapter, scale),) = self.scaling.items()
            base, a, b = self.base_layer, self.lora_A[adapter].weight, self.lora_B[adapter].weight
            is_off = self.disable_adapters or self.merged or adapter not in self.active_adapters
            # In 16 bit the adapter, which peft keeps in 32, is cast as in peft's own under autocast; the input is not.
            is_cast = a.dtype != x.dtype
            if is_off or x.dtype != base.weight.dtype or (is_cast and not torch.is_autocast_enabled(x.device.type)):
                return super().forward(x, *args, **kwargs)
            return adds_update.apply(x, base.weight, base.bias, a.to(x.dtype), b.to(x.dtype), scale)

    return FusedLinear


@cache
def _adds_update() -> type:
    """Defines the autograd function x [..., in] -> [..., out]; the base's weight W [out, in] and bias are frozen."""
    import torch

    class AddsUpdate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, a, b, scale):
            rows = x.reshape(-1, x.shape[-1])
            hidden = rows @ a.T
            out = torch.nn.functional.linear(rows, weight, bias).addmm_(hidden, b.T, alpha=scale)
            ctx.save_for_backward(rows, weight, a, b, hidden)
            ctx.scale = scale
            return out.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx, grad):
            rows, weight, a, b, hidden = ctx.saved_tensors
            grad_rows = grad.reshape(-1, grad.shape[-1])
            grad_hidden = (grad_rows @ b).mul_(ctx.scale)
            grad_b = (grad_rows.T @ hidden).mul_(ctx.scale)
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = (grad_rows @ weight).addmm_(grad_hidden, a).view(*grad.shape[:-1], -1)
            return grad_x, None, None, grad_hidden.T @ rows, grad_b, None

    return AddsUpdate
