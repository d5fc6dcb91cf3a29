"""Settings of the files in which the judged model is served."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from posttrain.config.section import Fraction, Section

GGUF = ("f16", "bf16", "q8_0", "q4_k_m")  # formats of llama.cpp; the others are vLLM's


class Export(Section):
    """The model in the files of serving engines, each judged in its own engine and published beside the model."""

    # f16, bf16, q8_0, q4_k_m: a GGUF file, for llama.cpp; fp8: a folder, for vLLM
    formats: Annotated[list[Literal["f16", "bf16", "q8_0", "q4_k_m", "fp8"]], Field(min_length=1)]
    # decrease of answer accuracy, and of the share of answers that stop, against the merged model in transformers
    max_export_drop: Fraction = 0.1
    # nats per token by which the held-out loss may exceed the merged model's; judged if answer_match is none
    max_export_loss_rise: Annotated[float, Field(ge=0)] = 0.1

    @field_validator("formats")
    @classmethod
    def _formats_are_named_once(cls, formats):
        if len(set(formats)) < len(formats):
            raise ValueError(f"{formats} names a format twice: remove one of them")
        return formats

    @property
    def gguf(self) -> list[str]:
        """The formats that are GGUF files."""
        return [kind for kind in self.formats if kind in GGUF]
