"""Writes the draft of a configuration, if the pipeline can take the model and the rows.

command line -> YAML file; what was seen, on the terminal
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipelines.compiler import check_gates_can_judge
from posttrain import model, preflight, storage
from posttrain.config import CheckDataStep, DataConfig, PipelineConfig, load_config
from posttrain.config.limits import DataLimits
from posttrain.config.requirements import check_decidable
from posttrain.config.unjudged import unjudged
from posttrain.rows import prompts
from runner.parameters import absolute
from starter import survey as surveys
from starter.choices import Draft, choose, millions
from starter.survey import Survey

NOTED = ("warning", "left out")  # beginnings of remarks of a check that passes
WIDTH = 60  # of a setting, before its reason


def write(args: argparse.Namespace, output: Path) -> None:
    """Looks, chooses, checks and writes.

    Raises:
        ValueError: the pipeline cannot take the model or the rows, or the file exists. Nothing is written then.
    """
    if output.exists():
        raise ValueError(f"{output}: exists; give another --output, or remove it")
    names = ("base_model", "sft_dataset", "preference_dataset", "storage_root")
    inputs = {name: getattr(args, name) for name in names}
    addresses = {name: absolute(uri) for name, uri in inputs.items()}
    survey = surveys.look(addresses, args.red_team_prompts)
    describe(survey, inputs)
    draft = choose(survey, inputs, red_team=args.red_team_prompts, declines_with=args.declines_with)
    text = to_yaml(draft)
    config = read_back(text)
    check(config, addresses, survey)
    output.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(output, text)
    for sentence in (*unseen(config.data), *unjudged(config.validation)):
        print(f"warning: {sentence}")
    print(f"\nWritten: {output}. Read it, then run\n\n  python run_pipeline.py --config {output}")


def unseen(settings: DataConfig) -> list[str]:
    """Warns of the columns that the draft leaves out."""
    if not settings.ignored_keys:
        return []
    names = ", ".join(map(repr, settings.ignored_keys))
    return [
        f"the model will not see {names}: their meaning is unknown, so data.ignored_keys lists them; "
        "if answers depend on them, put them into the messages, and start again"
    ]


def describe(survey: Survey, addresses: dict[str, str]) -> None:
    """Prints what was seen."""
    kind = survey.settings.get("model_type")
    positions = f", reads {survey.max_positions} tokens" if survey.max_positions else ""
    print(f"{addresses['base_model']}: {kind}, {millions(survey.num_parameters)} parameters{positions}")
    for name, kind in preflight.DATASETS.items():
        if rows := survey.rows.get(kind):
            print(
                f"{addresses[name]}: {rows.num_rows} rows of {rows.format}, {len(rows.different)} prompts; "
                f"{min(rows.lengths)} to {max(rows.lengths)} tokens, the longest answer {max(rows.answer_lengths)}"
            )
    if survey.asks_for_date:
        print("The chat template writes today's date: training and gates use one fixed date instead.")


def to_yaml(draft: Draft) -> str:
    """Formats the settings, each with its reason, section by section."""
    lines = ["# Drafted by start.py. Every key with its unit and default: docs/configuration.md."]
    before: tuple[str, ...] = ()
    ordered = sorted(
        draft.settings, key=lambda path: [_place(path[:depth], draft) for depth in range(1, len(path) + 1)]
    )
    for path in ordered:
        for depth in range(1, len(path)):
            if path[:depth] != before[:depth]:
                lines += [""] * (depth == 1) + [f"{'  ' * (depth - 1)}{path[depth - 1]}:"]
        value, reason = draft.settings[path]
        line = f"{'  ' * (len(path) - 1)}{path[-1]}: {_scalar(value)}"
        lines.append(f"{line:<{WIDTH}}  # {reason}")
        before = path
    return "\n".join(lines) + "\n"


def _place(section: tuple[str, ...], draft: Draft) -> int:
    """Returns where a section begins among the settings, to keep each section together."""
    return next(at for at, path in enumerate(draft.settings) if path[: len(section)] == section)


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def read_back(text: str) -> PipelineConfig:
    """Loads the text as a run would."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "draft.yaml")
        storage.write_text(path, text)
        return load_config(path)


def check(config: PipelineConfig, addresses: dict[str, str], survey: Survey) -> None:
    """Refuses anything that would end the run before it trains: when it is compiled, in preflight, or at the data gate.

    Raises:
        ValueError: with every problem; if there are several, each is also printed on a line.
    """
    check_gates_can_judge(config)
    check_decidable(config)
    surveys.refuse(preflight.findings(config, {"model_name": config.pipeline_id} | addresses, disk=Path()))
    refuse_rows(config, addresses)


def refuse_rows(config: PipelineConfig, addresses: dict[str, str]) -> None:
    """Runs the data gate. Its checks that do not pass are the problems."""
    from posttrain import data
    from posttrain.rows import chat
    from validators import data as gate

    kinds = {kind: addresses[name] for name, kind in preflight.DATASETS.items() if addresses[name]}
    rows: dict[str, list[dict]] = {f"{kind}_{side}": [] for kind in kinds for side in data.SIDES}
    for kind, uri in kinds.items():
        data.prepare(
            uri, kind=kind, settings=config.data, write=lambda side, row, kind=kind: rows[f"{kind}_{side}"].append(row)
        )
    files = prompts.given(config.validation)
    asked = {
        key: [
            {"id": f"prompt {at}", "prompt": one}
            for at, one in enumerate(prompts.read_prompts(uri, config.prefixes, key=key), 1)
        ]
        for key, uri in files.items()
    }
    limits = DataLimits.model_validate(config.validation.model_dump(include=set(DataLimits.model_fields)))
    step = CheckDataStep(validation=limits, evidence=config.evidence, sft=config.sft, dpo=config.dpo)
    with tempfile.TemporaryDirectory() as temporary, model.described(addresses["base_model"]) as (folder, _):
        measured = gate.measure(
            lambda: chat.ChatTokenizer(folder), rows, asked, step, manifest=str(Path(temporary, "manifest.json"))
        )
    judged = [*gate.judge(measured.read(gate.Numbers), step.validation, step.evidence), *measured.failures]
    for one in judged:
        if one.status == "passed" and one.detail.startswith(NOTED):
            print(f"{one.name}: {one.detail}")
    surveys.refuse([one.sentence for one in judged if one.status != "passed"])
