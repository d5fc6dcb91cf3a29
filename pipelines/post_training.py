"""The post-training line. Read this first.

preflight -> fetch + data -> SFT -> merge -> DPO -> merge -> publish, with a gate after every stage. What stands below a
`require` runs only if that gate passed; if it did not, the run ends FAILED with the verdict. `report_run` runs at every
end.
"""

from contextlib import ExitStack

from kfp import dsl

import components as do
from pipelines.gate import gate
from pipelines.steps import Steps
from posttrain.config import PipelineConfig


def post_training(config: PipelineConfig):
    """The graph for a configuration. A stage that is off gives a shorter one: SFT only, or DPO only."""
    sft, merge, dpo = (getattr(config.stages, stage).enabled for stage in ("sft", "merge", "dpo"))
    check_data = do.check_data if sft and dpo else do.check_sft_data if sft else do.check_preference_data

    @dsl.pipeline(name="post-training", description=f"{config.pipeline_id}: SFT, merge, DPO, merge, publish; gated")
    def post_training(
        base_model: str = config.base_model,
        sft_dataset: str = config.sft_dataset,
        preference_dataset: str = config.preference_dataset,
        storage_root: str = config.storage_root,
        model_name: str = config.model_name or config.pipeline_id,
        overrides: dict = {},  # noqa: B006 (a pipeline's default, compiled into the YAML)
    ):
        steps = Steps(config, storage_root=storage_root, overrides=overrides)
        run = steps.run

        with dsl.ExitHandler(run(do.report_run), name="line"), ExitStack() as line:

            def require(check, name: str | None = None, **inputs) -> None:
                line.enter_context(gate(steps, check, name, **inputs))

            ready = run(
                do.preflight, base_model=base_model, sft_dataset=sft_dataset, preference_dataset=preference_dataset
            )
            base = run(do.fetch_model, base_model=base_model).after(ready).outputs
            model, splits = base["model"], {}
            if sft:
                read = run(do.prepare_data, "prepare_sft_data", dataset=sft_dataset, kind="sft")
                rows = read.after(ready).outputs
                splits |= {"sft_train": rows["train"], "sft_eval": rows["eval"]}
            if dpo:
                read = run(do.prepare_data, "prepare_preferences", dataset=preference_dataset, kind="preference")
                pairs = read.after(ready).outputs
                splits |= {"preference_train": pairs["train"], "preference_eval": pairs["eval"]}
            require(check_data, tokenizer=base["tokenizer"], **splits)

            if sft:
                trained = run(do.train_sft, base=model, train=rows["train"], eval=rows["eval"]).outputs
                adapter = trained["adapter"]
                require(do.check_sft, base=model, adapter=adapter, training=trained["metrics"], eval=rows["eval"])
                before, model = model, adapter
            if sft and merge:
                model = run(do.merge_adapter, "merge_sft", base=before, adapter=adapter).outputs["model"]
                merged = {"base": before, "adapter": adapter, "model": model}
                require(do.check_merge, "check_sft_merge", **merged, eval=rows["eval"])
            if sft and merge and not dpo:
                require(do.check_safety, before=before, model=model, sft_eval=rows["eval"])
            if dpo:
                before = model
                trained = run(do.train_dpo, model=before, train=pairs["train"], eval=pairs["eval"]).outputs
                adapter = trained["adapter"]
                model = run(do.merge_adapter, "merge_dpo", base=before, adapter=adapter).outputs["model"]
                merged = {"base": before, "adapter": adapter, "model": model}
                require(do.check_merge, "check_dpo_merge", **merged, eval=pairs["eval"])
                judged = {"before": before, "model": model, "training": trained["metrics"]}
                if sft:
                    judged |= {"base": base["model"], "sft_eval": rows["eval"]}
                check_alignment = do.check_alignment if sft else do.check_preference_alignment
                require(check_alignment, "check_alignment", **judged, preference_eval=pairs["eval"])

            run(do.publish_model, model=model, model_name=model_name)

    return post_training
