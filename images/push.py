"""Pushes both images and writes digests.yaml, the one place from which the graph takes them.

images posttrain-<name>:local -> <registry>/posttrain-<name>:<version>, and its digest in digests.yaml

python -m images.push --registry registry.example.org/team --version 1.2.0

A digest is read back from the registry after the push: it is what a cluster will find there. Nothing is written unless
both images are there.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

DIGESTS = Path(__file__).with_name("digests.yaml")
HEAD = """\
# The only source of the images that the graph uses; `make push` writes it. Where `digest` is null the image was never
# pushed: the graph names a local tag, with which it runs on this machine but is refused by a cluster.
"""
DIGEST = re.compile(r"^Digest: (sha256:[0-9a-f]{64})$", re.MULTILINE)


def push(name: str, registry: str, version: str) -> dict[str, str]:
    """Pushes an image and reads its digest back; its entry in digests.yaml.

    Raises:
        ValueError: the engine or the registry refuses, or the registry holds another image under the tag by now.
    """
    local, repository = f"posttrain-{name}:local", f"{registry}/posttrain-{name}"
    remote = f"{repository}:{version}"
    docker("tag", local, remote)
    docker("push", remote)
    digest = DIGEST.search(docker("pull", remote))
    if not digest:
        raise ValueError(f"{remote}: the registry gives no digest: is it a registry of API version 2?")
    if image_id(remote) != image_id(local):
        raise ValueError(f"{remote}: somebody else has pushed another image meanwhile: give another --version")
    return {"repository": repository, "digest": digest[1]}


def image_id(image: str) -> str:
    return docker("image", "inspect", "--format", "{{.Id}}", image).strip()


def docker(*arguments: str) -> str:
    command = [os.environ.get("DOCKER", "docker"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True, help="host and path that the images are put under")
    parser.add_argument("--version", required=True, help="tag in the registry")
    args = parser.parse_args(argv)
    names = yaml.safe_load(DIGESTS.read_text(encoding="utf-8"))
    try:
        pushed = {name: push(name, args.registry.rstrip("/"), args.version) for name in names}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    DIGESTS.write_text(HEAD + yaml.safe_dump(pushed), encoding="utf-8")
    for entry in pushed.values():
        print(f"{entry['repository']}@{entry['digest']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
