"""The chain from the sources to a published model, built from the run record alone.

records of a run, SHA-256 of the model -> links, each after those whose outputs it takes; every fault in them

A link is a step. Its fingerprint binds its configuration, code and inputs; a gate's verdict is bound by its SHA-256
among the gate's outputs. Chains begin at steps that have no inputs and name their source.
"""

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from posttrain.config.line import EXPORT_GATE
from posttrain.pages import wording
from posttrain.step.code import Code, fingerprint
from posttrain.step.records import StepRecord
from posttrain.verdict import Verdict

SCHEMA_VERSION = 1  # of provenance.json
DONE = ("succeeded", "reused")
SAMPLING = "sample_pairs"
# Input from outside the run -> where its address is in the configuration of its step, if not under the same name.
ADDRESSES = {
    "matching_judge": ("match_options", "judge_model"),
    "harm_judge": ("judge_model",),
    "rows": ("prompts",),
    "references": ("prompts",),
}


class Source(BaseModel):
    """An address outside the run that something was read from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    commit: str = ""  # on the Hub
    sha256: str  # of the bytes that were read
    licence: str = ""  # the Hub's name for it; empty: unknown

    def __str__(self) -> str:
        return f"{self.address}@{self.commit}" if self.commit else self.address


class Weighted(Source):
    """One of several data sets that were read as one."""

    weight: float

    def __str__(self) -> str:
        return f"{super().__str__()}, weight {self.weight:g}"


class Mixture(Source):
    """Several data sets that were read as one; `sha256` is that of the lines `<sha256> <weight>` of its parts."""

    parts: tuple[Weighted, ...]


class Ranks(BaseModel):
    """The processes on several nodes that a model was trained by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_nodes: int
    num_ranks: int  # of all nodes
    train_job: str  # UID of the TrainJob

    @classmethod
    def of(cls, measured: dict[str, Any]) -> "Ranks | None":
        """Returns what a training on several nodes has measured of itself; None for any other step."""
        values = {name: measured.get(name) for name in cls.model_fields}
        return cls(**values) if all(value is not None for value in values.values()) else None


class Link(BaseModel):
    """One step of the chain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    fingerprint: str
    code: Code | None
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> SHA-256
    outputs: dict[str, str]
    source: Source | Mixture | None = None  # if the step has no inputs
    verdict: dict[str, Any] | None = None  # if the step is a gate
    trained_by: Ranks | None = None  # if the step trained on several nodes

    @classmethod
    def of(cls, done: StepRecord) -> "Link":
        """Builds the link of a step from its record."""
        sha256, address, commit = (done.measured.get(name) for name in ("digest", "source", "commit"))
        is_source = not done.inputs and address and sha256
        source = _source(done.measured.get("data_sets"), address, commit or "", sha256) if is_source else None
        if source and (licence := done.measured.get("licence")):
            source = source.model_copy(update={"licence": licence})
        shared = done.model_dump(include=set(cls.model_fields) - {"source", "trained_by"})
        return cls(**shared, source=source, trained_by=Ranks.of(done.measured))

    @property
    def judged(self) -> Verdict | None:
        """The verdict of a gate; ValidationError if it is not one."""
        return Verdict.of(self.verdict) if self.verdict is not None else None

    @property
    def named(self) -> dict[str, Source]:
        """Inputs of a gate, or of the sampling of pairs, from outside the run: prompts, and models that judge or give
        rewards, whose addresses are in its configuration.
        """
        config = self.config if self.step == SAMPLING else self.config.get("validation")
        addresses = {name: _address(config if isinstance(config, dict) else {}, name) for name in self.inputs}
        return {
            name: Source(address=address, sha256=self.inputs[name])
            for name, address in addresses.items()
            if isinstance(address, str) and address
        }


def _address(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for key in ADDRESSES.get(name, (name,)):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _source(data_sets: list[dict] | None, address: str, commit: str, sha256: str) -> Source:
    if not data_sets:
        return Source(address=address, commit=commit, sha256=sha256)
    parts = [Weighted(**{name: one[name] for name in Weighted.model_fields if name in one}) for one in data_sets]
    return Mixture(address=address, commit=commit, sha256=sha256, parts=parts)


class Required(BaseModel):
    """The part of the publishing step's configuration that says which gates a model must have passed."""

    model_config = ConfigDict(frozen=True)

    required_gates: list[str]
    judged_gates: list[str]  # must have judged exactly the published model


