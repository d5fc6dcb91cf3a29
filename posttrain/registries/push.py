"""Push a published model to an OCI registry, as an image that Kubernetes mounts as a volume.

folder of a published version, oci://host/name:tag -> image with the version's files below /models, one layer for each

The version is verified first, as by `posttrain.verify`. A layer has the same bytes whoever pushes it, so a file that
the registry has is not uploaded again, and an interrupted push goes on with the next file. Credentials are those of
Docker's config.json, in the folder that DOCKER_CONFIG names.

    python -m posttrain.registries.push runs/published/my-model/05ceb577bb54 oci://registry.example.com/models/my-model:v1
"""

import argparse
import hashlib
import json
import logging
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from posttrain import storage, verify
from posttrain.pages import wording
from posttrain.registries import oci
from posttrain.step import digests, run
from posttrain.step.published import MANIFEST, Manifest

ROOT = "models"  # folder in the image, where KServe looks
LAYER = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"  # annotation by which tools show a layer's file
CONFIG = "application/vnd.oci.image.config.v1+json"

logger = logging.getLogger(__name__)


def push(version: str, address: oci.Address) -> dict[str, str | int]:
    """Pushes a published version; returns its address by digest, and how many of its files were uploaded.

    Raises:
        ValueError: the version is not whole, or the registry refuses.
        OSError: storage or registry cannot be reached.
    """
    findings = verify.verify(version)
    if findings.faults:
        raise ValueError(f"{version}: is not pushed: {' | '.join(findings.faults)}")
    manifest = findings.manifest
    layers, num_uploaded = [], 0
    with oci.Registry(address) as registry, tempfile.TemporaryDirectory() as folder:
        registry.sign_in()
        for name in sorted([*manifest.files, *manifest.unlisted]):
            file = local(version, name, Path(folder), manifest)
            digest, size = measure(file, name)
            num_uploaded += registry.push_blob(digest, partial(tar, file, name))
            layers.append({"mediaType": LAYER, "digest": digest, "size": size, "annotations": {TITLE: name}})
            logger.info("%s: %s", name, digest)
        config = config_of(manifest, [layer["digest"] for layer in layers])
        described = {"mediaType": CONFIG, "digest": sha256(config), "size": len(config)}
        registry.push_blob(described["digest"], lambda: iter([config]))
        image = image_manifest(manifest, described, layers)
        registry.push_manifest(image)
    return {"uri": f"oci://{address.host}/{address.name}@{sha256(image)}", "num_uploaded": num_uploaded}


def local(version: str, name: str, folder: Path, manifest: Manifest) -> Path:
    """Returns the path of a file of the version; a remote one is downloaded, in place of the one before.

    Raises:
        ValueError: it is no longer the file that was verified.
    """
    uri, verified = storage.join(version, name), manifest.files | {MANIFEST: hashed(manifest.json_bytes)}
    if storage.is_remote(uri):
        path = folder / "file"
        actual = storage.download_file(uri, path)
    else:
        path = storage.local_path(uri)
        actual = digests.digest(path)
    if actual != verified.get(name, actual):  # the rest follows from the manifest, or is signed
        raise ValueError(f"{uri}: was changed while it was pushed: its SHA-256 is {actual}; verify the version again")
    return path


def tar(file: Path, name: str) -> Iterator[bytes]:
    """Yields a tar archive with one file, the same for the same content: without times, owners and modes of its own."""
    member = tarfile.TarInfo(f"{ROOT}/{name}")
    member.size, member.mode = file.stat().st_size, 0o644
    yield member.tobuf(tarfile.PAX_FORMAT)
    with open(file, "rb") as content:
        while chunk := content.read(oci.CHUNK):
            yield chunk
    yield bytes(-member.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def measure(file: Path, name: str) -> tuple[str, int]:
    """Returns digest and size of the archive."""
    archive, size = hashlib.sha256(), 0
    for chunk in tar(file, name):
        archive.update(chunk)
        size += len(chunk)
    return f"sha256:{archive.hexdigest()}", size


def hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256(content: bytes) -> str:
    return f"sha256:{hashed(content)}"


def config_of(manifest: Manifest, layers: list[str]) -> bytes:
    """Returns the configuration of the image, which runs nothing."""
    content = {
        "architecture": "amd64",
        "os": "linux",
        "created": manifest.published_at,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": layers},
    }
    return json.dumps(content, sort_keys=True).encode()


def image_manifest(manifest: Manifest, config: dict, layers: list[dict]) -> bytes:
    """Returns the manifest of the image; its annotations name the version and the run that published it."""
    annotations = {
        TITLE: manifest.model_name,
        "org.opencontainers.image.version": manifest.version,
        "org.opencontainers.image.created": manifest.published_at,
        "posttrain.model.sha256": manifest.sha256,
        "posttrain.run.id": manifest.run_id,
    }
    content = {
        "schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": layers, "annotations": annotations,
    }  # fmt: skip
    return json.dumps(content, sort_keys=True).encode()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", help="folder of the published version: path, gs:// or s3://")
    parser.add_argument("address", help="oci://host/name:tag")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    run.configure_logging()
    try:
        pushed = push(args.published, oci.Address.parse(args.address))
    except (OSError, ValueError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    print(f"{pushed['uri']}: {pushed['num_uploaded']} files uploaded, the others were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
