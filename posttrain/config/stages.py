"""Settings of the stages: how SFT and DPO train, how the data is split, which stages are on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.mixture import DataSets
from posttrain.config.section import Count, Positive, Section

TargetModules = list[str] | Literal["auto", "attention", "all-linear"]


class KeepBest(Section):
    """Selection of the checkpoint that a training keeps, by right answers to training rows set aside for it."""

    num_checkpoints: Count = 4  # checkpoints that are judged, evenly spaced; the last is the end
    num_rows: Count = 32  # prompts set aside from the training rows to judge them on
    patience: Count | None = None  # checkpoints in a row without a gain that end the training; null: no early end


class LoraTraining(Section):
    """Settings that SFT and DPO share. A subclass gives the defaults."""

    max_seq_length: Count = 2048  # tokens; longer rows are counted and left out, never cut
    lora_r: Count  # rank of the adapter
    lora_alpha: Count  # the adapter is scaled by lora_alpha / lora_r
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]  # probability of dropout in the adapter
    # linear layers that get an adapter, by name; auto: all of them or, with fused experts, those of attention
    target_modules: TargetModules
    epochs: Positive  # passes over the training rows
    batch_size: Count  # rows per device and micro-batch
    gradient_accumulation: Count  # micro-batches per optimizer step, shared by the GPUs: a multiple of their number
    learning_rate: Annotated[float, Field(gt=0, lt=1)]  # peak; decays to 0 on a cosine
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps that warm up
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # weight decay of AdamW
    max_grad_norm: Positive = 1.0  # gradients are clipped to this norm
    save_steps: Count  # optimizer steps between checkpoints
    save_total_limit: Count = 3  # number of checkpoints kept
    # recompute activations: less memory, about a third slower; auto: where the training would not fit without
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    parallelism: Literal["ddp", "fsdp"] = "ddp"  # on several GPUs: ddp, a model on each; fsdp, one sharded over all
    # also resume on another number of GPUs; the weights are then not those of an undisturbed run
    elastic: bool = False
    seed: Annotated[int, Field(ge=0)] = 42  # seed of the adapter's weights, dropout and row order
    # keep the checkpoint with the most right answers, by validation.answer_match; null: the last one; {} for defaults
    keep_best: KeepBest | None = None


class SftConfig(LoraTraining):
    """Supervised fine-tuning with LoRA."""

    load_in_4bit: bool = False  # on a GPU: quantise the base at load (QLoRA); merging uses the 16-bit weights
    lora_r: Count = 16
    lora_alpha: Count = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: TargetModules = "auto"
    epochs: Positive = 3
    batch_size: Count = 4
    gradient_accumulation: Count = 4
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    save_steps: Count = 100

    @model_validator(mode="after")
    def _four_bits_are_not_sharded(self):
        if self.load_in_4bit and self.parallelism == "fsdp":
            raise ValueError("load_in_4bit with parallelism fsdp is not supported: a 4-bit base fits one GPU, use ddp")
        return self


class DpoConfig(LoraTraining):
    """Direct preference optimization (arXiv:2305.18290) with LoRA, starting from the merged SFT model."""

    lora_r: Count = 8
    lora_alpha: Count = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: TargetModules = "attention"
    epochs: Positive = 1
    batch_size: Count = 2
    gradient_accumulation: Count = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    beta: Positive = 0.1  # strength of the pull towards the model that training starts from
    # losses to sum; sft is the negative log-likelihood of the chosen answer
    loss_type: list[Literal["sigmoid", "ipo", "hinge", "sft"]] = ["sigmoid"]
    loss_weights: list[Positive] | None = None  # weight of each loss_type; null: 1.0 each
    save_steps: Count = 50

    @model_validator(mode="after")
    def _one_weight_per_loss(self):
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for {len(self.loss_type)} loss types: give one each"
            )
        return self


class PairsConfig(Section):
    """Preference pairs from the merged SFT model's own answers: the best of several against the worst."""

    num_answers: Annotated[int, Field(ge=2)] = 8  # answers sampled for each prompt
    temperature: Positive = 1.0  # temperature of sampling
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # nucleus of sampling (arXiv:1904.09751); 1: every token
    seed: Annotated[int, Field(ge=0)] = 42  # seed of sampling
    # difference of the scores of chosen and rejected, each from 0 to 1, below which a pair is dropped
    min_margin: Annotated[float, Field(gt=0, le=1)] = 0.5
    # model that scores the answers if validation.answer_match is none: a ...ForSequenceClassification with one label,
    # in safetensors; Hub id, gs://, s3:// or folder; null: validation.judge scores them
    reward_model: str | None = None
    min_reward_margin: Positive = 1.0  # the same as min_margin with reward_model, in that model's own units
    use_reference: bool = False  # where no sampled answer is right, the row's own answer is the chosen one
    # SFT rows whose prompts are sampled: path, gs://, s3:// or Hub id, or a list; empty: the rows that SFT trains on
    prompts: DataSets = ""
    max_prompts: Count | None = None  # most prompts to sample, spread evenly over the rows; null: all
    # largest share of sampled pairs in training beside those of preference_dataset; more are left out; null: no limit
    max_sampled_share: Annotated[float, Field(gt=0, lt=1)] | None = None

    @property
    def least_margin(self) -> float:
        """The margin below which a pair is dropped, in the units of the scores."""
        return self.min_reward_margin if self.reward_model else self.min_margin

    @model_validator(mode="after")
    def _a_reference_has_no_reward(self):
        if self.reward_model and self.use_reference:
            raise ValueError("reward_model and use_reference: the row's own answer has no reward; give one of them")
        return self


