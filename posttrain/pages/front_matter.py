"""Writes the front matter of a model card as the Hub reads it: base, licence, data sets, and what the gates measured.

chain -> YAML; https://huggingface.co/docs/hub/model-cards#model-card-metadata

The numbers are those of the gates that judged the published model on rows: each check with an interval, and the shares
of right, well-formed and harmless answers.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from posttrain.config.limits import HARM
from posttrain.pages import abilities
from posttrain.pages.wording import SKILLS
from posttrain.step.provenance import Provenance, Source
from posttrain.verdict import Verdict
from posttrain.weights.licence import UNSAID

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# What a number was measured on, by the start of its name; every other one on held-out rows.
PROMPTS = {
    "harmless": "red-team prompts",
    HARM: "red-team prompts",
    "over_refusal": "legitimate prompts",
    "legitimate": "legitimate prompts",
    "off_topic": "off-topic prompts",
    SKILLS: "general skills",
}
HUB = "hf://"
TASK = "text-generation"


def text(chain: Provenance, *, is_adapter: bool, licence_file: str | None = None) -> str:
    """Returns the YAML, without the lines of dashes around it.

    Args:
        licence_file: the file of the model with the text of its licence.
    """
    from huggingface_hub import ModelCardData

    base, results = base_of(chain), list(_results(chain))
    known: dict[str, Any] = _licence(base, licence_file)
    if base and base.address.startswith(HUB):
        known |= {"base_model": base.address.removeprefix(HUB)}
        known |= {"base_model_relation": "adapter" if is_adapter else "finetune"}
    if data_sets := _hub_data_sets(chain):
        known["datasets"] = data_sets
    if results:
        known |= {"eval_results": results, "model_name": chain.model_name}
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers", pipeline_tag=TASK, tags=["post-training"], **known
    )
    return data.to_yaml()


def base_of(chain: Provenance) -> Source | None:
    """Returns the model that the line started from."""
    return next((link.source for link in chain.links if link.source and "model" in link.outputs), None)


def _licence(base: Source | None, licence_file: str | None) -> dict[str, str]:
    """Returns the licence in the Hub's words: its name, or that a file has it, or that it is unknown."""
    licence = base.licence if base else ""
    if licence and licence not in UNSAID:
        return {"license": licence}
    if licence_file:
        return {"license": "other", "license_name": "of-the-base-model", "license_link": licence_file}
    return {"license": licence or "unknown"}


def _hub_data_sets(chain: Provenance) -> list[str]:
    """Returns the Hub's names of the data sets that were trained on."""
    links = [link for link in chain.links if link.source and "model" not in link.outputs]
    sources = [part for link in links for part in getattr(link.source, "parts", None) or [link.source]]
    names = [source.address.removeprefix(HUB) for source in sources if source.address.startswith(HUB)]
    return list(dict.fromkeys(names))


def _results(chain: Provenance) -> Iterator["EvalResult"]:
    for gate, verdict in chain.gates.items():
        if chain.sha256 in verdict.subject.values():
            yield from _of_gate(gate, verdict)


def _of_gate(gate: str, verdict: Verdict) -> Iterator["EvalResult"]:
    """Yields the abilities of the model that a gate measured, and the value of each check with an interval."""
    from huggingface_hub import EvalResult

    known = abilities.abilities(verdict)
    shares = {one.name: one.shares["model"].value for one in known if "model" in one.shares}
    skills = {one.name for one in known if one.group == "Skills"}
    values = {check.name: check.value for check in verdict.checks if check.value is not None and check.interval}
    names = {name: name.replace(" ", "_").replace("-", "_") for name in shares}
    for name, value in (shares | values).items():
        asked = next((rows for start, rows in PROMPTS.items() if name.startswith(start)), "held-out rows")
        asked = PROMPTS[SKILLS] if name in skills else asked
        yield EvalResult(
            task_type=TASK, dataset_type=asked.replace(" ", "-"), dataset_name=f"{asked}, judged by {gate}",
            metric_type=names.get(name, name), metric_name=name, metric_value=round(value, 6),
        )  # fmt: skip
