"""The one door to the shortcuts of training: it picks the trainer class of a model on this machine.

model, configuration -> trl's SFTTrainer or DPOTrainer, extended by each shortcut that suits both

    packing.py              on a CPU: batches without padding, and what rows share computed once
    lora.py                 on a CPU: LoRA's linear layers in fewer passes over memory
    sparing_logits, here    on any device: DPO computes logits for the tokens of answers alone

The first two are measured on a CPU only. unsloth patches the trainers, and FSDP deals the model out to the ranks, so
neither gets a shortcut.
"""

from typing import Any

from posttrain.config import DpoConfig, LoraTraining, SftConfig
from posttrain.train import backend
from posttrain.train.cpu import lora, packing
from posttrain.train.overrides import overrides, require


def sft_trainer(model: Any, config: SftConfig) -> type:
    """Returns the `SFTTrainer` class for this model, and switches the model to packed batches if they suit it.

    Raises:
        ValueError: the installed trl lacks a method that a shortcut overrides.
    """
    from trl import SFTTrainer

    trainer_class = SFTTrainer
    if _is_plain_on_cpu(config):
        trainer_class = lora.in_fewer_passes(trainer_class)
        if packing.turn_on(model):
            trainer_class = packing.without_padding(trainer_class)
    return trainer_class


def dpo_trainer(model: Any, config: DpoConfig) -> type:
    """Returns the `DPOTrainer` class for this model, and switches the model to packed batches if they suit it.

    Raises:
        ValueError: the installed trl lacks a method that a shortcut overrides.
    """
    from trl import DPOTrainer

    trainer_class = DPOTrainer
    if _is_plain_on_cpu(config):
        trainer_class = lora.in_fewer_passes(trainer_class)
        if packing.turn_on(model):
            trainer_class = packing.sharing_prompts(trainer_class)
    if backend.leaves_trainer_alone(config):
        trainer_class = sparing_logits(trainer_class)
    return trainer_class


def _is_plain_on_cpu(config: LoraTraining) -> bool:
    return backend.current().device == "cpu" and backend.leaves_trainer_alone(config)


def sparing_logits(trainer_class: type) -> type:
    """Extends `DPOTrainer` so that only tokens of answers get logits, and never all of them at once.

    trl does this itself where `use_liger_kernel` is set. Its code needs no such kernel, but its constructor refuses the
    flag unless the package is installed, so the flag is set behind the constructor's back.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
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
            has_adapted_head = isinstance(self.model.get_output_embeddings(), BaseTunerLayer)
            if not (has_adapted_head or self.aux_loss_enabled):  # trl refuses both
                self.use_liger_kernel, self._forward_redirection = True, _ForwardRedirection()

    return SparesLogits
