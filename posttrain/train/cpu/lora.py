"""LoRA's linear layers in fewer passes over memory: the update is added in place, to outputs and gradients alike.

a peft model -> the same model, with the same losses and gradients but for rounding
"""

from functools import cache, partial
from typing import Any


def in_fewer_passes(trainer_class: type) -> type:
    """Extends a trainer so that it fuses the LoRA layers which its constructor adds to its model."""

    class InFewerPasses(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            turn_on(self.model)

    return InFewerPasses


def turn_on(model: Any) -> None:
    """Has each linear layer with a plain LoRA update and no dropout compute both at once."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear) and _is_plain(module):
            module.forward = partial(_forward, module, module.forward)


def _is_plain(module: Any) -> bool:
    """Whether it gives W x + scale * B A x, and nothing else."""
    import torch

    (adapter, *others), dropouts = module.lora_A, module.lora_dropout.values()
    has_bias = module.lora_B[adapter].bias is not None
    is_linear = type(module.base_layer) is torch.nn.Linear and not module.fan_in_fan_out
    has_dropout = any(not isinstance(dropout, torch.nn.Identity) for dropout in dropouts)
    return is_linear and not (others or has_bias or has_dropout or module.lora_variant)


def _forward(module: Any, plain: Any, x: Any) -> Any:
    """What `plain`, peft's own, gives; that itself where the update is off (DPO's reference) or already merged."""
    ((adapter, scale),) = module.scaling.items()
    base, a, b = module.base_layer, module.lora_A[adapter].weight, module.lora_B[adapter].weight
    is_off = module.disable_adapters or module.merged or adapter not in module.active_adapters
    if is_off or not x.dtype == base.weight.dtype == a.dtype:
        return plain(x)
    return _adds_update().apply(x, base.weight, base.bias, a, b, scale)


@cache
def _adds_update() -> type:
    """Function of autograd, x [..., in] -> [..., out]; the base's weight W [out, in] and its bias are frozen."""
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
            of_out = grad.reshape(-1, grad.shape[-1])
            of_hidden = (of_out @ b).mul_(ctx.scale)
            of_b = (of_out.T @ hidden).mul_(ctx.scale)
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = (of_out @ weight).addmm_(of_hidden, a).view(*grad.shape[:-1], -1)
            return of_x, None, None, of_hidden.T @ rows, of_b, None

    return AddsUpdate
