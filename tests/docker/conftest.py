"""A Docker engine, a base image, the two images of this repository and a registry, made from nothing where missing.

BASE_IMAGE in the environment, or debootstrap; the package index and find-links folders of pip's own configuration
"""

import http.client
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE, WHEELS = "posttrain-base:local", "posttrain-wheels:local"
NAMES = ("cpu", "train")
SOURCES = (
    "Makefile", "pyproject.toml", "README.md", "LICENSE", ".dockerignore", "Dockerfile.train", "compile.py",
    "run_pipeline.py", "components", "configs", "examples", "images", "pipelines", "posttrain", "runner", "validators",
)  # fmt: skip
REVISION = "0123456789abcdef"
CONFINED = (
    "--rm", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--tmpfs=/tmp",
)  # fmt: skip
INSTALL = "install an engine and start it (Debian: make engine)"
START_SECONDS = 60  # of an engine or a registry
INDEX_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
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
        deadline = time.monotonic() + START_SECONDS
        while docker("info").returncode:
            if engine.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"dockerd does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield docker
    finally:
        engine.terminate()
        engine.wait()


@pytest.fixture(scope="session")
def base_image(docker: Docker) -> str:
    """BASE_IMAGE of the environment; else a Debian 12, whose Python is 3.11."""
    if os.environ.get("BASE_IMAGE"):
        return os.environ["BASE_IMAGE"]
    if not docker.has(BASE):
        if not shutil.which("debootstrap") or os.geteuid() != 0:
            pytest.fail("no base image: set BASE_IMAGE, or be root and run make engine")
        environment = os.environ | {"DOCKER": docker.client}
        made = subprocess.run([ROOT / "images" / "base.sh", BASE], env=environment, capture_output=True, text=True)
        if made.returncode:
            pytest.fail(f"images/base.sh: exit {made.returncode}\n{made.stderr}")
    return BASE


def pip_settings() -> dict[str, str]:
    """Settings of pip on this machine, by key; the environment goes before a file."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    return settings


@pytest.fixture(scope="session")
def way_to_the_index(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """This machine's way to the package index: as secrets, so that no image knows it."""
    settings, folder = pip_settings(), tmp_path_factory.mktemp("pip")
    lines = ["[global]"]
    for key in INDEX_KEYS:
        reachable = [part for part in settings.get(key, "").split() if not part.startswith("file:")]
        lines += [f"{key} = {' '.join(reachable)}"] if reachable else []
    arguments = ["--network", "host"]
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
    arguments = ["--build-arg", "TORCH=cpu"]
    if not found:
        return [*arguments, "--build-arg", f"TORCH_INDEX_URL={os.environ.get('TORCH_INDEX_URL', '')}"]
    folder = tmp_path_factory.mktemp("wheels")
    for wheel in found:
        (folder / wheel.name).symlink_to(wheel)
    docker.import_folder(folder, WHEELS, "--dereference")
    return [*arguments, "--build-arg", f"WHEELS={WHEELS}"]


@pytest.fixture(scope="session")
def build_arguments(way_to_the_index: list[str], wheels: list[str]) -> list[str]:
    return [*way_to_the_index, *wheels]


@pytest.fixture(scope="session")
def make(docker: Docker, base_image: str, build_arguments: list[str]) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a target of the Makefile, in this checkout or a copy of it, with this environment for the project's."""
    environment = Path(sys.executable).parents[1]
    common = [
        f"--assume-old={environment}/installed", f"VENV={environment}", f"DOCKER={docker.client}",
        f"BASE_IMAGE={base_image}", f"REVISION={REVISION}",
        f"DOCKER_BUILD_ARGS={shlex.join(build_arguments)}",
    ]  # fmt: skip

    def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        result = subprocess.run(["make", *common, *arguments], capture_output=True, text=True, cwd=cwd)
        if result.returncode:
            pytest.fail(f"make {' '.join(arguments)}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    return make


def copy_checkout(folder: Path) -> Path:
    """Copies the sources that images and graphs are built from, for a test to change."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def images(docker: Docker, make: Callable, pytestconfig: pytest.Config) -> dict[str, str]:
    """Image name -> local tag, both built."""
    tags = {name: f"posttrain-{name}:local" for name in NAMES}
    for name, tag in tags.items():
        started = time.monotonic()
        make(f"image-{name}")
        size = int(docker.ok("image", "inspect", "--format", "{{.Size}}", tag))
        line = f"{tag}: {size / 1e6:.0f} MB, built in {time.monotonic() - started:.0f} s"
        pytestconfig.stash[SUMMARY].append(line)
    return tags


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, taught_model: Path) -> Path:
    """`taught_model` as any user may read it."""
    folder = tmp_path_factory.mktemp("readable") / "model"
    shutil.copytree(taught_model, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)  # pytest makes its folders for one user alone
    return folder


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of an empty registry on loopback, where an engine asks for no certificate."""
    if not shutil.which("docker-registry"):
        pytest.fail("no registry: run make engine (Debian: apt-get install docker-registry)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = f"{{version: 0.1, storage: {{filesystem: {{rootdirectory: {folder}}}}}, http: {{addr: {address}}}}}"
    (folder / "config.yml").write_text(settings)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"docker-registry does not answer:\n{(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def answers(address: str) -> bool:
    with closing(http.client.HTTPConnection(address, timeout=5)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except OSError:
            return False
