"""The one door to the shortcuts of training: it picks the trainer class of a model on this machine.

model, configuration -> trl's SFTTrainer or DPOTrainer, extended by each shortcut that suits both

    packing.py              batches without padding, and what rows share computed once; attention.py is theirs
    lora.py                 LoRA's linear layers in fewer passes over memory
    layers.py               on a GPU: all else of a layer in fewer passes, by Liger's kernels or torch.compile
    sparing_logits, here    DPO computes logits for the tokens of answers alone

unsloth patches the trainers, and FSDP deals the model out to the ranks, so neither gets a shortcut. The variable
POSTTRAIN_SHORTCUTS chooses among them; see chosen.py.
"""

import logging
from typing import Any, Literal

from posttrain.config import DpoConfig, SftConfig
from posttrain.train import backend
from posttrain.train.fast import layers, lora, packing
from posttrain.train.fast.chosen import may_take
from posttrain.train.overrides import overrides, require
from posttrain.train.shards import keeping_shards

logger = logging.getLogger(__name__)


def sft_trainer(model: Any, config: SftConfig) -> type:
    """Returns the `SFTTrainer` class for this model, and switches the model to what suits it.

    Raises:
        ValueError: the installed trl lacks a method that a shortcut overrides.
    """
    from trl import SFTTrainer

    if backend.is_sharded(config):
        return keeping_shards(SFTTrainer)
    if not backend.leaves_trainer_alone(config):
        return SFTTrainer
    trainer_class = lora.in_fewer_passes(SFTTrainer) if may_take("lora") else SFTTrainer
    loss = _sft_loss(model)
    kernel = packing.turn_on(model, pairs=False)
    compiled = layers.compile_layers(model)
    _tell({kernel: kernel, "lora": may_take("lora"), loss: loss != "nll", "compile": compiled})
    if loss == "liger":
        trainer_class = layers.keeping_no_logits(trainer_class)
    if kernel:
        trainer_class = packing.without_padding(trainer_class, kernel, loss=loss)
    return trainer_class


def _sft_loss(model: Any) -> Literal["nll", "chunked_nll", "liger"]:
    """Picks how SFT computes its loss, and gives the model Liger's kernels for that of Liger.

    On a GPU no loss that the model allows keeps logits, which may be the largest tensor of all.
    """
    if backend.current().device == "cpu":
        return "nll"
    return "liger" if layers.use_liger(model) else "chunked_nll"


def dpo_trainer(model: Any, config: DpoConfig) -> type:
    """Returns the `DPOTrainer` class for this model, and switches the model to what suits it.

    Raises:
        ValueError: the installed trl lacks a method that a shortcut overrides.
    """
    from trl import DPOTrainer

    if backend.is_sharded(config):
        return keeping_shards(DPOTrainer)
    if not backend.leaves_trainer_alone(config):
        return DPOTrainer
    trainer_class = lora.in_fewer_passes(DPOTrainer) if may_take("lora") else DPOTrainer
    liger, kernel = layers.use_liger(model), None
    spares_logits = may_take("logits") and not _has_router_loss(model)
    if spares_logits:
        if kernel := packing.turn_on(model, pairs=True):
            trainer_class = packing.sharing_prompts(trainer_class, kernel)
        trainer_class = sparing_logits(trainer_class)
    compiled = layers.compile_layers(model)
    _tell({kernel: kernel, "lora": may_take("lora"), "logits": spares_logits, "liger": liger, "compile": compiled})
    return trainer_class


def _tell(taken: dict[str | None, Any]) -> None:
    """Logs which shortcuts are taken. `lora` leaves out by itself the layers that it does not suit."""
    logger.info("shortcuts: %s", ", ".join(name for name, is_taken in taken.items() if is_taken) or "none")


def _has_router_loss(model: Any) -> bool:
    """Tells whether the loss needs the router's logits, which code that spares the model's logits does not return."""
    return hasattr(model.config.get_text_config(), "output_router_logits")


def sparing_logits(trainer_class: type) -> type:
    """Extends `DPOTrainer` so that only tokens of answers get logits, and never all of them at once.

    trl does this itself where `use_liger_kernel` is set. Its code needs no such kernel, but its constructor refuses the
    flag unless the package is installed, so the flag is set behind the constructor's back.
    """
    from trl.models.utils import _ForwardRedirection

    require(trainer_class, "_get_per_token_logps_and_entropies")  # the code behind the flag

    class SparesLogits(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._spare_logits()

        @overrides(trainer_class)
        def compute_ref_log_probs(self, model, inputs):
            self._spare_logits()  # trl's constructor calls this, unless the reference is read from a checkpoint
            return super().compute_ref_log_probs(model, inputs)

        def _spare_logits(self) -> None:
            self.use_liger_kernel, self._forward_redirection = True, _ForwardRedirection()

    return SparesLogits
