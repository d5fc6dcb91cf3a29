"""Shares settings and results among the trials of a sweep, below `<storage root>/sweeps/<fingerprint>/`.

    trial_3.settings.json    its settings, written when it starts
    trial_3.json             its result; `rung_2_rank_1.json`: of a trial that went on to the second rung

The fingerprint covers the sweep's settings, the inputs' digests and the code: a sweep that was killed finds the results
of its trials, and never mixes with another one. Each file is written by one trial, so nothing need be locked.
"""

import json
import logging
from dataclasses import dataclass

from pydantic import ValidationError

from posttrain import storage
from posttrain.config.sweep import Rung, Settings, SweepConfig
from posttrain.storage import layout
from posttrain.sweep import sampling
from posttrain.sweep.ranking import NOT_PROMOTED, Candidate, ranked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """The trials of one sweep."""

    storage_root: str
    fingerprint: str
    sweep: SweepConfig

    @classmethod
    def of_result(cls, storage_root: str, uri: str, sweep: SweepConfig) -> "Study":
        """Returns the study that the result at this URI belongs to."""
        return cls(storage_root, uri.rsplit("/", 2)[1], sweep)

    @property
    def root(self) -> str:
        return layout.sweeps(self.storage_root, self.fingerprint)

    def settings_of(self, trial: str) -> Settings:
        """Returns a trial's settings: those chosen when it first started, or chosen now."""
        uri = storage.join(self.root, f"{trial}.settings.json")
        if not storage.exists(uri):
            running = [self._read(name) for name in self.sweep.trials if self._runs(name)]
            settings = sampling.settings_of(self.sweep, trial, ended=self.ended(self.sweep.rungs[0]), running=running)
            storage.write_bytes(uri, json.dumps(settings, indent=2).encode())
        return self._read(trial)

    def ended(self, rung: Rung) -> list[Candidate]:
        """Returns the candidates of a rung that have ended, whatever their status."""
        uris = (self.uri_of(slot) for slot in self.sweep.slots(rung))
        return [candidate for uri in uris if (candidate := _read_candidate(uri))]

    def promoted(self, rung: Rung) -> list[Candidate]:
        """Returns the candidates of the rung before that go on in this one, the best first."""
        rows = ranked(self.ended(self.sweep.rungs[rung.number - 1]), self.sweep.objective.sign)
        return [row.candidate for row in rows if row.candidate.qualifies][: rung.num_trials]

    def all(self, until: Rung) -> list[Candidate]:
        """Returns every trial once: its status at its last rung up to this one, and its cost on all of them."""
        latest: dict[str, Candidate] = {}
        for rung in self.sweep.rungs[: until.number + 1]:
            for candidate in self.ended(rung):
                spent = latest[candidate.name].cost + candidate.cost if candidate.name in latest else candidate.cost
                latest[candidate.name] = candidate.model_copy(update={"cost": spent})
        left = {"status": NOT_PROMOTED}
        return [
            candidate.model_copy(update=left) if candidate.qualifies and candidate.rung < until.number else candidate
            for candidate in latest.values()
        ]

    def keep(self, slot: str, candidate: Candidate) -> None:
        storage.write_bytes(self.uri_of(slot), candidate.model_dump_json(indent=2).encode())

    def uri_of(self, slot: str) -> str:
        """Returns the URI of the result of the trial in a slot."""
        return storage.join(self.root, f"{slot}.json")

    def _runs(self, trial: str) -> bool:
        has_begun = storage.exists(storage.join(self.root, f"{trial}.settings.json"))
        return has_begun and not storage.exists(self.uri_of(trial))

    def _read(self, trial: str) -> Settings:
        uri = storage.join(self.root, f"{trial}.settings.json")
        try:
            return json.loads(storage.read_bytes(uri))
        except ValueError:
            remedy = "remove it, and the trial starts again with settings of its own"
            raise ValueError(f"{uri}: is damaged, so the settings of {trial} are not known; {remedy}") from None


def _read_candidate(uri: str) -> Candidate | None:
    """Reads the result of a trial; None if there is none. A damaged one counts as none, with a warning."""
    try:
        return Candidate.model_validate_json(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s: is damaged, so this trial has no result", uri)
        return None
