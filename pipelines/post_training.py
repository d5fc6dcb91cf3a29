"""The post-training line. Read this first.

preflight -> fetch + data -> SFT -> merge -> (pairs ->) DPO -> merge -> publish -> promote, with a gate after every
stage. What follows a `require` runs only if that gate passed; otherwise the run ends as FAILED with the verdict.
`report_run` runs in either case.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

import components as do
from pipelines.gate import gate
from pipelines.steps import Steps
from posttrain.config import PipelineConfig


def post_training(config: PipelineConfig):
    """Returns the graph for a configuration. With a stage off it is shorter: SFT only, or DPO only."""

    limits = dsl.PipelineConfig()

    @dsl.pipeline(
        name="post-training",
        description=f"{config.pipeline_id}: SFT, merge, DPO, merge, publish; gated",
        pipeline_config=limits,
    )
    def post_training(
        base_model: str = config.base_model,
        sft_dataset: str = config.sft_dataset,
        preference_dataset: str = config.preference_dataset,
        storage_root: str = config.storage_root,
        model_name: str = config.model_name or config.pipeline_id,
        overrides: dict = {},  # noqa: B006 (a pipeline's default, compiled into the YAML)
    ):
        steps = Steps(config, storage_root=storage_root, overrides=overrides)
        with dsl.ExitHandler(steps.run(do.report_run), name="line"), ExitStack() as line:
            named = {"base_model": base_model, "sft_dataset": sft_dataset, "preference_dataset": preference_dataset}
            inputs = fetch_and_check(steps, line, **named, model_name=model_name)
            train_and_publish(steps, line, inputs, model_name=model_name)
        steps.finish()
        limits.active_deadline_seconds = steps.deadline_seconds

    return post_training


@dataclass(frozen=True)
class Rows:
    """The rows of a data set."""

    train: PipelineChannel
    eval: PipelineChannel  # held out
    judged: PipelineChannel  # held out for the gates: equal to eval, unless a sweep has used some to choose by
    references: PipelineChannel | None = None  # of the training rows, where answers to them are sampled and judged


@dataclass(frozen=True)
class Inputs:
    """The base model and the rows, after they passed the data gate."""

    model: PipelineChannel
    tokenizer: PipelineChannel
    sft: Rows | None  # None if the stage is off
    preferences: Rows | None  # None if all pairs are sampled


def fetch_and_check(
    steps: Steps, line: ExitStack, *, base_model: str, sft_dataset: str, preference_dataset: str, model_name: str
) -> Inputs:
    """Writes preflight -> fetch + data, and enters the data gate, behind which `line` goes on."""
    run, (sft, pairs_sampled, pairs_brought) = steps.run, steps.has("sft", "pairs", "brought_pairs")
    check_data = do.check_data if sft and pairs_brought else do.check_sft_data if sft else do.check_preference_data
    named = {"base_model": base_model, "sft_dataset": sft_dataset, "preference_dataset": preference_dataset}
    ready = run(do.preflight, **named, model_name=model_name)
    base = run(do.fetch_model, base_model=base_model).after(ready).outputs
    rows = pairs = None
    splits = {}
    if sft:
        prepare = do.prepare_data_with_references if pairs_sampled else do.prepare_data
        read = run(prepare, "prepare_sft_data", dataset=sft_dataset, kind="sft").after(ready).outputs
        rows = Rows(read["train"], read["eval"], read["eval"], read["references"] if pairs_sampled else None)
        splits |= {"sft_train": rows.train, "sft_eval": rows.eval}
    if pairs_brought:
        read = run(do.prepare_data, "prepare_preferences", dataset=preference_dataset, kind="preference")
        read = read.after(ready).outputs
        pairs = Rows(read["train"], read["eval"], read["eval"])
        splits |= {"preference_train": pairs.train, "preference_eval": pairs.eval}
    line.enter_context(gate(steps, check_data, tokenizer=base["tokenizer"], **splits))
    return Inputs(base["model"], base["tokenizer"], rows, pairs)


def train_and_publish(
    steps: Steps, line: ExitStack, inputs: Inputs, *, model_name: str, after: tuple[dsl.PipelineTask, ...] = ()
) -> None:
    """Writes SFT -> merge -> (pairs ->) DPO -> merge -> publish -> promote, each with its gate.

    `after`: tasks to wait for.
    """
    run, (sft, merge, sampled, dpo) = steps.run, steps.has("sft", "merge", "pairs", "dpo")
    base = model = inputs.model
    rows, pairs = inputs.sft, inputs.preferences

    def require(check, name: str | None = None, **judged) -> None:
        line.enter_context(gate(steps, check, name, **judged))

    def merged(stage: str, base: PipelineChannel, adapter: PipelineChannel, *, eval: PipelineChannel):
        model = run(do.merge_adapter, f"merge_{stage}", base=base, adapter=adapter).outputs["model"]
        require(do.check_merge, f"check_{stage}_merge", base=base, adapter=adapter, model=model, eval=eval)
        return model

    if sft:
        trained = run(do.train_sft, base=base, train=rows.train, eval=rows.eval).after(*after).outputs
        model = trained["adapter"]
        require(do.check_sft, base=base, adapter=model, training=trained["metrics"], eval=rows.judged)
    if sft and merge:
        model = merged("sft", base, model, eval=rows.judged)
    if sft and merge and not dpo:
        require(do.check_safety, before=base, model=model, sft_eval=rows.judged)
    if sampled:
        pairs = sample_pairs(steps, line, inputs, model)
    if dpo:
        before, after = model, () if sft else after
        trained = run(do.train_dpo, model=before, train=pairs.train, eval=pairs.eval).after(*after).outputs
        model = merged("dpo", before, trained["adapter"], eval=pairs.judged)
        judged = {"before": before, "model": model, "training": trained["metrics"], "preference_eval": pairs.judged}
        judged |= {"base": base, "sft_eval": rows.judged} if sft else {}
        require(for_rows(steps, "check_alignment"), "check_alignment", **judged)
    held_out = {"sft_eval": rows.judged} if sft else {}
    held_out |= {"preference_eval": pairs.judged} if dpo else {}
    publish(steps, line, {"base": base, "model": model}, held_out, model_name=model_name)


def sample_pairs(steps: Steps, line: ExitStack, inputs: Inputs, model: PipelineChannel) -> Rows:
    """Writes the sampling of pairs and its gate, and returns the pairs; any that were brought are among them."""
    rows, pairs = inputs.sft, inputs.preferences
    sources = {"model": model, "rows": rows.train, "references": rows.references}
    if pairs:
        made = steps.run(do.sample_pairs, **sources, brought=pairs.train).outputs
        pairs = replace(pairs, train=made["train"])
    else:
        made = steps.run(do.sample_pairs_alone, "sample_pairs", **sources, held_out=rows.judged).outputs
        pairs = Rows(made["train"], made["eval"], made["eval"])
    judged = {"sft_eval": rows.judged, "train": pairs.train, "eval": pairs.judged}
    line.enter_context(gate(steps, do.check_pairs, tokenizer=inputs.tokenizer, **judged, sampling=made["metrics"]))
    return pairs


def publish(
    steps: Steps,
    line: ExitStack,
    models: dict[str, PipelineChannel],
    held_out: dict[str, PipelineChannel],
    *,
    model_name: str,
) -> None:
    """Writes (export ->) publish (-> register) -> promote, with its gates. `models`: the base and the result."""
    model, exported = models["model"], {}
    if steps.config.export:
        exported = {"export": steps.run(do.export_model, model=model).outputs["export"]}
        check = for_rows(steps, "check_export")
        line.enter_context(gate(steps, check, "check_export", model=model, **exported, **held_out))
    published = do.publish_exported_model if exported else do.publish_model
    receipt = steps.run(published, "publish_model", model=model, **exported, model_name=model_name).outputs["receipt"]
    registered = [steps.run(do.register_model, receipt=receipt)] if steps.config.registries else []
    if steps.config.promote:
        is_full = any(steps.has("merge", "dpo"))
        judged = {"receipt": receipt, "model": model} | held_out | ({} if is_full else {"base": models["base"]})
        check = for_rows(steps, "check_champion") if is_full else do.check_adapter_champion
        line.enter_context(gate(steps, check, "check_champion", after=registered, **judged))
        steps.run(do.promote_model, receipt=receipt)


def for_rows(steps: Steps, gate: str):
    """Returns the component of a gate that takes the kinds of held-out rows which the graph has."""
    sft, dpo = steps.has("sft", "dpo")
    kinds = "" if sft and dpo else "sft_" if sft else "preference_"
    return getattr(do, gate.replace("check_", f"check_{kinds}"))
