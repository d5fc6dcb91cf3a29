"""A step while it runs: what its work is given beside its own inputs."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Running:
    """One step of one run, named by everything that its result depends on."""

    step: str  # name in the graph
    storage_root: str
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)  # name -> SHA-256
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # input that is a folder -> its files' SHA-256
    written: dict[str, str] = field(default_factory=dict)  # output -> SHA-256, where `add_digest` has one

    def add_digest(self, output: str, sha256: str) -> None:
        """Hands on the digest of an output that was computed while it was written, so that it is not read again."""
        self.written[output] = sha256
