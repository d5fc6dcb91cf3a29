"""docs/configuration.md: what the sections say, word for word and complete."""

import json
import re

import pytest

from docs import reference
from posttrain.config import PipelineConfig, Section

ROW = re.compile(r"^\| `([\w.]+)` \| .+? \| (.+?) \| (.+?) \| (.+?) \| .+? \|$", re.MULTILINE)


class Base(Section):
    """A section with every kind of comment."""

    behind: int = 1  # metres; behind the value
    # seconds; above the value,
    # on two lines
    above: int = 2
    split: dict[str, int] = {
        "one": 1,  # inside the value
    }
    quiet: int = 3  # noqa: E501


class Derived(Base):
    """Another default."""

    behind: int = 10


def described(section: type[Section], name: str) -> str:
    (setting,) = [one for one in reference.settings(section) if one.key == name]
    return reference.description(setting)


def test_the_page_is_what_the_sections_say():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.text(), "run `make golden`"


def flat(section: Section, prefix: str = "") -> dict[str, object]:
    """The keys of a section with their values, without the code under test."""
    values = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Section) else {prefix + name: value}
    return values


def test_every_setting_has_one_row_with_its_default_and_its_meaning():
    rows = ROW.findall(reference.PAGE.read_text(encoding="utf-8"))
    defaults = flat(PipelineConfig())
    repeated = {
        key for key in defaults if key.startswith("placement.gpu.") and key not in dict.fromkeys(r[0] for r in rows)
    }
    assert [key for key, *_ in rows if key in defaults] == [*dict.fromkeys(key for key, *_ in rows)]
    assert {key for key, *_ in rows} == defaults.keys() - repeated
    for key in repeated:
        assert defaults[key] == defaults[key.replace("gpu", "cpu", 1)], key
    for key, default, meaning, readers in rows:
        assert json.loads(default.strip("`")) == defaults[key], key
        assert meaning.strip() and readers.strip(), key


def test_a_comment_is_found_behind_a_value_and_above_it():
    assert described(Base, "behind") == "metres; behind the value"
    assert described(Base, "above") == "seconds; above the value, on two lines"
    assert described(Base, "split") == "inside the value"


def test_another_default_keeps_the_comment():
    assert described(Derived, "behind") == "metres; behind the value"
    assert described(Derived, "above") == "seconds; above the value, on two lines"


def test_a_setting_without_a_comment_is_refused():
    with pytest.raises(ValueError, match=r"Base\.quiet has no comment"):
        described(Base, "quiet")


@pytest.mark.parametrize(
    ("key", "readers"),
    [
        ("storage_root", "every step"),
        ("sft_dataset", "preflight, prepare_sft_data"),
        ("validation.confidence", "every gate"),
        ("validation.max_merge_kl", "check_sft_merge, check_dpo_merge"),
        ("dpo.beta", "preflight, check_data, check_pairs, train_dpo, check_alignment, check_champion"),
        ("pairs.seed", "sample_pairs, check_pairs"),
        ("checkpoint_every_n_steps", "train_sft, train_dpo"),
        ("placement.cpu.memory", "the graph"),
        ("validation.timeout_minutes", "the graph"),
    ],
)
def test_who_reads_a_key(key, readers):
    assert reference.readers_of(key) == readers


def test_when_a_key_is_settled():
    assert [reference.fixed_at(key) for key in ("base_model", "sft.epochs", "validation.max_loss")] == [
        "run", "compile; run, by `overrides`", "compile",
    ]  # fmt: skip
