"""What is wrong with a run before it starts: its storage, its data sets, its base model. Seconds, and no torch.

configuration, run parameters -> nothing, or one `ValueError` with the value and the remedy

Local files are read as the run would read them. What lies elsewhere is only looked for: the first steps read it.
"""

from pathlib import Path
from typing import Any

from posttrain import data, model, sources, storage
from posttrain.config import PipelineConfig

DATASETS = {"sft_dataset": "sft", "preference_dataset": "preference"}  # parameter -> kind of rows


def check(config: PipelineConfig, parameters: dict[str, Any]) -> None:
    """Raises ValueError at the first thing that would end the run later."""
    check_storage(parameters["storage_root"], config)
    check_base_model(parameters["base_model"], config)
    for name, kind in DATASETS.items():
        stage = config.stages.sft if kind == "sft" else config.stages.dpo
        if stage.enabled:
            check_dataset(parameters[name], config, name=name, kind=kind)
    if config.validation.red_team_prompts:
        check_red_team(config.validation.red_team_prompts)


def check_storage(storage_root: str, config: PipelineConfig) -> None:
    storage.check_allowed(storage_root, config.prefixes, name="storage_root")
    storage.check_writable(storage_root)
    if config.publish_root:
        storage.check_writable(config.publish_root)


def check_base_model(base_model: str, config: PipelineConfig) -> None:
    storage.check_allowed(base_model, config.prefixes, name="base_model")
    place = storage.kind(base_model)
    if place == "local":
        path = storage.local_path(base_model)
        if not path.is_dir():
            found = "is a file" if path.exists() else "is not there"
            raise ValueError(
                f"base_model: {base_model!r} {found}; give a model's folder, org/name[@revision], gs:// or s3://"
            )
        model.check_model_folder(path)
    elif place != "hub" and not storage.exists(storage.join(base_model.rstrip("/"), "config.json")):
        raise ValueError(f"base_model: {base_model!r} has no config.json; give the address of a model's folder")


def check_dataset(dataset: str, config: PipelineConfig, *, name: str, kind: str) -> None:
    if not dataset:
        raise ValueError(f"{name} is empty; give it with --{name.replace('_', '-')} or in the configuration")
    storage.check_allowed(dataset, config.prefixes, name=name)
    place = storage.kind(dataset)
    if place == "local":
        data.prepare(dataset, kind=kind, settings=config.data)
    elif place != "hub" and not storage.exists(dataset):
        raise ValueError(f"{name}: {dataset!r} is not there; give the address of one file")


def check_red_team(prompts: str) -> None:
    """The prompts are part of the configuration: no prefix is asked for."""
    if storage.is_remote(prompts):
        if not storage.exists(prompts):
            raise ValueError(f"validation.red_team_prompts: {prompts!r} is not there; give the address of one file")
        return
    for number, row in enumerate(sources.read_rows(str(Path(prompts))), start=1):
        if not row.get("prompt"):
            raise ValueError(f"{prompts}: row {number}: prompt is missing or empty; give each row a prompt")
