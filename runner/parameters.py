"""Takes run parameters from the command line and the configuration, and makes their paths absolute."""

import argparse
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config import PairsConfig, PipelineConfig, check_run_parameters, parse_overrides
from posttrain.config.mixture import as_parameter, parts_of
from posttrain.config.signing import Signing
from posttrain.rows import prompts, sources
from posttrain.storage import layout
from runner.claim import has_record

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DATA_SETS = ("sft_dataset", "preference_dataset")
RUN_PARAMETERS = ("base_model", *DATA_SETS, "storage_root", "model_name")


def local_folder(storage_root: str) -> Path:
    """Returns the folder in which a run on this machine keeps its artifacts and logs."""
    return Path("runs") if storage.is_remote(storage_root) else storage.local_path(storage_root)


def run_parameters(config: PipelineConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the run parameters of the graph: those of the command line override the configuration's."""
    parameters = {name: getattr(args, name) or getattr(config, name) for name in RUN_PARAMETERS}
    parameters["model_name"] = parameters["model_name"] or config.pipeline_id
    parameters["storage_root"] = _named("storage_root", absolute_path, parameters["storage_root"])
    parameters["base_model"] = _named("base_model", absolute, parameters["base_model"])
    for name in DATA_SETS:
        parameters[name] = absolute_data_sets(parameters[name], name=name)
    parameters["overrides"] = parse_overrides(args.overrides)
    check_run_parameters(parameters)
    return parameters


def _named(setting: str, make: Callable[[str], str], uri: str) -> str:
    """Names the setting in an error of its address."""
    try:
        return make(uri)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def absolute_paths(config: PipelineConfig) -> PipelineConfig:
    """Returns the configuration with absolute local paths: the steps run in another working directory."""
    options, validation = config.validation.match_options, config.validation
    files = prompts.given(validation) | {"lm_eval_data": validation.lm_eval_data}
    paths = {key: _named(f"validation.{key}", absolute_path, uri) for key, uri in files.items() if uri}
    if validation.judge_model:
        paths["judge_model"] = _named("validation.judge_model", absolute, validation.judge_model)
    if options.judge_model:
        judge = _named("validation.match_options.judge_model", absolute, options.judge_model)
        paths["match_options"] = options.model_copy(update={"judge_model": judge})
    roots = {key: getattr(config, key) for key in ("storage_root", "publish_root")}
    changes = {key: _named(key, absolute_path, uri) for key, uri in roots.items() if uri} | {
        "validation": validation.model_copy(update=paths),
        "pairs": absolute_pairs(config.pairs),
        "signing": absolute_trust(config.signing),
        "allowed_prefixes": [_named("allowed_prefixes", absolute, uri) for uri in config.allowed_prefixes],
        "allowed_storage_roots": [
            _named("allowed_storage_roots", absolute_root, uri) for uri in config.allowed_storage_roots
        ],
    }
    return config.model_copy(update=changes)


def absolute_pairs(pairs: PairsConfig) -> PairsConfig:
    """Makes the paths of prompts and of a reward model absolute."""
    paths = {"prompts": absolute_data_sets(pairs.prompts, name="pairs.prompts")}
    if pairs.reward_model:
        paths["reward_model"] = _named("pairs.reward_model", absolute, pairs.reward_model)
    return pairs.model_copy(update=paths)


def absolute_trust(signing: Signing | None) -> Signing | None:
    """Makes the path of a trust configuration absolute."""
    if signing is None or signing.keyless is None or signing.keyless.trust_config is None:
        return signing
    path = _named("signing.keyless.trust_config", absolute_path, signing.keyless.trust_config)
    return signing.model_copy(update={"keyless": signing.keyless.model_copy(update={"trust_config": path})})


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


def absolute_data_sets(dataset: str, *, name: str) -> str:
    """Makes the local paths of the data sets that a parameter names absolute."""
    try:
        parts = parts_of(dataset)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return as_parameter([part.model_copy(update={"uri": _named(name, absolute, part.uri)}) for part in parts])


def absolute_path(uri: str) -> str:
    """Makes a local path absolute that cannot be a Hub id; leaves remote URIs."""
    return uri if storage.is_remote(uri) else str(storage.local_path(uri).absolute())


def new_run_id(storage_root: str, wanted: str | None) -> str:
    """Returns a run id that has no record yet: verdicts and receipts of another run must not count for this one."""
    if wanted is None:
        return f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    if not RUN_ID.fullmatch(wanted):
        raise ValueError(f"--run-id {wanted!r} is not a name; use up to 63 letters, digits, '.', '_' and '-'")
    if has_record(storage.list_files(layout.runs(storage_root, wanted))):
        raise ValueError(f"--run-id {wanted!r} has a record in {storage_root} already; choose another id")
    return wanted


def without(command: Sequence[str], *, flags: Collection[str], with_value: Collection[str]) -> list[str]:
    """Returns a command line without these flags, some of which have a value."""
    kept, skips = [], False
    for word in command:
        if not skips and word.partition("=")[0] not in (*flags, *with_value):
            kept.append(word)
        skips = not skips and word in with_value
    return kept
