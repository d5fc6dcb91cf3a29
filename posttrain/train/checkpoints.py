"""Checkpoints that outlive the process, below `<storage root>/checkpoints/<step>/<fingerprint>/`.

    step-00000100/<writer>/    the trainer's files, then COMPLETE.json with the size and SHA-256 of each
                               of several nodes each uploads what is on its disk, then PART-<node>.json with these
    <run id>/DIVERGED.json     the run's loss or gradient was not finite: every retry of the run fails at once
    reference-train.json, reference-eval.json    DPO: log-probabilities of the rows under the reference model

local checkpoint folder -> storage, and the newest whole one back

Another fingerprint (configuration, inputs, code) is another training. Each process writes below a writer name of its
own, so no two processes mix their files, and each may resume from what any other has written. The nodes of a training
have one name. None waits for the others: whichever finds that it was the last writes COMPLETE.json.

A checkpoint is of as many ranks as have written it. Only an elastic training resumes from those of other numbers.
"""

import fnmatch
import json
import logging
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from posttrain import storage
from posttrain.step import run
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.train import ranks

COMPLETE, DIVERGED, PART = "COMPLETE.json", "DIVERGED.json", "PART-{node}.json"
# Everything that a resume needs. Not stored: training_args.bin, a pickle, and the tokenizer, which the model has.
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer*.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "shard-*.safetensors",
)
FOLDER = re.compile(r"(step-(\d{8})/[^/]+)/")
LOGPROBS = TypeAdapter(list[tuple[float, float]])

logger = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Raised at the first loss or gradient norm that is NaN or infinite, and by every retry of that run."""


class File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int  # bytes
    sha256: str


class Manifest(BaseModel):
    """Contents of COMPLETE.json. It is written last, so a checkpoint without it is half-written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    step: int
    world_size: int  # number of ranks
    files: dict[str, File]


FILES_OF_PART = TypeAdapter(dict[str, File])


@dataclass(frozen=True)
class World:
    """The ranks that train together."""

    size: int = 1  # number of ranks
    num_nodes: int = 1
    node: int = 0  # of this process
    is_elastic: bool = False  # resume also from checkpoints of other numbers of ranks


