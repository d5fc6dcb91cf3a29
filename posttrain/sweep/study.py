"""What the trials of a sweep know of each other, below `<storage root>/sweeps/<fingerprint>/`.

    trial_3.settings.json    what it tries, written when it starts
    trial_3.json             what it came to; `rung_2_rank_1.json`: a trial that went on to the second rung

The fingerprint is of the sweep's settings, the inputs' digests and the code: a sweep that was killed finds what its
trials came to, and another one never mixes with it. Each file is written by one trial, so nothing need be locked.
"""

import json
from dataclasses import dataclass

from posttrain import storage
from posttrain.config.sweep import Rung, Settings, SweepConfig
from posttrain.storage import layout
from posttrain.sweep import sampling
from posttrain.sweep.ranking import NOT_PROMOTED, Candidate, ranked


@dataclass(frozen=True)
class Study:
    """The trials of one sweep."""

    storage_root: str
    fingerprint: str
    sweep: SweepConfig

    @classmethod
    def of_place(cls, storage_root: str, place: str, sweep: SweepConfig) -> "Study":
        """The study that what a trial came to belongs to, by its address."""
        return cls(storage_root, place.rsplit("/", 2)[1], sweep)

    @property
    def root(self) -> str:
        return layout.sweeps(self.storage_root, self.fingerprint)

    def settings_of(self, trial: str) -> Settings:
        """What a trial tries: as it was decided when it first started, or decided now."""
        place = storage.join(self.root, f"{trial}.settings.json")
        if not storage.exists(place):
            running = [self._read(name) for name in self.sweep.trials if self._runs(name)]
            settings = sampling.settings_of(self.sweep, trial, ended=self.ended(self.sweep.rungs[0]), running=running)
            storage.write_bytes(place, json.dumps(settings, indent=2).encode())
        return json.loads(storage.read_bytes(place))

    def ended(self, rung: Rung) -> list[Candidate]:
        """The candidates of a rung that have come to an end, whichever."""
        places = (self.place_of(slot) for slot in self.sweep.slots(rung))
        return [Candidate.model_validate_json(storage.read_bytes(place)) for place in places if storage.exists(place)]

    def promoted(self, rung: Rung) -> list[Candidate]:
        """Those of the rung before that go on in this one, the best first."""
        rows = ranked(self.ended(self.sweep.rungs[rung.number - 1]), self.sweep.objective.sign)
        return [row.candidate for row in rows if row.candidate.qualifies][: rung.num_trials]

    def all(self, until: Rung) -> list[Candidate]:
        """Every trial once, as it stood at its last rung up to this one, with what it has cost on all of them."""
        found: dict[str, Candidate] = {}
        for rung in self.sweep.rungs[: until.number + 1]:
            for candidate in self.ended(rung):
                spent = found[candidate.name].cost + candidate.cost if candidate.name in found else candidate.cost
                found[candidate.name] = candidate.model_copy(update={"cost": spent})
        left = {"status": NOT_PROMOTED}
        return [
            candidate.model_copy(update=left) if candidate.qualifies and candidate.rung < until.number else candidate
            for candidate in found.values()
        ]

    def keep(self, slot: str, candidate: Candidate) -> None:
        storage.write_bytes(self.place_of(slot), candidate.model_dump_json(indent=2).encode())

    def place_of(self, slot: str) -> str:
        """Of what the trial in a slot came to."""
        return storage.join(self.root, f"{slot}.json")

    def _runs(self, trial: str) -> bool:
        has_begun = storage.exists(storage.join(self.root, f"{trial}.settings.json"))
        return has_begun and not storage.exists(self.place_of(trial))

    def _read(self, trial: str) -> Settings:
        return json.loads(storage.read_bytes(storage.join(self.root, f"{trial}.settings.json")))
