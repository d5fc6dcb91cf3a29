"""Reads the answers that a gate kept beside its verdict.

record of a gate -> the prompts that it asked and what each model answered
"""

import hashlib
from collections.abc import Iterable

from posttrain import storage
from posttrain.pages import answers
from posttrain.pages.answers import AnsweredPrompt
from posttrain.step.records import StepRecord

OUTPUT = "answers"


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
    """The last gate of a run that reached a verdict on answers."""
    answered = [record for record in records if record.verdict and OUTPUT in record.outputs]
    return answered[-1] if answered else None
