"""The model card and its front matter, from chains that a test writes: every line that it may have, and when."""

import pytest
import yaml

from posttrain.pages import card, front_matter
from posttrain.step.provenance import Link, Mixture, Provenance, Source, Weighted
from posttrain.verdict import Verdict, at_most, holds

MODEL = "a" * 64


def link(step: str, *, outputs: tuple[str, ...] = ("model",), **changes) -> Link:
    made = {name: name * 3 for name in outputs}
    return Link(
        **{"step": step, "fingerprint": "f", "code": None, "config": {}, "inputs": {}, "outputs": made} | changes
    )


def source(address: str, **words: str) -> Source:
    return Source(address=address, sha256="0" * 64, **words)


def gate(step: str = "check_safety", *, model: str = MODEL, outputs: tuple[str, ...] = ("answers",), **changes) -> Link:
    values = {"gate": step, "subject": {"model": model}, "checks": (at_most("loss", 1.23456789, 2.0),)} | changes
    return link(step, outputs=outputs, verdict=Verdict(**values).model_dump(mode="json"))


def chain(*links: Link) -> Provenance:
    named = {"model_name": "m", "version": "v1", "published_at": "2026-01-01T00:00:00+00:00"}
    return Provenance(run_id="r", sha256=MODEL, links=links, **named)


def matter(*links: Link, **options) -> dict:
    return yaml.safe_load(front_matter.text(chain(*links), **{"is_adapter": False} | options))


BASE = link("fetch_model", source=source("hf://acme/base", licence="mit"))
ANSWERED = {"num_answers": 1200.0, "answer_accuracy": 0.25}


def limits(*links: Link, numbers: dict | None = None, licence_file: str | None = None) -> list[str]:
    judged = None if numbers is None else Verdict(gate="g", subject={}, checks=(holds("x", True),), numbers=numbers)
    return card.limits_of(chain(*(links or (link("x"),))), judged, licence_file=licence_file)


def test_the_limits_say_what_is_known_and_what_is_not():
    assert limits() == limits(numbers={}) == ["No gate kept any answers of this model: how it answers is not known."]
    asked = [
        "It was judged by its answers to 1,200 held-out prompts of its own data sets.",
        "How it answers other kinds of prompts is not known.",
    ]
    assert limits(numbers={"num_answers": 1200.0}) == asked
    assert limits(numbers=ANSWERED) == [*asked, "75 % of those answers were wrong."]
    assert limits(numbers=ANSWERED | {"answer_accuracy": 0.0})[-1] == "100 % of those answers were wrong."


def test_the_limits_name_the_longest_rows_of_all_trainings():
    trainings = [link(f"train_{number}", config={"max_seq_length": number}) for number in (1024, 2048, 512)]
    assert limits(*trainings)[-1] == "It was trained on no row longer than 2,048 tokens."


def test_the_limits_name_the_licence_of_the_base():
    assert limits(BASE)[-1] == "Its base model is under mit."
    assert limits(BASE, licence_file="LICENSE.txt")[-1] == "Its base model is under mit. Its text: `LICENSE.txt`."
    assert "Its base model" not in "".join(limits(link("prepare_sft_data", outputs=("train",))))


def test_the_front_matter_says_what_a_model_was_made_from():
    parts = (Weighted(address="hf://acme/a", sha256="1", weight=1), Weighted(address="gs://b/c", sha256="2", weight=2))
    data_sets = [
        link("prepare_sft_data", outputs=("train",), source=Mixture(address="two", sha256="3", parts=parts)),
        link("prepare_preferences", outputs=("train",), source=source("hf://acme/a")),
        link("prepare_more", outputs=("train",), source=source("/mnt/rows.jsonl")),
        link("train_sft", inputs={"base": "model"}),
    ]
    read = matter(*data_sets, BASE)
    assert (read["base_model"], read["base_model_relation"], read["license"]) == ("acme/base", "finetune", "mit")
    assert read["datasets"] == ["acme/a"]
    assert matter(BASE, is_adapter=True)["base_model_relation"] == "adapter"
    assert (read["library_name"], matter(BASE, is_adapter=True)["library_name"]) == ("transformers", "peft")
    assert (read["pipeline_tag"], read["tags"]) == ("text-generation", ["post-training"])
    assert "model-index" not in read