@dataclass(frozen=True)
class Checkpoints:
    """Stores the checkpoints of one training."""

    storage_root: str
    step: str  # name of the step in the graph
    fingerprint: str
    run_id: str
    limit: int  # the number of checkpoints that stay in storage
    is_fresh: bool = False  # resume from no other run's checkpoints
    suffix: str = field(default_factory=lambda: secrets.token_hex(4))
    world: World = World()

    @classmethod
    def of(cls, running: Running, *, limit: int, is_elastic: bool = False) -> "Checkpoints":
        """Makes the checkpoints of the training that runs in this process, alone or with other ranks."""
        training = (running.storage_root, running.step, running.fingerprint)
        world = World(ranks.count(), ranks.num_nodes(), ranks.node(), is_elastic)
        return cls(*training, run_id=run.run_id(), limit=limit, is_fresh=run.is_fresh(), world=world)

    @property
    def root(self) -> str:
        return layout.checkpoints(self.storage_root, self.step, self.fingerprint)

    def publish(self, path: str | Path, *, step: int) -> bool:
        """Uploads the local checkpoint at `path`, then COMPLETE.json; then removes those beyond `limit`.

        Returns whether the checkpoint is complete: with several nodes, whether the others were done before this one.
        """
        folder = f"step-{step:08}/{self.run_id}-{self.suffix}"
        files = {
            file.name: _describe(file, storage.upload_file(file, storage.join(self.root, folder, file.name)))
            for file in _files(path)
        }
        if self.world.num_nodes > 1:
            files = self._with_other_parts(folder, files)
        if files is None:
            return False
        manifest = Manifest(fingerprint=self.fingerprint, step=step, world_size=self.world.size, files=files)
        complete = storage.join(self.root, folder, COMPLETE)
        try:
            storage.write_bytes(complete, manifest.model_dump_json(indent=2).encode(), if_absent=True)
        except FileExistsError:
            if self.world.num_nodes == 1:  # else another node was done at the same moment, and has written the same
                raise
        self._prune(spare=folder)
        return True

    def _with_other_parts(self, folder: str, files: dict[str, File]) -> dict[str, File] | None:
        """Writes which files this node has stored, and returns those of all nodes; None unless all have done so."""
        parts = [storage.join(self.root, folder, PART.format(node=node)) for node in range(self.world.num_nodes)]
        storage.write_bytes(parts[self.world.node], FILES_OF_PART.dump_json(files, indent=2))
        try:
            of_nodes = [FILES_OF_PART.validate_json(storage.read_bytes(part)) for part in parts]
        except FileNotFoundError:
            return None
        return {name: file for files in of_nodes for name, file in files.items()}

    def fetch_newest(self, path: str | Path) -> Path | None:
        """Downloads the newest whole checkpoint of any writer to a folder below `path`; returns None if there is none.

        A fresh run considers only its own checkpoints, from an earlier attempt. One that is half-written or damaged is
        skipped, with a warning that says why.
        """
        own, tried = rf"/{re.escape(self.run_id)}-[0-9a-f]{{8}}$" if self.is_fresh else "", set()
        # Listed again after each: a writer that still saves may have stored a newer one, and removed the one tried.
        while folder := max(
            (name for name in self._folders() if name not in tried and re.search(own, name)), default=""
        ):
            tried.add(folder)
            try:
                checkpoint = self.fetch(folder, path)
            except (OSError, ValueError) as error:
                logger.warning("checkpoint %s skipped: %s", storage.join(self.root, folder), error)
                continue
            logger.info("resuming from checkpoint %s", storage.join(self.root, folder))
            return checkpoint
        return None

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint that has a COMPLETE.json, without reading it."""
        return max((step_of(folder) for folder, names in self._folders().items() if COMPLETE in names), default=None)

    def refuse_if_diverged(self) -> None:
        """Raises Diverged, with the original message, if this run has diverged before."""
        if storage.exists(self._diverged):
            logger.error("this run has diverged before: start a new run, or remove %s", self._diverged)
            try:
                message = json.loads(storage.read_bytes(self._diverged))["message"]
            except (ValueError, KeyError, TypeError):
                message = f"{self._diverged}: is damaged, so it does not say at which step the run diverged"
            raise Diverged(message)

    def write_divergence(self, message: str, **numbers) -> None:
        """Writes DIVERGED.json, which makes every retry of this run fail at once."""
        body = {"message": message, **numbers}
        storage.write_bytes(self._diverged, json.dumps(body, indent=2).encode())

    def write_reference(self, name: str, logprobs: list[tuple[float, float]]) -> None:
        """Stores DPO's reference log-probabilities of the rows of `name`, (chosen, rejected) in nats, for a resume."""
        try:
            storage.write_bytes(self._reference(name), json.dumps(logprobs).encode())
        except OSError as error:
            logger.warning("reference log-probabilities could not be stored, a resume computes them again: %s", error)

    def read_reference(self, name: str, *, num_rows: int) -> list[tuple[float, float]] | None:
        """Returns what `write_reference` has stored for exactly `num_rows` rows, or None.

        A damaged file counts as none, with a warning.
        """
        uri = self._reference(name)
        if not storage.exists(uri):
            return None
        try:
            logprobs = LOGPROBS.validate_json(storage.read_bytes(uri))
        except ValueError as error:
            logger.warning("%s skipped: damaged: %s", uri, " ".join(str(error).split()))
            return None
        if len(logprobs) != num_rows:
            logger.warning("%s skipped: it has %d rows, not %d", uri, len(logprobs), num_rows)
            return None
        return logprobs

    def _reference(self, name: str) -> str:
        return storage.join(self.root, f"reference-{name}.json")

    @property
    def _diverged(self) -> str:
        return storage.join(self.root, self.run_id, DIVERGED)

    def _folders(self) -> dict[str, list[str]]:
        """Lists the names of the files of each checkpoint, by its folder `step-.../<writer>`."""
        folders: dict[str, list[str]] = {}
        for name in storage.list_files(self.root):
            if match := FOLDER.match(name):
                folders.setdefault(match[1], []).append(name.removeprefix(match[0]))
        return folders

    def fetch(self, folder: str, path: str | Path) -> Path:
        """Downloads one checkpoint, `step-.../<writer>`, to a folder of that name below `path`.

        Raises:
            ValueError: it is half-written, damaged, or of another training.
            OSError: a file of it cannot be read.
        """
        source, target = storage.join(self.root, folder), Path(path, folder)
        try:
            manifest = Manifest.model_validate_json(storage.read_bytes(storage.join(source, COMPLETE)))
        except FileNotFoundError:
            raise ValueError(f"half-written: it has no {COMPLETE}") from None
        except ValueError as error:
            raise ValueError(f"damaged: {COMPLETE} cannot be parsed: {' '.join(str(error).split())}") from None
        if manifest.fingerprint != self.fingerprint:
            raise ValueError(f"foreign: its fingerprint is {manifest.fingerprint}")
        self._check_world(folder, manifest.world_size)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, expected in manifest.files.items():
            sha256 = storage.download_file(storage.join(source, name), target / name)
            actual = _describe(target / name, sha256)
            if actual != expected:
                raise ValueError(f"damaged: {name} has {actual.size} bytes, SHA-256 {actual.sha256}, not {expected}")
        return target

    def _check_world(self, folder: str, size: int) -> None:
        """Refuses a checkpoint of another number of ranks, unless the training is elastic."""
        if size == self.world.size:
            return
        if not self.world.is_elastic:
            raise ValueError(f"it is of {size} ranks, not {self.world.size}: set elastic to resume it all the same")
        logger.warning(
            "checkpoint %s is of %d ranks, and %d continue (elastic): the weights will not be bit for bit those of "
            "an undisturbed run",
            storage.join(self.root, folder),
            size,
            self.world.size,
        )

    def _prune(self, *, spare: str) -> None:
        """Removes what is older than the newest `limit` complete ones, but never `spare`, which is surely whole."""
        folders = self._folders()
        complete = sorted((folder for folder, names in folders.items() if COMPLETE in names), reverse=True)
        kept = complete[: self.limit]
        for folder in (name for name in folders if name < kept[-1] and name != spare):
            # COMPLETE.json goes first: an interrupted removal leaves no folder that looks like a checkpoint.
            storage.remove(storage.join(self.root, folder, COMPLETE))
            storage.remove(storage.join(self.root, folder))


