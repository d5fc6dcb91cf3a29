"""Takes run parameters from the command line and the configuration, and makes their paths absolute."""

import argparse
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config import PipelineConfig, check_run_parameters, parse_overrides
from posttrain.rows import prompts, sources
from posttrain.storage import layout

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RUN_PARAMETERS = ("base_model", "sft_dataset", "preference_dataset", "storage_root", "model_name")


def local_folder(storage_root: str) -> Path:
    """Returns the folder in which a run on this machine keeps its artifacts and logs."""
    return Path("runs") if storage.is_remote(storage_root) else storage.local_path(storage_root)


def run_parameters(config: PipelineConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the run parameters of the graph: those of the command line override the configuration's."""
    parameters = {name: getattr(args, name) or getattr(config, name) for name in RUN_PARAMETERS}
    parameters["model_name"] = parameters["model_name"] or config.pipeline_id
    parameters["storage_root"] = absolute_path(parameters["storage_root"])
    for name in ("base_model", "sft_dataset", "preference_dataset"):
        parameters[name] = absolute(parameters[name])
    parameters["overrides"] = parse_overrides(args.overrides)
    check_run_parameters(parameters)
    return parameters


def absolute_paths(config: PipelineConfig) -> PipelineConfig:
    """Returns the configuration with absolute local paths: the steps run in another working directory."""
    prompt_files = {key: absolute_path(uri) for key, uri in prompts.given(config.validation).items()}
    judges = {"judge_model": config.validation.judge_model and absolute(config.validation.judge_model)}
    options = config.validation.match_options
    if options.judge_model:
        judges["match_options"] = options.model_copy(update={"judge_model": absolute(options.judge_model)})
    tasks = {"lm_eval_data": config.validation.lm_eval_data and absolute_path(config.validation.lm_eval_data)}
    validation = config.validation.model_copy(update=prompt_files | judges | tasks)
    changes = {
        "validation": validation,
        "storage_root": absolute_path(config.storage_root),
        "publish_root": config.publish_root and absolute_path(config.publish_root),
        "allowed_prefixes": [absolute(prefix) for prefix in config.allowed_prefixes],
        "allowed_storage_roots": list(map(absolute_root, config.allowed_storage_roots)),
    }
    return config.model_copy(update=changes)


def for_storage_root(config: PipelineConfig, storage_root: str) -> PipelineConfig:
    """Returns the configuration for a run in this storage root, whose graph is compiled for that run alone.

    A run that publishes to a place of its own must use a storage root that the configuration names: whoever may choose
    another one can put records of gates there that never judged anything.
    """
    publishes_elsewhere = config.publish_root or config.upload_to_hub
    if publishes_elsewhere or config.allowed_storage_roots:
        return config
    return config.model_copy(update={"allowed_storage_roots": [storage_root.rstrip("/") or "/"]})


def absolute_root(uri: str) -> str:
    """Makes a local storage root absolute; keeps the `/` at the end, which stands for all storage roots below."""
    path = absolute_path(uri)
    return f"{path}/" if uri.endswith("/") and not path.endswith("/") else path


def absolute(uri: str) -> str:
    """Makes a local path absolute; leaves Hub ids and remote URIs. `data/rows.jsonl` is a path, there or not."""
    if not uri or storage.is_remote(uri):
        return uri
    is_path = sources.suffix_of(uri) in sources.SUFFIXES or storage.kind(uri) == "local"
    return absolute_path(uri) if is_path else uri


def absolute_path(uri: str) -> str:
    """Makes a local path absolute that cannot be a Hub id; leaves remote URIs."""
    return uri if storage.is_remote(uri) else str(storage.local_path(uri).absolute())


def new_run_id(storage_root: str, wanted: str | None) -> str:
    """Returns a run id that has no record yet: verdicts and receipts of another run must not count for this one."""
    if wanted is None:
        return f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    if not RUN_ID.fullmatch(wanted):
        raise ValueError(f"--run-id {wanted!r} is not a name; use up to 63 letters, digits, '.', '_' and '-'")
    if storage.list_files(layout.runs(storage_root, wanted)):
        raise ValueError(f"--run-id {wanted!r} has a record in {storage_root} already; choose another id")
    return wanted
