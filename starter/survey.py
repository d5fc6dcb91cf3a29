"""Looks at what a run would be given: the model's size and template, the rows and their lengths in tokens.

addresses -> `Survey`; every problem that preflight would name is named here first
"""

import sys
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from posttrain import data, model, preflight, storage
from posttrain.config import DataConfig, PreflightStep
from posttrain.config.mixture import uris_of
from posttrain.rows import chat, keys, prompts
from posttrain.rows.formats import ANSWER_KEYS, prompt_key
from posttrain.rows.held_out import Prompts, side_of
from posttrain.rows.sources import open_data_set
from posttrain.rows.thoughts import said

NUM_MEASURED = 20_000  # rows of a data set of which tokens are counted
FRACTION = 0.5  # held out while rows are only looked at: neither side is empty


@dataclass
class MeasuredRows:
    """The rows of a data set, as far as they were measured."""

    kind: str
    format: str
    num_rows: int
    keys: list[bytes]  # of each row's prompt
    pairs: list[tuple[list[dict], str]] = field(default_factory=list)  # prompts, and what their answers say
    lengths: list[int] = field(default_factory=list)  # tokens of rows
    answer_lengths: list[int] = field(default_factory=list)  # tokens of answers, the longer of a pair

    def held_out_at(self, fraction: float) -> Prompts:
        """Returns the prompts as a run with this `data.eval_fraction` splits them."""
        held_out = [key for key in self.keys if side_of(key.hex(), fraction) == "eval"]
        return Prompts(held_out, self.different)

    @property
    def different(self) -> set[bytes]:
        """The different prompts."""
        return set(self.keys)


@dataclass(frozen=True)
class Survey:
    """All that the draft of a configuration is based on."""

    settings: dict[str, Any]  # of the model's config.json
    num_parameters: int
    asks_for_date: bool
    rows: dict[str, MeasuredRows]  # by kind: sft, preference
    num_red_team: int | None
    ignored_keys: list[str]  # of rows and messages, whose meaning is unknown

    @property
    def max_positions(self) -> int | None:
        """The longest row that the model can read."""
        return self.settings.get("text_config", self.settings).get("max_position_embeddings")


def look(addresses: dict[str, str], red_team: str | None) -> Survey:
    """Inspects model and data; `addresses` are the run parameters.

    Raises:
        ValueError: the pipeline cannot take them; with every problem, each also printed on a line.
    """
    kinds = {kind: addresses[name] for name, kind in preflight.DATASETS.items() if addresses[name]}
    ignored = list(dict.fromkeys(key for kind, uri in kinds.items() for key in unknown_keys(uri, kind)))
    check_addresses(addresses, red_team, ignored)
    with model.described(addresses["base_model"]) as (folder, layout):
        tokenizer = chat.ChatTokenizer(folder)
        rows = {kind: look_at_rows(uri, kind, tokenizer, ignored) for kind, uri in kinds.items()}
        return Survey(
            settings=layout.config,
            num_parameters=sum(map(prod, layout.shapes.values())),
            asks_for_date=chat.asks_for_date(str(tokenizer.chat_template)),
            rows=rows,
            num_red_team=len(prompts.read_prompts(red_team, prefixes(addresses, red_team), key="red_team_prompts"))
            if red_team
            else None,
            ignored_keys=ignored,
        )


def unknown_keys(uri: str, kind: str) -> list[str]:
    """Lists the keys of a data set whose meaning is unknown, in its first rows; none, if it cannot be read."""
    unknown: dict[str, None] = {}
    try:
        for one in uris_of(uri):
            with open_data_set(one) as data_set:
                for row in islice(data_set.rows, NUM_MEASURED):
                    unknown |= dict.fromkeys(keys.unknown_keys(row, kind))
    except (ValueError, OSError):  # preflight says why
        return []
    return list(unknown)


def check_addresses(addresses: dict[str, str], red_team: str | None, ignored_keys: list[str]) -> None:
    """Runs preflight on everything but row counts, which depend on settings that are still to be chosen."""
    stages = {
        "sft": {"enabled": bool(addresses["sft_dataset"])},
        "dpo": {"enabled": bool(addresses["preference_dataset"])},
    }
    step = PreflightStep.model_validate(
        {
            "stages": stages,
            "data": {"eval_fraction": FRACTION, "ignored_keys": ignored_keys},
            "validation": {"red_team_prompts": red_team},
            "allowed_prefixes": prefixes(addresses, red_team),
        }
    )
    parameters = {"model_name": "my-model"} | addresses  # the draft chooses one later
    refuse(preflight.findings(step, parameters, disk=Path()))


def refuse(problems: list[str]) -> None:
    """Raises one ValueError for all problems, if there are any; several are also printed, each on a line."""
    if len(problems) > 1:
        print(*(f"problem: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    preflight.refuse(problems)


def prefixes(addresses: dict[str, str], *others: str | None) -> list[str]:
    """Returns the places that the run reads and writes: this machine, the Hub, and the buckets of the addresses."""
    uris = [uri for uri in (*addresses.values(), *others) if uri and storage.kind(uri) in ("gs", "s3")]
    return ["/", "hf://", *dict.fromkeys("/".join(uri.split("/")[:3]) + "/" for uri in uris)]


def look_at_rows(uri: str, kind: str, tokenizer: Any, ignored_keys: list[str]) -> MeasuredRows:
    """Reads a data set as the run would, and counts the tokens of its rows.

    Raises:
        ValueError: it cannot be read, or the chat template renders none of its rows.
    """
    kept: list[dict] = []
    hashes: list[bytes] = []

    def keep(_: str, row: dict) -> None:
        hashes.append(bytes.fromhex(prompt_key(row)))
        if len(kept) < NUM_MEASURED:
            kept.append(row)

    settings = DataConfig(eval_fraction=FRACTION, ignored_keys=ignored_keys)
    prepared = data.prepare(uri, kind=kind, settings=settings, write=keep)
    seen = MeasuredRows(
        kind=kind,
        format=prepared.statistics["format"],
        num_rows=prepared.statistics["num_rows"],
        keys=hashes,
    )
    for row in kept:
        _measure(row, seen, tokenizer, uri)
    return seen


def _measure(row: dict, measured: MeasuredRows, tokenizer: Any, uri: str) -> None:
    from jinja2 import TemplateError

    try:
        parts = [chat.split(tokenizer, row["prompt"], row[key]) for key in ANSWER_KEYS[measured.kind]]
    except TemplateError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{uri}: row {row['id']}: the model's chat template refuses it, {reason}: "
            "change the row's roles, or use a model whose template takes them"
        ) from None
    measured.lengths.append(max(len(prompt) + len(answer) for prompt, answer in parts))
    measured.answer_lengths.append(max(len(answer) for _, answer in parts))
    measured.pairs.append((row["prompt"], said(row[ANSWER_KEYS[measured.kind][0]][0]["content"])))
