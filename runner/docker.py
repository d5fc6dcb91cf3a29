"""Runs each step of a graph in a container of its own, in the image that the graph names.

a `Step` -> the command line `docker run ...`

A container is confined at least as much as on a cluster: a plain user without capabilities, a read-only root file
system, no network unless the step reads or writes elsewhere. It sees this machine's paths under their own names: the
artifacts of the run (only its own are writable), the storage root, its inputs, and a cache that outlives it.
"""

import csv
import hashlib
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.placement import num_bytes
from posttrain.step.parent import tie_to_parent
from posttrain.storage import layout
from posttrain.storage.local import hub_blobs
from runner.local import ALLOCATOR, HINT, Process, Step, popen
from runner.places import Places

CONFINED = (
    "--rm",
    "--init",
    "--entrypoint=",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--read-only",
    "--tmpfs=/tmp:exec,mode=1777",
)
CACHE = "/cache"  # HF_HOME and all other caches of the images are below it
IMAGE_USER = (10001, 10001)  # created by the Dockerfiles; used instead of root, as whom no container runs
LABEL = "posttrain.artifacts"  # its value is the folder of the run's artifacts
SIGNALLED = 128  # plus the number of the signal: exit code of a container that a signal ended


@dataclass(frozen=True)
class Docker:
    """Runs each step in a container; a `Runner`."""

    places_of: Callable[[dict[str, Any]], Places]  # from the arguments of a step
    variables_of: Callable[[str], Iterable[str]]  # environment variables that a step gets: tokens, credentials
    cache: Path
    gpus: str | None = None  # for steps that the graph gives a GPU: all, or a value of `docker run --gpus`

    def check(self, images: Iterable[str]) -> None:
        """Raises ValueError if no container could run: no engine, no GPU, or an image that is nowhere."""
        if not shutil.which("docker"):
            raise ValueError("--runner docker: there is no docker on PATH; install Docker, or leave out --runner")
        _ask("info", remedy="start Docker's engine, let this user access it, or leave out --runner")
        images = list(images)
        for image in images:
            if _docker("image", "inspect", image).returncode:
                remedy = "build it with make image" if image.endswith(":local") else "check the registry and your login"
                _ask("pull", image, remedy=remedy)
        if self.gpus:
            remedy = "install NVIDIA's driver and container toolkit, or leave out --gpus"
            _ask("run", *CONFINED, f"--gpus={self.gpus}", images[-1], "python", "--version", remedy=remedy)

    def start(self, step: Step, directory: Path, environment: dict[str, str], stdout: int) -> Process:
        return popen(self.command(step), directory, environment, stdout)

    def command(self, step: Step) -> list[str]:
        """Returns the command. The client passes SIGTERM on: a step saves its state even if its runner is killed."""
        user, places = _user(), self.places_of(step.arguments)
        for folder in (step.folder, self.cache, *places.written):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (step.folder, self.cache, *_ours(places.written, step.arguments)):
            _give([folder, *folder.rglob("*")], user)
        _give(places.written, user)
        options = [
            *CONFINED,
            f"--name={_name(step)}",
            f"--label={LABEL}={step.folder.parent}",
            f"--user={user[0]}:{user[1]}",
            *self._mounts(step, places),
            *self._environment(step),
            *self._devices(step),
        ]
        if not places.need_network:
            options.append("--network=none")
        return tie_to_parent(["docker", "run", *options, step.image, *step.command], signal_name="TERM")

    def exit_code(self, code: int) -> int:
        return SIGNALLED - code if code - SIGNALLED in set(signal.Signals) else code

    def remove(self, step: Step) -> None:
        """Kills a container that outlived its client. One that ended by itself is already gone."""
        _docker("rm", "--force", "--volumes", _name(step))

    def forget(self, artifacts: Path) -> None:
        for container in _docker("ps", "--all", "--quiet", f"--filter=label={LABEL}={artifacts}").stdout.split():
            _docker("rm", "--force", "--volumes", container)

    def _mounts(self, step: Step, places: Places) -> Iterator[str]:
        """Mounts a step's outputs writable and those of other steps read-only: the inner mount takes precedence."""
        read = [path for place in places.read for path in (place, *_linked(place))]
        writable = dict.fromkeys([*read, *self._credentials(step), step.folder.parent], False)
        writable |= dict.fromkeys([*places.written, step.folder], True)
        for path, is_writable in writable.items():
            yield _mount(path, path, is_writable=is_writable)
        yield _mount(self.cache, CACHE, is_writable=True)

    def _environment(self, step: Step) -> list[str]:
        """Passes variables by name: the client has the values in its environment, and no process list shows them."""
        return [f"--env={name}" for name in (*ALLOCATOR, *step.environment, *self._passed(step))]

    def _passed(self, step: Step) -> list[str]:
        return [name for name in dict.fromkeys(self.variables_of(step.name)) if name in os.environ]

    def _credentials(self, step: Step) -> list[Path]:
        """Returns the files that variables such as GOOGLE_APPLICATION_CREDENTIALS name."""
        values = (Path(os.environ[name]) for name in self._passed(step))
        return [path for path in values if path.is_absolute() and path.is_file()]

    def _devices(self, step: Step) -> Iterator[str]:
        if self.gpus and step.num_gpus:
            yield f"--gpus={self.gpus}"
        for mounted in step.settings.get("emptyDirMounts", []):
            if mounted["mountPath"] == "/dev/shm" and "sizeLimit" in mounted:
                yield f"--shm-size={num_bytes(mounted['sizeLimit'])}"


def _name(step: Step) -> str:
    """Returns a name that all attempts of a step share, and no other step: the folder belongs to this run alone."""
    return f"posttrain-{step.name}-{hashlib.sha256(os.fsencode(step.folder)).hexdigest()[:12]}"


def _mount(source: Path, target: Path | str, *, is_writable: bool) -> str:
    fields = ["type=bind", f"source={source}", f"target={target}", *([] if is_writable else ["readonly"])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)  # quotes a path with a comma
    return f"--mount={line.getvalue()}"


def _linked(place: Path) -> list[Path]:
    """Returns the folder of the Hub's cache to which the links of a snapshot lead; a step refuses all other links."""
    blobs = hub_blobs(place)
    return [blobs] if blobs and blobs.is_dir() and not blobs.is_symlink() else []


def _user() -> tuple[int, int]:
    """Returns the user of a container: the one who runs the graph, who then owns the files; for root the image's."""
    return (os.getuid(), os.getgid()) if os.getuid() else IMAGE_USER


def _ours(written: Iterable[Path], arguments: dict[str, Any]) -> list[Path]:
    """Returns the folders below a storage root or publish root that runs write; what else is there is not theirs."""
    names = [*layout.FOLDERS, *filter(None, [arguments.get("model_name")])]
    return [folder / name for folder in written for name in names if (folder / name).is_dir()]


def _give(paths: Iterable[Path], user: tuple[int, int]) -> None:
    """Lets the container's user write to what root created."""
    if os.getuid():
        return
    for path in paths:
        with suppress(FileNotFoundError):  # another run has removed it
            if path.lstat().st_uid == 0:
                os.chown(path, *user, follow_symlinks=False)


def _ask(*arguments: str, remedy: str) -> None:
    result = _docker(*arguments)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not HINT.match(line)]
        raise ValueError(f"docker {arguments[0]}: {lines[-1].removeprefix('docker: ')}: {remedy}")


def _docker(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True)