class DataConfig(Section):
    """Settings for reading and splitting rows."""

    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of prompts held out, by hash of the prompt
    seed: Annotated[int, Field(ge=0)] = 42  # seed for drawing rows of data sets with a fractional weight
    # columns and message keys to leave out, even if they mean something; other keys of unknown meaning are errors
    ignored_keys: list[str] = []
    hub_split: str = "train"  # split of data sets on the Hub
    hub_subset: str | None = None  # configuration of data sets on the Hub that have several


class Stage(Section):
    """One stage of the pipeline."""

    enabled: bool = True  # false: the graph is compiled without this stage
    # YAML file with the stage's settings, beside a pipeline configuration or in the working directory
    config_path: str | None = None
    timeout_minutes: Count  # minutes for one attempt
    retry_count: Annotated[int, Field(ge=0)]  # further attempts, in the container, after a failure that may pass


class SftStage(Stage):
    """The SFT stage with its defaults."""

    timeout_minutes: Count = 180
    retry_count: Annotated[int, Field(ge=0)] = 2


class MergeStage(Stage):
    """The merge stage with its defaults."""

    timeout_minutes: Count = 30
    retry_count: Annotated[int, Field(ge=0)] = 1


class PairsStage(Stage):
    """The stage that samples preference pairs from the merged SFT model, with its defaults."""

    enabled: bool = False  # true: DPO also trains on pairs that are sampled from the merged SFT model
    alone: bool = False  # true: DPO uses only sampled pairs, held-out ones included, and no preference_dataset
    timeout_minutes: Count = 120
    retry_count: Annotated[int, Field(ge=0)] = 1


class DpoStage(Stage):
    """The DPO stage with its defaults."""

    timeout_minutes: Count = 120
    retry_count: Annotated[int, Field(ge=0)] = 2


class Stages(Section):
    """The stages, in order."""

    sft: SftStage = SftStage()
    merge: MergeStage = MergeStage()
    # Left out where it is off, so that no step of today's graph does its work again.
    pairs: PairsStage = Field(PairsStage(), exclude_if=lambda stage: not stage.enabled)
    dpo: DpoStage = DpoStage()

    @model_validator(mode="after")
    def _is_a_known_shape(self):
        if not (self.sft.enabled or self.dpo.enabled):
            raise ValueError("stages: sft and dpo are both off: enable one")
        if self.dpo.enabled and not self.merge.enabled:
            raise ValueError("stages: merge is off but dpo is on: dpo trains and publishes merged models; enable merge")
        if self.pairs.enabled and not (self.sft.enabled and self.dpo.enabled):
            off = "dpo" if self.sft.enabled else "sft"
            raise ValueError(
                f"stages: pairs is on but {off} is off: pairs are sampled from the merged SFT model and dpo trains on "
                f"them; enable {off}, or disable pairs"
            )
        return self

    def has(self, name: str) -> bool:
        """Tells whether a stage is on; `brought_pairs`: whether there is a data set of preference pairs."""
        if name == "brought_pairs":
            return self.dpo.enabled and not (self.pairs.enabled and self.pairs.alone)
        return getattr(self, name).enabled


def check_whole(config: LoraTraining, *, section: str) -> None:
    """Refuses to keep the best checkpoint of a model that is sharded: the first GPU judges, with the whole of it.

    Raises:
        ValueError: naming section, key and remedy.
    """
    if config.keep_best and config.parallelism == "fsdp":
        raise ValueError(
            f"{section}.keep_best judges the whole model on the first GPU, and {section}.parallelism = fsdp gives it "
            "only a part: set parallelism to ddp, or keep_best to null"
        )


def check_dealt(config: LoraTraining, num_processes: int, *, section: str) -> None:
    """Refuses micro-batches that the GPUs cannot share evenly: an optimizer step is as many rows on any number of them.

    Raises:
        ValueError: naming section, key and remedy.
    """
    if num_processes > 1 and config.gradient_accumulation % num_processes:
        raise ValueError(
            f"{section}.gradient_accumulation = {config.gradient_accumulation} cannot be shared by {num_processes} "
            f"GPUs: give a multiple of {num_processes}; batch_size * gradient_accumulation rows are one optimizer step"
        )