def remove_run(storage_root: str, run_id: str) -> None:
    """Removes the checkpoints that a run has written in any step. Those of other runs stay."""
    _remove(layout.checkpoints(storage_root), re.escape(run_id))


def remove_trial(storage_root: str, trial: str, *, step: str, fingerprint: str) -> None:
    """Removes the checkpoints that a trial has written in one step, in whichever run of its sweep."""
    _remove(layout.checkpoints(storage_root, step, fingerprint), rf"[^/]+\.{re.escape(trial)}")


def _remove(root: str, pattern: str) -> None:
    """Removes below `root` the checkpoints of runs whose id matches `pattern`."""
    written = re.compile(rf"(.+/{pattern}-[0-9a-f]{{8}})/[^/]+")
    folders = {match[1] for name in storage.list_files(root) if (match := written.fullmatch(name))}
    for folder in sorted(folders):
        storage.remove(storage.join(root, folder, COMPLETE))
        storage.remove(storage.join(root, folder))


def step_of(folder: str | Path) -> int:
    """Parses the optimizer step from a checkpoint's folder, `.../step-00000100/<writer>`."""
    return int(FOLDER.search(f"{folder}/")[2])


def _files(path: str | Path) -> list[Path]:
    """Lists the files of a local checkpoint to store. A frozen reference adapter, in a subfolder, is not among them."""
    files = (file for file in sorted(Path(path).iterdir()) if file.is_file())
    return [file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in FILES)]


def _describe(path: Path, sha256: str) -> File:
    return File(size=path.stat().st_size, sha256=sha256)
