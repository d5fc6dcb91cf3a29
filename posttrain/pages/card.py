"""Renders the model card: what the Hub reads of a model, how to try it, its limits, and how it was made and judged.

chain of a model that is about to be published, answers it was judged by -> README.md
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from posttrain.config.limits import HARM
from posttrain.pages import abilities, answers, defaults, front_matter, training, wording
from posttrain.pages.answers import AnsweredPrompt
from posttrain.rows.formats import user_text
from posttrain.step import gate_answers, provenance
from posttrain.step.provenance import Provenance
from posttrain.verdict import Verdict
from posttrain.weights import licence

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
NUM_ANSWERS = 5  # the first that the gate asked, right or wrong
MAX_CHARS = 300  # of a text among them
MAX_NEW_TOKENS = 256  # in the snippet
NO_FILES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Evidence:
    """Facts that a card shows beside the chain."""

    rows: list[AnsweredPrompt] = field(default_factory=list)  # by which the model was judged
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # of samplings and trainings, by step


def model_card(
    chain: Provenance,
    evidence: Evidence,
    *,
    files: Mapping[str, str] = NO_FILES,
    exported: Iterable[str] = (),
    folder: str = ".",
    is_signed: bool = False,
) -> str:
    """Renders the card, with the first of the answers that the model was judged by.

    Args:
        chain: with the name and the version under which the model is published.
        files: the files of the model by name: an adapter's among them, or the text of a licence.
        exported: names of the files in which it is served, as they are published.
        folder: the address under which the model is loaded.
    """
    template = _environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    gate = gate_answers.judging_gate(chain)
    judged, shown = gate and gate.judged, evidence.rows[:NUM_ANSWERS]
    asked = {check.name for verdict in chain.gates.values() for check in verdict.checks}
    return template.render(
        unjudged=wording.UNJUDGED, harm_unjudged=wording.HARM_UNJUDGED, harm_is_unjudged=HARM not in asked,
        skills_unjudged=wording.SKILLS_UNJUDGED, skills_are_unjudged=not wording.judges_skills(chain.gates.values()),
        chain=chain, claim=judged and abilities.headline(judged), weak=defaults.weaker(chain.gates.values()),
        sampled=training.sampled(evidence.metrics, chain.gates), kept=training.kept(evidence.metrics),
        served=_commands(exported), is_signed=is_signed,
        rows=shown, num_asked=len(evidence.rows),
        columns=answers.columns_of(shown, abilities.titles(judged) if judged else {}),
        **_head(chain, judged, files), **_snippet(chain, shown, folder),
    )  # fmt: skip


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.filters |= {"cell": wording.markdown, "name": wording.markdown_name, "address": _address}
    environment.filters["percent"] = abilities.percent
    environment.filters |= {name: getattr(wording, name) for name in ("measured", "limit", "interval")}
    environment.filters |= {"brief": _brief, "user_text": user_text, "reference": answers.reference_text}
    return environment


def _head(chain: Provenance, judged: Verdict | None, files: Mapping[str, str]) -> dict[str, Any]:
    licence_file = next((name for name in sorted(files) if name.startswith("LICENSE")), None)
    is_adapter = "adapter_config.json" in files
    matter = front_matter.text(chain, is_adapter=is_adapter, licence_file=licence_file)
    limits = limits_of(chain, judged, licence_file=licence_file)
    return {"front_matter": matter, "limits": limits, "is_adapter": is_adapter}


def _commands(exported: Iterable[str]) -> list[str]:
    """Returns the commands that serve the exported files, one per format."""
    gguf = [name for name in sorted(exported) if name.endswith(".gguf")]
    folders = {name.rpartition("/")[0] for name in exported if name not in gguf}
    return [f"llama-server -m {name}" for name in gguf] + [f"vllm serve {name}" for name in sorted(folders)]


def _snippet(chain: Provenance, rows: list[AnsweredPrompt], folder: str) -> dict[str, Any]:
    """Returns the names used in the snippet, as Python literals."""
    base = front_matter.base_of(chain)
    address = base.address.removeprefix(front_matter.HUB) if base else ""
    named = {"folder": folder, "base": address, "question": _question(rows)}
    return {f"{name}_literal": json.dumps(text) for name, text in named.items()} | {"max_new_tokens": MAX_NEW_TOKENS}


def limits_of(chain: Provenance, judged: Verdict | None, *, licence_file: str | None) -> list[str]:
    """Says in words what is known about the model, and what is not."""
    lines = []
    num_answers = judged.numbers.get("num_answers") if judged else None
    if num_answers:
        lines.append(f"It was judged by its answers to {num_answers:,.0f} held-out prompts of its own data sets.")
        lines.append("How it answers other kinds of prompts is not known.")
        right = judged.numbers.get("answer_accuracy")
        lines += [f"{abilities.percent(1 - right)} of those answers were wrong."] if right is not None else []
    else:
        lines.append("No gate kept any answers of this model: how it answers is not known.")
    rows = [link.config.get("max_seq_length") for link in chain.links if link.config.get("max_seq_length")]
    lines += [f"It was trained on no row longer than {max(rows):,} tokens."] if rows else []
    return [*lines, *_licence_lines(chain, licence_file)]


def _licence_lines(chain: Provenance, licence_file: str | None) -> list[str]:
    base = front_matter.base_of(chain)
    if base is None:
        return []
    restricted = licence.restriction(base.licence)
    words = restricted or f"is under {base.licence}"
    return [f"Its base model {wording.markdown(words)}." + (f" Its text: `{licence_file}`." if licence_file else "")]


def _question(rows: list[AnsweredPrompt]) -> str:
    """Returns a prompt to try: the first that the model was asked, or a greeting."""
    text = user_text(rows[0].prompt) if rows else ""
    return wording.visible(text)[:MAX_CHARS].replace("`", "'") if text else "Hello"


def _brief(text: str) -> str:
    """Formats a text of unknown origin for a table cell, cut where it is long."""
    return wording.markdown(text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} ...")


def _address(source: provenance.Source) -> str:
    """Formats an address as code, so that it can be copied, or escapes it if it could break out of the code."""
    text = str(source)
    return f"`{text}`" if re.fullmatch(r"[\w.:/@+=-]+", text, re.ASCII) else wording.markdown(text)