class Provenance(BaseModel):
    """provenance.json: the links of a published model, the publishing step last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: str
    sha256: str  # of the model
    model_name: str = ""  # these three as in the manifest; empty until it is published
    version: str = ""
    published_at: str = ""
    links: tuple[Link, ...] = Field(min_length=1)

    @property
    def gates(self) -> dict[str, Verdict]:
        """The verdicts by step; ValidationError if one is not a verdict."""
        return {link.step: link.judged for link in self.links if link.verdict is not None}

    @property
    def sources(self) -> dict[str, Source]:
        """Everything from outside the run: `<step>`, or `<gate>: <input>`, -> source."""
        sources = {}
        for link in self.links:
            parts = link.source.parts if isinstance(link.source, Mixture) else ()
            sources |= {link.step: link.source} if link.source and not parts else {}
            sources |= {f"{link.step}: {number}": part for number, part in enumerate(parts, start=1)}
            sources |= {f"{link.step}: {name}": source for name, source in link.named.items()}
        return sources

    @property
    def releases(self) -> list[dict[str, str]]:
        """Releases of this package and of the libraries that ran, by name; several if images differ."""
        ran = [{"posttrain": link.code.posttrain} | link.code.libraries for link in self.links if link.code]
        return [releases for at, releases in enumerate(ran) if releases not in ran[:at]]

    def passed_on(self, link: Link) -> dict[str, str]:
        """Returns those outputs of a link that a later link takes."""
        taken = {sha256 for later in self.links[self.links.index(link) + 1 :] for sha256 in later.inputs.values()}
        return {name: sha256 for name, sha256 in link.outputs.items() if sha256 in taken}


def trace(records: list[StepRecord], *, run_id: str, end: Link) -> Provenance:
    """Selects the links that `end`, the publishing step, depends on: what made its model, and the gates it requires."""
    links = _in_order(_last_verdicts([done for done in records if done.status in DONE]))
    kept, needed, gates = [end], set(end.inputs.values()), set(end.config["required_gates"])
    for link in reversed(links):
        if link.step in gates or needed & set(link.outputs.values()):
            kept.append(link)
            gates.discard(link.step)
            needed = (needed - set(link.outputs.values())) | set(link.inputs.values())
    return Provenance(run_id=run_id, sha256=end.inputs["model"], links=tuple(reversed(kept)))


def faults(chain: Provenance) -> list[str]:
    """Lists everything that is wrong with a chain, one line each; an empty list means that it proves its model."""
    faults, made = [], set()
    for link in chain.links:
        faults += _link_faults(link, made)
        made |= set(link.outputs.values())
    verdicts = {}
    for link in (link for link in chain.links if link.verdict is not None):
        verdicts[link.step], wrong = _read_verdict(link)
        faults += wrong
    return faults + _publish_faults(chain, verdicts)


def _last_verdicts(records: list[StepRecord]) -> list[StepRecord]:
    """Drops the records of gates that judged again later."""
    verdicts = sorted((done for done in records if done.verdict), key=lambda done: done.attempt)  # never by clock
    last = {done.step: done for done in verdicts}
    return [done for done in records if not done.verdict or done is last[done.step]]


def _in_order(records: list[StepRecord]) -> list[Link]:
    """Sorts links behind those whose outputs they take. Start times do not suffice: clocks differ between machines."""
    links, waiting, made = [], [Link.of(done) for done in records], set()
    while waiting:
        ready = next((link for link in waiting if not _awaits(link, waiting, made)), waiting[0])
        waiting.remove(ready)
        links.append(ready)
        made |= set(ready.outputs.values())
    return links


def _awaits(link: Link, waiting: list[Link], made: set[str]) -> bool:
    """Returns whether another waiting link makes an input of this one that is not `made` yet."""
    to_come = {sha256 for other in waiting if other is not link for sha256 in other.outputs.values()}
    return bool((set(link.inputs.values()) - made) & to_come)


def _link_faults(link: Link, made: set[str]) -> list[str]:
    """Lists the faults of one link; `made` are the outputs of earlier ones."""
    faults = []
    if link.code is None:
        faults.append(f"{link.step}: its record does not say which code ran; run it again")
    elif link.fingerprint != _fingerprint(link):
        faults.append(f"{link.step}: its fingerprint does not match its configuration, inputs and code")
    if not link.inputs and link.source is None:
        faults.append(f"{link.step}: has no inputs and names no source; run it again")
    for name, sha256 in link.inputs.items():
        if sha256 not in made and name not in link.named:
            faults.append(
                f"{link.step}: its {name} {sha256} is not an output of an earlier step of this run; run it again"
            )
    return faults


def _fingerprint(link: Link) -> str:
    return fingerprint(link.step, config=link.config, inputs=link.inputs, code=link.code)


def _read_verdict(link: Link) -> tuple[Verdict | None, list[str]]:
    """Returns the verdict of a gate, and its faults. Whatever it claims, `passed` is derived from its checks."""
    try:
        verdict = link.judged
    except ValidationError as error:
        return None, [f"gate {link.step}: its verdict cannot be read: {wording.line(str(error))}; run the gate again"]
    faults = []
    if verdict.gate != link.step:
        faults.append(f"gate {link.step}: its verdict is that of {verdict.gate}; run the gate again")
    if not verdict.passed:
        reasons = "; ".join(wording.line(check.sentence) for check in verdict.failed_checks)
        is_undecided = verdict.outcome == "undecided"
        faults.append(f"gate {link.step}: {'is undecided' if is_undecided else 'did not pass'}: {reasons}")
    if hashlib.sha256(to_json(link.verdict, indent=2)).hexdigest() != link.outputs.get("verdict"):
        faults.append(f"gate {link.step}: its verdict was changed after it was written; run the gate again")
    if verdict.subject != link.inputs:
        faults.append(f"gate {link.step}: its verdict is not about the gate's inputs; run the gate again")
    return verdict, faults


def _export_faults(end: Link, verdicts: dict[str, Verdict | None]) -> list[str]:
    """Checks that the gate over exported files judged exactly those that were published, of exactly this model."""
    if "export" not in end.inputs:
        return []
    verdict, required = verdicts.get(EXPORT_GATE), end.config.get("required_gates") or []
    if verdict is None or EXPORT_GATE not in required:
        return [f"gate {EXPORT_GATE}: no verdict on the exported files; publishing them needs it"]
    if {name: verdict.subject.get(name) for name in ("model", "export")} != end.inputs:
        return [f"gate {EXPORT_GATE}: judged other files than those that are published; run it again"]
    return []


def _publish_faults(chain: Provenance, verdicts: dict[str, Verdict | None]) -> list[str]:
    """Checks that every required gate is there, and that the judging ones judged exactly this model."""
    end, faults = chain.links[-1], []
    if end.inputs.get("model") != chain.sha256 or end.inputs.keys() - {"model", "export"}:
        faults.append(f"{end.step}: took {end.inputs.get('model')}, not the model {chain.sha256}")
    faults += _export_faults(end, verdicts)
    try:
        wanted = Required.model_validate(end.config)
    except ValidationError as error:
        return [*faults, f"{end.step}: does not say which gates it requires: {wording.line(str(error))}"]
    required, judged = wanted.required_gates, wanted.judged_gates
    if not judged or not set(judged) <= set(required):
        faults.append(f"judged_gates: {judged} must name some of {sorted(required)}; compile the graph again")
    for gate in required:
        if gate not in verdicts:
            faults.append(f"gate {gate}: no verdict in this run; publishing needs it, run the graph with this gate")
    for gate in judged:
        subject = verdicts[gate].subject if verdicts.get(gate) else {}
        sha256 = subject.get("model") or subject.get("adapter")  # an adapter where nothing is merged
        if verdicts.get(gate) and sha256 != chain.sha256:
            remedy = "publish the model that it judged, or run it again"
            faults.append(f"gate {gate}: judged model {sha256}, not {chain.sha256}; {remedy}")
    return faults
