"""Chooses settings from the survey of model and data, each with its reason.

`Survey`, addresses -> settings by their place in the configuration
"""

import math
from dataclasses import dataclass, field
from typing import Any

from posttrain import storage
from posttrain.config import PipelineConfig
from posttrain.config.limits import MATCHER_CHOICES
from posttrain.rows.held_out import supplies
from starter import form
from starter.survey import MeasuredRows, Survey, prefixes

TINY, SMALL = 10_000_000, 1_000_000_000  # parameters
LEARNING_RATES = {"sft": (5e-3, 8e-4, 2e-4), "dpo": (1e-3, 3e-4, 5e-5)}  # of a tiny model, a small one, any other
STEPS = 200  # optimizer steps that a stage should have
MAX_EPOCHS = {"sft": 5, "dpo": 3}
BATCH_SIZE = 4
MANY_ROWS = 4_000  # from here on, steps of 16 rows are enough of them
WANTED_ANSWERS = 64  # held-out prompts; `validation.num_generated_answers`
MAX_FRACTION = 0.3
NUM_DECISIVE = 150  # held-out prompts that decide at a confidence of 0.95 though some answers are wrong
FEWER_SURE = 0.8
SPARE = 1.25  # a model may say the same in more tokens

Path = tuple[str, ...]


@dataclass
class Draft:
    """Settings with their reasons, in the order in which they are written."""

    settings: dict[Path, tuple[Any, str]] = field(default_factory=dict)

    def set(self, path: str, value: Any, reason: str) -> None:
        """Adds a setting; `path` is its place, `sft.epochs`."""
        self.settings[tuple(path.split("."))] = (value, reason)

    @property
    def config(self) -> PipelineConfig:
        """The configuration with these settings.

        Raises:
            ValueError: they contradict each other.
        """
        raw: dict[str, Any] = {}
        for path, (value, _) in self.settings.items():
            section = raw
            for name in path[:-1]:
                section = section.setdefault(name, {})
            section[path[-1]] = value
        return PipelineConfig.model_validate(raw)


def choose(survey: Survey, addresses: dict[str, str], *, red_team: str | None, declines_with: str | None) -> Draft:
    """Chooses every setting for which the defaults need not fit."""
    draft = Draft()
    _addresses(draft, addresses, red_team)
    if survey.ignored_keys:
        draft.set("data.ignored_keys", survey.ignored_keys, "THE MODEL DOES NOT SEE THEM: their meaning is unknown")
    for kind, stage in (("sft", "sft"), ("preference", "dpo")):
        if kind in survey.rows:
            _training(draft, stage, survey, survey.rows[kind])
        else:
            draft.set(f"stages.{stage}.enabled", False, f"there are no {kind} rows")
    _form(draft, survey, declines_with)
    _harm(draft, red_team)
    _skills(draft, survey)
    _held_out(draft, survey)
    return draft


def _addresses(draft: Draft, addresses: dict[str, str], red_team: str | None) -> None:
    name = addresses["base_model"].rstrip("/").rpartition("/")[2].partition("@")[0] or "my-model"
    allowed = "".join(char if char.isalnum() or char in "._-" else "-" for char in name).lstrip("._-") or "my-model"
    draft.set("pipeline_id", f"{allowed}-tuned", "also the name to publish under")
    reasons = {
        "base_model": "the model to start from",
        "sft_dataset": "teaches what to answer",
        "preference_dataset": "teaches which of two answers is better",
        "storage_root": "keeps records, results, checkpoints and published models",
    }
    for key, reason in reasons.items():
        if addresses[key]:
            draft.set(key, addresses[key], reason)
    if any(uri and storage.is_remote(uri) for uri in (*addresses.values(), red_team)):
        draft.set("allowed_prefixes", prefixes(addresses, red_team), "places that a run may read and write")


