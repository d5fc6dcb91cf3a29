"""The two images: few rights, nothing that does not belong, a bill of materials."""

import json

import pytest

from tests.docker.conftest import CONFINED, NAMES, REVISION, ROOT, copy_checkout

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_starts_no_shell_and_is_not_root(docker, images, name):
    (image,) = json.loads(docker.ok("image", "inspect", images[name]))
    assert image["Config"]["Entrypoint"] is None
    assert image["Config"]["User"] == "10001:10001"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in image["Config"]["Labels"].items()}
    assert labels["title"] == f"posttrain-{name}"
    assert labels["version"] == "0.1.0"
    assert labels["revision"] == REVISION
    assert labels["base.name"]


@pytest.mark.parametrize("user", ["10001:10001", "4321:0"])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_caches_are_writable_whoever_runs_it(docker, images, name, user):
    code = (
        "import getpass, os, pathlib, sys\n"
        "for folder in ('/cache', os.environ['HF_HOME'], '/tmp'):\n"
        "    pathlib.Path(folder).mkdir(exist_ok=True); pathlib.Path(folder, 'new').touch()\n"
        "folders = ('/', '/work', sys.prefix, '/usr')\n"
        "print(getpass.getuser(), [folder for folder in folders if os.access(folder, os.W_OK)])\n"
    )
    assert docker.ok("run", *CONFINED, f"--user={user}", images[name], "python", "-c", code) == "posttrain []"


@pytest.mark.parametrize("name", NAMES)
def test_neither_pip_nor_the_way_to_the_index_ships(docker, images, name):
    code = (
        "import importlib.util, os\n"
        "secrets = ('/etc/pip.conf', '/run/secrets/ca', '/run/secrets/pip_conf')\n"
        "print(importlib.util.find_spec('pip'), [path for path in secrets if os.path.exists(path)])\n"
    )
    assert docker.ok("run", *CONFINED, images[name], "python", "-c", code) == "None []"


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_of_materials_lists_what_is_installed(docker, images, name):
    bill = json.loads((ROOT / "build" / f"posttrain-{name}.cdx.json").read_text())
    purls = {component["purl"].partition("?")[0] for component in bill["components"]}
    code = "from importlib.metadata import distributions as d; print(*(f'{one.name}=={one.version}' for one in d()))"
    installed = docker.ok("run", *CONFINED, images[name], "python", "-c", code).split()
    assert len([purl for purl in purls if purl.startswith("pkg:pypi/")]) == len(installed)
    assert "pkg:pypi/posttrain@0.1.0" in purls
    libc = docker.ok("run", *CONFINED, images[name], "dpkg-query", "--show", "--showformat=${Version}", "libc6")
    assert f"pkg:deb/debian/libc6@{libc.replace('+', '%2B')}" in purls


@pytest.mark.parametrize("dockerfile", ["images/Dockerfile.cpu", "Dockerfile.train"])
def test_a_build_without_a_base_says_so(docker, dockerfile):
    result = docker("build", "-f", dockerfile, ".")
    assert result.returncode != 0
    assert "BASE_IMAGE-is-missing" in result.stderr


def test_unsloth_is_there_if_asked_for_and_can_be_imported_first(docker, images, base_image, build_arguments):
    """The smoke run that ends the build imports it before the libraries that it patches."""
    options = ["--build-arg", f"BASE_IMAGE={base_image}", "--build-arg", "INSTALL_UNSLOTH=1", *build_arguments]
    tag = "posttrain-unsloth:local"
    docker.ok("build", "-f", "Dockerfile.train", "-t", tag, *options, ".")
    code = "import shutil, unsloth, trl; print(shutil.which('gcc'))"
    assert docker.ok("run", *CONFINED, tag, "python", "-c", code).splitlines()[-1] == "/usr/bin/gcc"
    docker.ok("image", "rm", tag)


def test_a_wheel_with_another_digest_is_refused(docker, make, images, tmp_path):
    """Version and index are those of the lock file, but the file is another."""
    lock = copy_checkout(tmp_path) / "images" / "build.lock"
    text, _, _ = lock.read_text().rpartition("sha256:")
    lock.write_text(f"{text}sha256:{'0' * 64}\n")
    with pytest.raises(pytest.fail.Exception, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        make("image-cpu", cwd=tmp_path)
