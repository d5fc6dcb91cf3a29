"""A Docker engine, a base image and the two images of this repository, made from nothing where they are not there yet.

BASE_IMAGE in the environment, or debootstrap; the package index and find-links folders of pip's own configuration
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE, WHEELS = "posttrain-base:local", "posttrain-wheels:local"
DOCKERFILES = {"cpu": "images/Dockerfile.cpu", "train": "Dockerfile.train"}
INSTALL = "install an engine and start it (Debian: apt-get install docker.io debootstrap)"
ENGINE_START_SECONDS = 60
INDEX_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
NOT_SHIPPED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")
SUMMARY = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARY] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[SUMMARY]:
        terminalreporter.write_line(line)


@dataclass(frozen=True)
class Docker:
    """A client with BuildKit, and an engine that answers it."""

    client: str

    def __call__(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [self.client, *arguments]
        environment = os.environ | {"DOCKER_BUILDKIT": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, **options)

    def ok(self, *arguments: str, **options) -> str:
        result = self(*arguments, **options)
        if result.returncode:
            pytest.fail(f"docker {' '.join(arguments)}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout.strip()

    def has(self, image: str) -> bool:
        return self("image", "inspect", image).returncode == 0

    def import_folder(self, folder: Path, image: str, *tar_options: str) -> None:
        self("image", "rm", "--force", image)  # else it would stay, without a name
        command = ["tar", "-C", str(folder), *tar_options, "-c", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
            self.ok("import", "-", image, stdin=tar.stdout)


def client_with_buildkit() -> str:
    """The first `docker` on PATH that has the buildx plugin, or that is old enough to need none.

    Without BuildKit no cache, secret or bind mount of the Dockerfiles can be read.
    """
    for folder in os.environ["PATH"].split(os.pathsep):
        client = shutil.which("docker", path=folder)
        if client is None:
            continue
        if subprocess.run([client, "buildx", "version"], capture_output=True).returncode == 0:
            return client
        version = subprocess.run([client, "--version"], capture_output=True, text=True).stdout
        if int(version.removeprefix("Docker version ").split(".")[0]) < 23:
            return client
    return pytest.fail(f"no Docker client with BuildKit: install the plugin docker-buildx, or {INSTALL}")


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    docker = Docker(client_with_buildkit())
    if docker("info").returncode == 0:
        yield docker
        return
    if not shutil.which("dockerd") or os.geteuid() != 0:
        pytest.fail(f"no Docker engine answers and this user cannot start one: {INSTALL}")
    log = tmp_path_factory.mktemp("engine") / "dockerd.log"
    with open(log, "w") as file:
        engine = subprocess.Popen(["dockerd"], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + ENGINE_START_SECONDS
        while docker("info").returncode:
            if engine.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"dockerd does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield docker
    finally:
        engine.terminate()
        engine.wait()


@pytest.fixture(scope="session")
def base_image(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """BASE_IMAGE of the environment; else a Debian 12, whose Python is 3.11."""
    if os.environ.get("BASE_IMAGE"):
        return os.environ["BASE_IMAGE"]
    if not docker.has(BASE):
        if not shutil.which("debootstrap") or os.geteuid() != 0:
            pytest.fail("no base image: set BASE_IMAGE, or be root and apt-get install debootstrap")
        folder = tmp_path_factory.mktemp("base") / "root"
        command = ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.fail(f"debootstrap: exit {made.returncode}\n{made.stdout[-2000:]}{made.stderr}")
        for name in NOT_SHIPPED:
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
        docker.import_folder(folder, BASE)
        shutil.rmtree(folder)
    return BASE


def pip_settings() -> dict[str, str]:
    """What pip uses on this machine, by key; the environment goes before a file."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    return settings


@pytest.fixture(scope="session")
def build_arguments(docker: Docker, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The base, and this machine's way to the package index: as secrets, so that no image knows it."""
    settings, folder = pip_settings(), tmp_path_factory.mktemp("pip")
    lines = ["[global]"]
    for key in INDEX_KEYS:
        reachable = [part for part in settings.get(key, "").split() if not part.startswith("file:")]
        lines += [f"{key} = {' '.join(reachable)}"] if reachable else []
    arguments = ["--network", "host", "--build-arg", f"BASE_IMAGE={base_image}"]
    if "cert" in settings:
        lines.append("cert = /run/secrets/ca")
        arguments += ["--secret", f"id=ca,src={settings['cert']}"]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    return [*arguments, "--secret", f"id=pip_conf,src={folder / 'pip.conf'}"]


@pytest.fixture(scope="session")
def wheels(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """torch for the CPU, where pip finds it in a folder of this machine; else TORCH_INDEX_URL of the environment."""
    found = [
        wheel
        for folder in pip_settings().get("find-links", "").split()
        if Path(folder).is_dir()
        for wheel in Path(folder).glob("torch-*+cpu*.whl")
    ]
    if not found:
        return ["--build-arg", f"TORCH_INDEX_URL={os.environ.get('TORCH_INDEX_URL', '')}"]
    folder = tmp_path_factory.mktemp("wheels")
    for wheel in found:
        (folder / wheel.name).symlink_to(wheel)
    docker.import_folder(folder, WHEELS, "--dereference")
    return ["--build-arg", f"WHEELS={WHEELS}"]


@pytest.fixture(scope="session")
def images(
    docker: Docker, build_arguments: list[str], wheels: list[str], pytestconfig: pytest.Config
) -> dict[str, str]:
    """Image name -> local tag, both built."""
    tags = {name: f"posttrain-{name}:local" for name in DOCKERFILES}
    for name, dockerfile in DOCKERFILES.items():
        started = time.monotonic()
        more = wheels if name == "train" else []
        docker.ok("build", "-f", dockerfile, "-t", tags[name], *build_arguments, *more, ".")
        size = int(docker.ok("image", "inspect", "--format", "{{.Size}}", tags[name]))
        line = f"{tags[name]}: {size / 1e6:.0f} MB, built in {time.monotonic() - started:.0f} s"
        pytestconfig.stash[SUMMARY].append(line)
    return tags
