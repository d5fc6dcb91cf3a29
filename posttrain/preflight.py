"""What is wrong with a run before it starts: its storage, its data sets, models and prompts. Seconds, and no torch.

configuration, run parameters -> nothing, or one `ValueError` with the value and the remedy

Local files are read as the run would read them. What lies elsewhere is only looked for: the first steps read it.
"""

from typing import Any

from posttrain import data, model, prompts, storage
from posttrain.config import PipelineConfig

DATASETS = {"sft_dataset": "sft", "preference_dataset": "preference"}  # parameter -> kind of rows


def check(config: PipelineConfig, parameters: dict[str, Any]) -> None:
    """Raises ValueError at the first thing that would end the run later."""
    check_storage(parameters["storage_root"], config)
    check_model(parameters["base_model"], config, name="base_model")
    for name in _datasets(config):
        check_dataset(parameters[name], config, name=name, kind=DATASETS[name])
    for key, uri in prompts.given(config.validation).items():
        check_prompts(uri, config, key=key)
    if config.validation.judge == "model" and config.validation.judge_model:
        check_model(config.validation.judge_model, config, name="validation.judge_model")


def check_for_cluster(config: PipelineConfig, parameters: dict[str, Any]) -> None:
    """Raises ValueError for what no pod could read. What is remote is not looked for: pods may see more than we."""
    datasets = {name: parameters[name] for name in _datasets(config)}
    for name, dataset in datasets.items():
        check_given(dataset, name=name)
    validation = config.validation
    run_time = {name: parameters[name] for name in ("base_model", "storage_root")} | datasets
    others = {f"validation.{key}": uri for key, uri in prompts.given(validation).items()}
    others |= {"publish_root": config.publish_root, "validation.judge_model": validation.judge_model}
    addresses = {name: uri for name, uri in (run_time | others).items() if uri}
    local = [f"{name}={uri!r}" for name, uri in addresses.items() if storage.kind(uri) == "local"]
    if local:
        raise ValueError(
            f"{', '.join(local)}: on this machine, where no pod can see it; "
            "copy it to the cluster's storage and give its gs:// or s3:// address"
        )
    for name, uri in run_time.items():
        storage.check_allowed(uri, config.prefixes, name=name)


def check_storage(storage_root: str, config: PipelineConfig) -> None:
    storage.check_allowed(storage_root, config.prefixes, name="storage_root")
    storage.check_writable(storage_root)
    if config.publish_root:
        storage.check_writable(config.publish_root)


def check_model(uri: str, config: PipelineConfig, *, name: str) -> None:
    storage.check_allowed(uri, config.prefixes, name=name)
    place = storage.kind(uri)
    if place == "local":
        path = storage.local_path(uri)
        if not path.is_dir():
            found = "is a file" if path.exists() else "is not there"
            raise ValueError(f"{name}: {uri!r} {found}; give a model's folder, org/name[@revision], gs:// or s3://")
        model.check_model_folder(path)
    elif place != "hub" and not storage.exists(storage.join(uri.rstrip("/"), "config.json")):
        raise ValueError(f"{name}: {uri!r} has no config.json; give the address of a model's folder")


def check_dataset(dataset: str, config: PipelineConfig, *, name: str, kind: str) -> None:
    check_given(dataset, name=name)
    storage.check_allowed(dataset, config.prefixes, name=name)
    place = storage.kind(dataset)
    if place == "local":
        data.prepare(dataset, kind=kind, settings=config.data)
    elif place != "hub" and not storage.exists(dataset):
        raise ValueError(f"{name}: {dataset!r} is not there; give the address of one file")


def check_given(dataset: str, *, name: str) -> None:
    if not dataset:
        raise ValueError(f"{name} is empty; give it with --{name.replace('_', '-')} or in the configuration")


def check_prompts(uri: str, config: PipelineConfig, *, key: str) -> None:
    """The prompts of validation's `key`."""
    if not storage.is_remote(uri):
        prompts.read_prompts(uri, config.prefixes, key=key)
        return
    storage.check_allowed(uri, config.prefixes, name=f"validation.{key}")
    if not storage.exists(uri):
        raise ValueError(f"validation.{key}: {uri!r} is not there; give the address of one file")


def _datasets(config: PipelineConfig) -> list[str]:
    """Parameters of the data sets that the graph reads."""
    stages = {"sft": config.stages.sft, "preference": config.stages.dpo}
    return [name for name, kind in DATASETS.items() if stages[kind].enabled]
