"""The chain from the sources to a published model, as told by the run record alone.

records of a run, SHA-256 of the model -> links in an order in which each takes only what earlier ones gave; what is
wrong with them

A link is a step. Its fingerprint binds its configuration, the code and what it took; a gate's verdict is bound by its
SHA-256 among what the gate gave. Chains begin at steps that take nothing and name their source.
"""

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from posttrain.pages import wording
from posttrain.step.code import Code, fingerprint
from posttrain.step.records import StepRecord
from posttrain.verdict import Verdict

SCHEMA_VERSION = 1  # of provenance.json
DONE = ("succeeded", "reused")


class Source(BaseModel):
    """Where something came into the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    commit: str = ""  # of the Hub
    sha256: str  # of what was read there

    def __str__(self) -> str:
        return f"{self.address}@{self.commit}" if self.commit else self.address


class Link(BaseModel):
    """One step of the chain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    fingerprint: str
    code: Code | None
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> SHA-256
    outputs: dict[str, str]
    source: Source | None = None  # of a step that takes nothing
    verdict: dict[str, Any] | None = None  # of a gate

    @classmethod
    def of(cls, done: StepRecord) -> "Link":
        told = done.measured
        sha256, address = told.get("digest"), told.get("source")
        known = not done.inputs and address and sha256
        source = Source(address=address, commit=told.get("commit") or "", sha256=sha256) if known else None
        return cls(**done.model_dump(include=set(cls.model_fields) - {"source"}), source=source)

    @property
    def judged(self) -> Verdict | None:
        """The verdict of a gate; ValidationError for one that does not read."""
        return Verdict.of(self.verdict) if self.verdict is not None else None

    @property
    def named(self) -> dict[str, Source]:
        """What a gate took from outside the run: prompts and judge models, whose addresses its configuration holds."""
        limits = self.config.get("validation")
        limits = limits if isinstance(limits, dict) else {}
        return {
            name: Source(address=limits[name], sha256=sha256)
            for name, sha256 in self.inputs.items()
            if isinstance(limits.get(name), str) and limits[name]
        }


class Required(BaseModel):
    """What of the publishing step's configuration says which gates a model must have passed."""

    model_config = ConfigDict(frozen=True)

    required_gates: list[str]
    judged_gates: list[str]  # those that judged exactly the published model


class Provenance(BaseModel):
    """provenance.json: the links of a published model, the publishing step last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: str
    sha256: str  # of the model
    links: tuple[Link, ...] = Field(min_length=1)

    @property
    def gates(self) -> dict[str, Verdict]:
        """The verdicts by step. ValidationError for one that does not read."""
        return {link.step: link.judged for link in self.links if link.verdict is not None}

    @property
    def sources(self) -> dict[str, Source]:
        """Everything from outside: name of the step, for what a gate took with the name of the input -> source."""
        found = {}
        for link in self.links:
            found |= {link.step: link.source} if link.source else {}
            found |= {f"{link.step}: {name}": source for name, source in link.named.items()}
        return found

    @property
    def releases(self) -> list[dict[str, str]]:
        """This package and the libraries that ran, by name: several where images differ."""
        ran = [{"posttrain": link.code.posttrain} | link.code.libraries for link in self.links if link.code]
        return [releases for at, releases in enumerate(ran) if releases not in ran[:at]]

    def passed_on(self, link: Link) -> dict[str, str]:
        """Of what a link gave, what a later one took."""
        taken = {sha256 for later in self.links[self.links.index(link) + 1 :] for sha256 in later.inputs.values()}
        return {name: sha256 for name, sha256 in link.outputs.items() if sha256 in taken}


def trace(records: list[StepRecord], *, run_id: str, end: Link) -> Provenance:
    """The links that `end`, the publishing step, rests on: what made its model, and the gates it requires."""
    links = _in_order(_last_verdicts([done for done in records if done.status in DONE]))
    kept, needed, gates = [end], set(end.inputs.values()), set(end.config["required_gates"])
    for link in reversed(links):
        if link.step in gates or needed & set(link.outputs.values()):
            kept.append(link)
            gates.discard(link.step)
            needed = (needed - set(link.outputs.values())) | set(link.inputs.values())
    return Provenance(run_id=run_id, sha256=end.inputs["model"], links=tuple(reversed(kept)))


def faults(chain: Provenance) -> list[str]:
    """What is wrong with a chain, each on a line; nothing if it speaks for its model."""
    found, given = [], set()
    for link in chain.links:
        found += _link_faults(link, given)
        given |= set(link.outputs.values())
    verdicts = {}
    for link in (link for link in chain.links if link.verdict is not None):
        verdicts[link.step], wrong = _read_verdict(link)
        found += wrong
    return found + _publish_faults(chain, verdicts)


def _last_verdicts(records: list[StepRecord]) -> list[StepRecord]:
    """The records without those of a gate that judged again later."""
    last = {done.step: done for done in records if done.verdict}
    return [done for done in records if not done.verdict or done is last[done.step]]


def _in_order(records: list[StepRecord]) -> list[Link]:
    """Links, each behind those that gave what it takes. Clocks alone don't say: they differ, and tell only seconds."""
    links, waiting, given = [], [Link.of(done) for done in records], set()
    while waiting:
        ready = next((link for link in waiting if not _awaits(link, waiting, given)), waiting[0])
        waiting.remove(ready)
        links.append(ready)
        given |= set(ready.outputs.values())
    return links


