"""Computes norms, rotations and gates of a model's layers in fewer passes over a GPU's memory.

model -> the same model, with the same logits up to rounding

    liger      Liger's Triton kernels, and with them a loss that keeps no logits: where liger-kernel is installed and
               knows the model
    compile    torch.compile of one layer, whose code all layers share: minutes at the first steps
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from posttrain.train import backend
from posttrain.train.fast import attention, same
from posttrain.train.fast.chosen import may_take

LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "fused_linear_cross_entropy": True}
MAX_VARIANTS = 32  # of a compiled layer: with and without gradients, adapter, dropout, for fixed and varying lengths


def use_liger(model: Any) -> bool:
    """Gives the model Liger's kernels if it computes the same with them; returns whether it did."""
    if not (_compiles("liger") and find_spec("liger_kernel")):
        return False
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    undo, expected = _remembered(model), _logits(model)
    _apply_liger_kernel_to_instance(model=model, **LIGER)
    is_same = same.is_same(model, _logits(model), expected, shortcut="liger")
    if not is_same:
        undo()
    return is_same


def _logits(model: Any) -> Any:
    """Computes the logits of two short rows by the model's first layers."""
    import torch

    input_ids = torch.arange(2 * 16, device=model.device).view(2, 16) % model.config.vocab_size
    with torch.no_grad(), same.first_layers(model):
        return model(input_ids=input_ids, use_cache=False).logits


def _remembered(model: Any) -> Callable[[], None]:
    """Returns a function that takes back what Liger changes: forward methods, and names in the model's own module."""
    names = vars(sys.modules[type(model).__module__])
    named = dict(names)
    forwards = {module: vars(module).get("forward") for module in model.modules()}

    def undo() -> None:
        names.update(named)
        for module, forward in forwards.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward

    return undo


def keeping_no_logits(trainer_class: type) -> type:
    """Extends `SFTTrainer` so that it takes its loss from Liger, whose kernels the model has."""

    class KeepsNoLogits(trainer_class):
        def __init__(self, *, args, **kwargs):
            args.use_liger_kernel, args.liger_kernel_config = True, LIGER
            super().__init__(args=args, **kwargs)

    return KeepsNoLogits


def compile_layers(model: Any) -> bool:
    """Has the model's layers compiled when they first run, if that was asked for and can be done; tells whether."""
    import torch

    if not _compiles("compile"):
        return False
    torch._dynamo.config.recompile_limit = MAX_VARIANTS
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    for layer in layers[1:]:  # the first one's input has no gradient, for which it would be compiled once more
        layer.compile()
    return True


def _compiles(shortcut: str) -> bool:
    return backend.current().device == "cuda" and may_take(shortcut) and attention.can_compile()
