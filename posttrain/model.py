"""Fetch the 16-bit base model: complete, at a pinned commit, safetensors only, with a chat template, without own code.

Hub id[@revision], gs://, s3:// or a folder -> model folder; tokenizer folder, for steps that only need tokens; source,
commit and digest
"""

import argparse
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config, storage
from posttrain.step import frame, kfp_io
from posttrain.step.digests import folder_digest
from posttrain.step.published import CARD
from posttrain.step.running import Running
from posttrain.storage import hashing, hub
from posttrain.weights import licence
from posttrain.weights.folder import (
    CONFIG_FILES,
    SIDE_FILES,
    TOKENIZER_FILES,
    _check_config,
    _check_tokenizer,
    _no_weights,
    _select,
    check_asks_for_no_code,
    check_model_folder,
    weights_size,
)
from posttrain.weights.targets import Layout
from posttrain.weights.tensors import INDEX, SINGLE, json_object, read_json, read_shapes, read_weight_map

logger = logging.getLogger(__name__)


# unsloth's names for 4-bit copies: https://huggingface.co/unsloth
QUANTISED_NAME = re.compile(r"(-unsloth)?-bnb-4bit$")
# A 16-bit repository counts as the source of a 4-bit one if these are equal.
SHAPE_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
NUM_HEADERS_AT_ONCE = 8  # requests for the headers of shards
Shapes = dict[str, tuple[int, ...]]  # by the tensor's name
Digests = dict[str, str]  # relative name of a written file -> SHA-256
Download = Callable[[list[str], Path], Digests]  # relative names, local folder -> digests


@dataclass(frozen=True)
class Repo:
    """A repository of the Hub at a commit: its files with their bytes, and how to download some of them."""

    name: str
    commit: str
    sizes: dict[str, int]
    download: Download
    licence: str = ""  # as the Hub names it; empty: its card names none


@dataclass(frozen=True)
class Fetched:
    """A model that was brought: its address, its commit (empty unless from the Hub), its files and its licence."""

    source: str
    commit: str
    files: Digests
    licence: str  # empty: unknown


