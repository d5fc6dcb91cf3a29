"""Images with digests, which no process needs: a cluster would refuse tags of this machine."""

from pathlib import Path

import pytest
import yaml

import components

DIGEST = "sha256:" + "0" * 64


def give_digests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every component's image a digest, and names both images in a digests.yaml in `folder`."""
    digests = {name: {"repository": f"example.org/{name}", "digest": DIGEST} for name in ("cpu", "train")}
    folder.mkdir()
    (folder / "digests.yaml").write_text(yaml.safe_dump(digests))
    monkeypatch.setattr(components.container, "IMAGES", folder / "digests.yaml")
    for component in vars(components).values():
        if hasattr(component, "component_spec"):
            image = component.component_spec.implementation.container
            monkeypatch.setattr(image, "image", image.image.replace(":local", f"@{DIGEST}"))