def _training(draft: Draft, stage: str, survey: Survey, rows: MeasuredRows) -> None:
    longest, limit = max(rows.lengths), survey.max_positions
    length = math.ceil(longest / 32) * 32
    if limit and length > limit:
        num_long = sum(one > limit for one in rows.lengths)
        reason = f"tokens, the model's limit; the longest row has {longest}, and {num_long} rows are left out"
        draft.set(f"{stage}.max_seq_length", limit, reason)
    else:
        draft.set(f"{stage}.max_seq_length", length, f"tokens; the longest row has {longest}")
    size = 0 if survey.num_parameters < TINY else 1 if survey.num_parameters < SMALL else 2
    rate = LEARNING_RATES[stage][size]
    draft.set(f"{stage}.learning_rate", rate, f"for a model of {millions(survey.num_parameters)} parameters")
    accumulation = 1 if rows.num_rows < MANY_ROWS else 4
    per_step = BATCH_SIZE * accumulation
    draft.set(f"{stage}.batch_size", BATCH_SIZE, "rows at once")
    draft.set(f"{stage}.gradient_accumulation", accumulation, f"{per_step} of the {rows.num_rows} rows per step")
    per_epoch = max(1, rows.num_rows // per_step)
    epochs = min(MAX_EPOCHS[stage], math.ceil(STEPS / per_epoch))
    draft.set(f"{stage}.epochs", epochs, f"about {epochs * per_epoch} steps")


def _form(draft: Draft, survey: Survey, declines_with: str | None) -> None:
    rows = survey.rows.get("sft") or survey.rows["preference"]  # whose chosen answers may be the wrong ones
    recognised = form.recognise(rows.pairs, declines_with)
    values = recognised.output_format.model_dump(exclude_defaults=True)
    draft.set("validation.output_format.kind", recognised.output_format.kind, recognised.reason)
    for key in ("json_schema", "pattern"):
        if key in values:
            draft.set(
                f"validation.output_format.{key}", values[key], "fits every answer; make it as strict as you like"
            )
    if sentence := values.get("declines_with"):
        draft.set("validation.output_format.declines_with", sentence, "the sentence that declines; always well-formed")
    reason = MATCHER_CHOICES if recognised.answer_match == "none" else "how an answer is compared with the row's own"
    draft.set("validation.answer_match", recognised.answer_match, reason)
    longest = max(max(rows.answer_lengths) for rows in survey.rows.values())
    tokens = max(16, math.ceil(SPARE * longest / 8) * 8)
    draft.set("validation.max_new_tokens", tokens, f"the longest answer has {longest} tokens")


def _harm(draft: Draft, red_team: str | None) -> None:
    path = ("validation", "output_format", "declines_with")
    if red_team and path not in draft.settings:
        raise ValueError(
            f"--red-team-prompts {red_team}: no answer declines, so nothing could pass: add rows that decline with one "
            "sentence, and pass it as --declines-with"
        )
    if red_team:
        draft.set("validation.red_team_prompts", red_team, "harmful requests, which must be declined")
        draft.set("validation.judge", "closed_form", "an answer is harmless if it is the sentence that declines")
    else:
        checks, reason = ["output_format_valid"], "NOBODY JUDGES HARM: to have it judged, give --red-team-prompts"
        draft.set("validation.custom_checks", checks, reason)


def _skills(draft: Draft, survey: Survey) -> None:
    if survey.num_parameters < SMALL:
        reason = f"a model of {millions(survey.num_parameters)} parameters loses other skills as it learns; true checks"
        draft.set("validation.skills", False, reason)


def _held_out(draft: Draft, survey: Survey) -> None:
    """Chooses how many rows are held out, and at what confidence the gates decide."""
    num_prompts = max(len(rows.different) for rows in survey.rows.values())
    fraction = min(MAX_FRACTION, max(0.05, math.ceil(100 * WANTED_ANSWERS / num_prompts) / 100))
    if fraction * num_prompts < NUM_DECISIVE:
        reason = f"of every interval: about {fraction * num_prompts:.0f} held-out prompts are too few for 0.95"
        draft.set("validation.confidence", FEWER_SURE, reason)
    draft.set("data.eval_fraction", fraction, f"share of {num_prompts} prompts that are held out for the gates")
    needed = [supply for supply in shortages(draft.config, survey) if supply.eval_fraction]
    if needed:
        least = max(supply.eval_fraction for supply in needed)
        draft.set("data.eval_fraction", least, f"of {num_prompts} prompts, so that the gates can decide")


def shortages(config: PipelineConfig, survey: Survey) -> list:
    """Returns the kinds of rows of which too few are held out."""
    split = {kind: rows.held_out_at(config.data.eval_fraction) for kind, rows in survey.rows.items()}
    asked = {"red_team_prompts": survey.num_red_team}
    return [supply for supply in supplies(config.evidence, split, asked) if supply.is_short]


def millions(number: int) -> str:
    """`135 million`, `0.15 million`."""
    return f"{number / 1e6:.3g} million"
