"""Writes the software bill of materials of the image that it runs in, as CycloneDX 1.6: Python and Debian packages.

installed packages -> JSON, https://cyclonedx.org/docs/1.6/json/
"""

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import quote

from packaging.utils import canonicalize_name

DPKG = Path("/var/lib/dpkg/status")
RELEASE = Path("/etc/os-release")


def bill(name: str, components: list[dict]) -> dict:
    """The document for the image `name`."""
    image = {"type": "container", "bom-ref": name, "name": name}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {"timestamp": datetime.now(UTC).isoformat(timespec="seconds"), "component": image},
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": [component["bom-ref"] for component in components]}],
    }


def python_packages() -> Iterator[dict]:
    for package in sorted(distributions(), key=lambda package: canonicalize_name(package.metadata["Name"])):
        name = canonicalize_name(package.metadata["Name"])
        yield component(name, package.version, f"pkg:pypi/{name}@{quote(package.version)}") | licences(package)


def licences(package: Distribution) -> dict:
    """An SPDX expression where the package gives one, else its own word if that is a name and not the whole text."""
    if expression := package.metadata.get("License-Expression"):
        return {"licenses": [{"expression": expression}]}
    classifiers = [line for line in package.metadata.get_all("Classifier", []) if line.startswith("License ::")]
    names = [line.rpartition(" :: ")[2] for line in classifiers] or [package.metadata.get("License", "")]
    names = [name for name in names if name and "\n" not in name]
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def debian_packages(status: str, distribution: str) -> Iterator[dict]:
    """`status`: dpkg's own list, paragraphs of `Key: value`."""
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?arch={fields['Architecture']}"
            yield component(name, version, purl)


def component(name: str, version: str, purl: str) -> dict:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def components() -> list[dict]:
    release = dict(line.split("=", 1) for line in RELEASE.read_text(encoding="utf-8").splitlines() if "=" in line)
    debian = debian_packages(DPKG.read_text(encoding="utf-8"), release["ID"].strip('"'))
    by_purl = {one["purl"]: one for one in (*python_packages(), *debian)}  # an editable install is seen twice
    return list(by_purl.values())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the image")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    document = bill(args.name, components())
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{args.output.name}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