def fetch(
    base_model: str, model: Path | str, tokenizer: Path | str, *, allowed_prefixes: list[str] | None = None
) -> dict[str, str]:
    """Writes the model and the tokenizer folder; returns source, commit (empty unless from the Hub) and digest.

    The licence is there too, if the model's card names one.

    Raises:
        ValueError: the model is missing, not allowed, incomplete or quantised, or lacks a file.
        ConnectionError: the Hub does not answer.
    """
    model, tokenizer = Path(model), Path(tokenizer)
    if allowed_prefixes is not None:
        storage.check_allowed(base_model, allowed_prefixes, name="base_model")
    from_hub = storage.kind(base_model) == "hub"
    unfinished = model.with_name(model.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        fetched = _from_hub(base_model, unfinished) if from_hub else _from_storage(base_model, unfinished)
        check_model_folder(unfinished)
        unfinished.replace(model)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _copy_files(model, tokenizer, (*TOKENIZER_FILES, *CONFIG_FILES))
    if restricted := licence.restriction(fetched.licence):
        logger.warning("base_model: %s %s", fetched.source, restricted)
    known = {"licence": fetched.licence} if fetched.licence else {}
    return {"source": fetched.source, "commit": fetched.commit, "digest": folder_digest(fetched.files)} | known


def size_on_hub(base_model: str, *, name: str = "base_model") -> int:
    """Returns the bytes of the weights that `fetch` would download; refuses what the small files rule out."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # these files are small
    with hub.errors(name, base_model, otherwise="folder"), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        repo = _find_repo(base_model, folder)
        repo.download(_select(repo.sizes, (*TOKENIZER_FILES, *CONFIG_FILES)), folder)
        check_asks_for_no_code(folder, source=base_model)
        _check_config(base_model, read_json(folder / "config.json"))
        _check_tokenizer(folder, source=base_model)
    return weights_size(base_model, repo.sizes)


def read_config(base_model: str) -> dict[str, Any]:
    """Returns the content of the model's config.json, wherever the model is."""
    if storage.kind(base_model) != "hub":
        uri = storage.join(base_model, "config.json")
        return json_object(storage.read_bytes(uri), source=f"base_model: {uri}")
    with hub.errors("base_model", base_model, otherwise="folder"), tempfile.TemporaryDirectory() as temporary:
        _find_repo(base_model, Path(temporary)).download(["config.json"], Path(temporary))
        return read_json(Path(temporary, "config.json"))


@contextmanager
def described(base_model: str) -> Iterator[tuple[Path, Layout]]:
    """Yields a folder with the small files of a model, and its layout, wherever it is; its weights stay there."""
    if storage.kind(base_model) == "local":
        folder = storage.local_path(base_model)
        yield folder, Layout.of(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shapes = _shapes_on_hub if storage.kind(base_model) == "hub" else _shapes_in_storage
        yield folder, Layout(base_model, shapes=shapes(base_model, folder), config=read_json(folder / "config.json"))


def _shapes_on_hub(base_model: str, folder: Path) -> Shapes:
    """Returns the shapes of all tensors, and downloads the small files to `folder`."""
    from huggingface_hub.errors import SafetensorsParsingError

    with hub.errors("base_model", base_model, otherwise="folder"):
        repo = _find_repo(base_model, folder)
        repo.download(_select(repo.sizes, (*TOKENIZER_FILES, *CONFIG_FILES, INDEX)), folder)

        def read(shard: str) -> Shapes:
            try:
                metadata = hub.client().parse_safetensors_file_metadata(repo.name, shard, revision=repo.commit)
            except SafetensorsParsingError as error:
                raise ValueError(f"base_model: {base_model!r}: {shard}: {error}; upload it again") from None
            return {name: tuple(tensor.shape) for name, tensor in metadata.tensors.items()}

        return _of_shards(folder, read)


def _shapes_in_storage(base_model: str, folder: Path) -> Shapes:
    """Returns the shapes of all tensors, and downloads the small files to `folder`."""
    for name in _select(storage.list_files(base_model), (*TOKENIZER_FILES, *CONFIG_FILES, INDEX)):
        (folder / name).parent.mkdir(exist_ok=True)
        storage.download_file(storage.join(base_model, name), folder / name)

    def read(shard: str) -> Shapes:
        uri = storage.join(base_model, shard)
        return read_shapes(partial(storage.read_start, uri), source=uri)

    return _of_shards(folder, read)


def _of_shards(folder: Path, read: Callable[[str], Shapes]) -> Shapes:
    """Reads the headers of all shards that the index in `folder` names, or of the one file without an index."""
    index = folder / INDEX
    shards = sorted(set(read_weight_map(index).values())) if index.is_file() else [SINGLE]
    with ThreadPoolExecutor(NUM_HEADERS_AT_ONCE) as pool:
        parts = pool.map(read, shards)
        return {name: shape for part in parts for name, shape in part.items()}


def _from_storage(uri: str, folder: Path) -> Fetched:
    """Downloads a model folder."""
    if not storage.is_remote(uri):
        storage.check_links(storage.local_path(uri))
    names = storage.list_files(uri)
    if not names:
        raise ValueError(
            f"base_model: {uri!r} does not exist or is empty; give org/name[@revision], gs://, s3:// or a folder"
        )

    def download(wanted: list[str], target: Path) -> Digests:
        digests = {}
        for name in wanted:
            (target / name).parent.mkdir(exist_ok=True)
            digests[name] = storage.download_file(storage.join(uri, name), target / name)
            logger.info("fetched %s", name)
        return digests

    card = storage.read_bytes(storage.join(uri, CARD)).decode(errors="replace") if CARD in names else ""
    return Fetched(uri, "", _bring(uri, names, folder, download), licence.of_card(card))


def _from_hub(base_model: str, folder: Path) -> Fetched:
    """Downloads `org/name`, or the 16-bit source of a bitsandbytes copy."""
    with hub.errors("base_model", base_model, otherwise="folder"):
        repo = _find_repo(base_model, folder)
        digests = _bring(repo.name, list(repo.sizes), folder, repo.download)
    return Fetched(f"hf://{repo.name}", repo.commit, digests, repo.licence)


def _find_repo(base_model: str, folder: Path) -> Repo:
    """Finds the repository with the 16-bit weights, and downloads its config.json to `folder`."""
    name, revision = storage.hub_id(base_model)
    repo = _open_repo(name, revision)
    if "config.json" not in repo.sizes:
        raise ValueError(f"base_model: {base_model!r} has no config.json; " + _no_weights(base_model, list(repo.sizes)))
    repo.download(["config.json"], folder)
    settings = read_json(folder / "config.json")
    if not settings.get("quantization_config"):
        return repo
    repo = _open_repo(_source_of(base_model, name, revision), None)
    repo.download(["config.json"], folder)
    _check_same_shape(base_model, repo.name, settings, read_json(folder / "config.json"))
    logger.info("%s is quantised: its 16-bit source is %s", base_model, repo.name)
    return repo


def _source_of(base_model: str, repo: str, revision: str | None) -> str:
    source, renamed = QUANTISED_NAME.subn("", repo)
    if not renamed or revision:
        raise ValueError(
            f"base_model: {base_model!r} is quantised, and its name gives no 16-bit source; give the 16-bit repository"
        )
    return source


def _check_same_shape(base_model: str, source: str, quantised: dict, settings: dict) -> None:
    differs = [key for key in SHAPE_KEYS if settings.get(key) != quantised.get(key)]
    if settings.get("quantization_config"):
        differs = ["quantization_config"]
    if differs:
        problem = f"{source} is not its 16-bit source ({differs[0]} differs)"
        raise ValueError(f"base_model: {base_model!r}: {problem}; give the 16-bit repository")


def _open_repo(name: str, revision: str | None) -> Repo:
    from huggingface_hub import snapshot_download

    info = hub.client().model_info(name, revision=revision, files_metadata=True)

    def download(wanted: list[str], target: Path) -> Digests:
        try:  # through the cache in HF_HOME, which may outlive this run
            snapshot = snapshot_download(name, revision=info.sha, allow_patterns=wanted, **hub.access())
        except PermissionError as error:
            remedy = f"let user {os.getuid()} write there"
            raise ValueError(f"HF_HOME: {error.filename} cannot be written; {remedy}") from error
        return _copy(Path(snapshot), wanted, target)

    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings}
    return Repo(name, info.sha, sizes, download, licence.named(info.card_data and info.card_data.license))


def _bring(source: str, names: list[str], folder: Path, download: Download) -> Digests:
    """Downloads the weights and their side files, and nothing else."""
    wanted, digests = _select(names, SIDE_FILES), {}
    if INDEX in names:
        digests = download([INDEX], folder)
        shards = sorted(set(read_weight_map(folder / INDEX).values()))
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise ValueError(
                f"base_model: {source!r}: {INDEX} names {missing[0]}, which is missing; upload the complete model"
            )
        wanted += shards
    elif SINGLE in names:
        wanted.append(SINGLE)
    else:
        raise ValueError("base_model: " + _no_weights(source, names))
    return digests | download(wanted, folder)


def _copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    names = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
    _copy(source, _select(names, patterns), target)


def _copy(source: Path, names: list[str], target: Path) -> Digests:
    digests = {}
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        digests[name] = hashing.copy(source / name, target / name)
    return digests


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base-model", required=True, help="org/name[@revision], gs://, s3:// or a folder")
    parser.add_argument("--model", required=True, help="folder for the model")
    parser.add_argument("--tokenizer", required=True, help="folder for the tokenizer and the configuration")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(config.StepSection, args.config, args.overrides)

    def work(running: Running) -> dict[str, str]:
        fetched = fetch(args.base_model, args.model, args.tokenizer, allowed_prefixes=settings.allowed_prefixes)
        running.add_digest("model", fetched["digest"])
        return fetched

    outputs = {"model": args.model, "tokenizer": args.tokenizer}
    frame.run_step(args, inputs={}, outputs=outputs, config=settings, work=work, reusable=False)


if __name__ == "__main__":
    main()
