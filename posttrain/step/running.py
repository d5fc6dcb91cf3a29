"""The value that a step's work gets: which step this is, and the digests of what it reads."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Running:
    """A step of a run while it works."""

    step: str  # name in the graph
    storage_root: str
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)  # name -> SHA-256
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # input folder -> name of a file -> SHA-256
    written: dict[str, str] = field(default_factory=dict)  # output -> SHA-256, from `add_digest`

    def add_digest(self, output: str, sha256: str) -> None:
        """Records the digest of an output that was computed while writing it, so that it is not read again."""
        self.written[output] = sha256
