"""Reads the answers that a gate kept beside its verdict.

record of a gate, or the chain of a model -> the prompts that the gate asked and what each model answered
"""

import hashlib
from collections.abc import Iterable

from posttrain import storage
from posttrain.config.line import CHAMPION, EXPORT_GATE
from posttrain.pages import answers
from posttrain.pages.answers import AnsweredPrompt
from posttrain.step.provenance import Link, Provenance
from posttrain.step.records import StepRecord

OUTPUT = "answers"
COMPARING = (CHAMPION, EXPORT_GATE)  # gates whose answers are not all of the line's own models in transformers


def kept_by(record: StepRecord, storage_root: str) -> list[AnsweredPrompt]:
    """The rows of answers.jsonl, if the gate kept it.

    Raises:
        ValueError: the file is not the one that the gate recorded with its verdict.
    """
    if not (record.kept and OUTPUT in record.outputs):
        return []
    uri = storage.join(storage_root, record.kept, OUTPUT)
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != record.outputs[OUTPUT]:
        raise ValueError(f"{uri}: is not the file that {record.step} recorded: it was changed; run the gate again")
    return answers.read(content)


def last_judged(records: Iterable[StepRecord]) -> StepRecord | None:
    """The last gate of a run that reached a verdict on answers of the line's own models."""
    answered = [one for one in records if one.verdict and OUTPUT in one.outputs and one.step not in COMPARING]
    return answered[-1] if answered else None


def judging_gate(chain: Provenance) -> Link | None:
    """The last gate of a chain that judged its model by answers."""
    answered = [link for link in chain.links if link.verdict is not None and OUTPUT in link.outputs]
    gates = [link for link in answered if link.step not in COMPARING]
    return next((gate for gate in reversed(gates) if chain.sha256 in gate.judged.subject.values()), None)


def of_chain(chain: Provenance, records: Iterable[StepRecord], storage_root: str) -> list[AnsweredPrompt]:
    """The answers by which the last gate judged the model of a chain, if their file is the one that it recorded."""
    gate = judging_gate(chain)
    same = [one for one in records if gate and (one.step, one.outputs) == (gate.step, gate.outputs)]
    return kept_by(same[-1], storage_root) if same else []