def _awaits(link: Link, waiting: list[Link], given: set[str]) -> bool:
    """Whether something that the link takes is still to be given by another one."""
    to_come = {sha256 for other in waiting if other is not link for sha256 in other.outputs.values()}
    return bool((set(link.inputs.values()) - given) & to_come)


def _link_faults(link: Link, given: set[str]) -> list[str]:
    """Of one link, `given` being what earlier ones gave."""
    found = []
    if link.code is None:
        found.append(f"{link.step}: its record does not say which code ran; run it again")
    elif link.fingerprint != _fingerprint(link):
        found.append(f"{link.step}: its fingerprint is not that of its configuration, inputs and code: one was changed")
    if not link.inputs and link.source is None:
        found.append(f"{link.step}: takes nothing and names no source; run it again")
    for name, sha256 in link.inputs.items():
        if sha256 not in given and name not in link.named:
            found.append(f"{link.step}: took {name} {sha256}, which no earlier step of this run gave; run it again")
    return found


def _fingerprint(link: Link) -> str:
    return fingerprint(link.step, config=link.config, inputs=link.inputs, code=link.code)


def _read_verdict(link: Link) -> tuple[Verdict | None, list[str]]:
    """The verdict of a gate, and what is wrong with it. What it claims does not count, only its checks do."""
    try:
        verdict = link.judged
    except ValidationError as error:
        return None, [f"gate {link.step}: its verdict does not read: {wording.line(str(error))}; run the gate again"]
    found = []
    if verdict.gate != link.step:
        found.append(f"gate {link.step}: holds the verdict of {verdict.gate}; run the gate again")
    if not verdict.passed:
        reasons = "; ".join(wording.line(check.sentence) for check in verdict.failed_checks)
        is_undecided = verdict.outcome == "undecided"
        found.append(f"gate {link.step}: {'is undecided' if is_undecided else 'did not pass'}: {reasons}")
    if hashlib.sha256(to_json(link.verdict, indent=2)).hexdigest() != link.outputs.get("verdict"):
        found.append(f"gate {link.step}: its verdict is not the one that it gave: it was changed; run the gate again")
    if verdict.subject != link.inputs:
        found.append(f"gate {link.step}: its verdict is not on what the gate took; run the gate again")
    return verdict, found


def _publish_faults(chain: Provenance, verdicts: dict[str, Verdict | None]) -> list[str]:
    """Whether every gate that publishing requires is there, and judged exactly this model where it must have."""
    end, found = chain.links[-1], []
    if end.inputs != {"model": chain.sha256}:
        found.append(f"{end.step}: took {end.inputs.get('model')}, not the model {chain.sha256}")
    try:
        wanted = Required.model_validate(end.config)
    except ValidationError as error:
        return [*found, f"{end.step}: does not say which gates it requires: {wording.line(str(error))}"]
    required, judged = wanted.required_gates, wanted.judged_gates
    if not judged or not set(judged) <= set(required):
        found.append(f"judged_gates: {judged} must name some of {sorted(required)}; compile the graph again")
    for gate in required:
        if gate not in verdicts:
            found.append(f"gate {gate}: no verdict in this run; publishing needs it, run the graph with this gate")
    for gate in judged:
        subject = verdicts[gate].subject if verdicts.get(gate) else {}
        sha256 = subject.get("model") or subject.get("adapter")  # an adapter where nothing is merged
        if verdicts.get(gate) and sha256 != chain.sha256:
            remedy = "publish the model that it judged, or run it again"
            found.append(f"gate {gate}: judged model {sha256}, not {chain.sha256}; {remedy}")
    return found