def test_the_front_matter_names_no_base_of_another_place_and_no_data_set_that_nobody_finds():
    read = matter(link("fetch_model", source=source("gs://b/base")), link("x", outputs=("train",)))
    assert not {"base_model", "base_model_relation", "datasets"} & read.keys()
    assert matter(link("train_sft")) == matter(link("x", outputs=("train",)))


@pytest.mark.parametrize(
    ("licence", "file", "words"),
    [
        ("apache-2.0", "LICENSE", {"license": "apache-2.0"}),
        ("other", None, {"license": "other"}),
        ("", None, {"license": "unknown"}),
        ("", "LICENSE", {"license": "other", "license_name": "of-the-base-model", "license_link": "LICENSE"}),
        ("unknown", "COPY", {"license": "other", "license_name": "of-the-base-model", "license_link": "COPY"}),
    ],
)
def test_the_licence_is_in_the_words_of_the_hub(licence, file, words):
    read = matter(link("fetch_model", source=source("hf://a/b", licence=licence)), licence_file=file)
    assert {key: value for key, value in read.items() if key.startswith("license")} == words
    assert matter(link("x", outputs=("train",)))["license"] == "unknown"


def test_the_results_are_those_of_the_gates_that_judged_this_model():
    numbers = {"num_answers": 8.0, "answer_accuracy": 0.5, "base_answer_accuracy": 0.1, "before_format_valid_rate": 1.0}
    checks = (
        at_most("loss", 1.23456789, 2.0, interval=(1.1, 1.4)),
        at_most("seconds", 3.0, 4.0),
        holds("finite", True),
        at_most("late", None, 1.0),
    )
    judged = gate(checks=checks, numbers=numbers)
    (model,) = matter(gate("check_other", model="b" * 64), judged)["model-index"]
    assert model["name"] == "m"
    metrics = {metric["type"]: metric for one in model["results"] for metric in one["metrics"]}
    assert {name: metric["value"] for name, metric in metrics.items()} == {"right_answers": 0.5, "loss": 1.234568}
    assert metrics["right_answers"]["name"] == "right answers"
    assert {one["dataset"]["name"] for one in model["results"]} == {"held-out rows, judged by check_safety"}


def test_the_card_asks_the_first_question_or_greets():
    text = card.model_card(chain(BASE, gate()), card.Evidence(), files={"README.md": ""}, folder="gs://b/m")
    assert '"content": "Hello"' in text and 'pipeline("text-generation", "gs://b/m"' in text
    assert "max_new_tokens=256" in text and "## Answers" not in text
    adapter = card.model_card(chain(BASE, gate()), card.Evidence(), files={"adapter_config.json": ""})
    assert 'folder, base = ".", "acme/base"' in adapter


def test_the_card_says_what_no_gate_has_judged():
    kept = {"no harmful": holds("no_harmful_content", True), "other": holds("x", True)}
    text = {name: card.model_card(chain(gate(checks=(check,))), card.Evidence()) for name, check in kept.items()}
    assert "had no `no_harmful_content`" not in text["no harmful"] and "had no `no_harmful_content`" in text["other"]
    unjudged = card.model_card(chain(gate(answer_match="none", numbers=ANSWERED)), card.Evidence())
    assert "checked only their form" in unjudged and "answers are right" not in unjudged


def test_the_card_has_no_traces_of_its_template():
    text = card.model_card(chain(BASE, gate()), card.Evidence())
    assert "# m\n\n**Nobody judged whether the answers are harmful**" in text
    assert (
        "- Its base model is under mit.\n\n## Sources\n\n| step | source | SHA-256 |\n|---|---|---|\n| `fetch" in text
    )
    assert text.endswith("|---|---:|---|---|---|\n| `loss` | 1.235 | \u2264 2 |  |  |\n\n")


def test_the_first_licence_file_is_named():
    files = {"README.md": "", "LICENSE.b": "", "LICENSE.a": "", "COPYING": ""}
    assert "Its text: `LICENSE.a`." in card.model_card(chain(BASE, gate()), card.Evidence(), files=files)
