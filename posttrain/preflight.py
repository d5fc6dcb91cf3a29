"""Find, before anything expensive starts, everything that would end the run later: the first step of the graph.

configuration, run parameters -> nothing, or all problems at once, each with its value and its remedy

It takes seconds, without a GPU. Local files are read as the run would read them; remote ones are only looked up, and
later steps read them. GPU health and bfloat16 support can only be checked in the GPU pod itself, by
`posttrain.train.backend`.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import data, model, storage
from posttrain.config import LoraTraining, PipelineConfig, PreflightStep, check_name, parse_step, table
from posttrain.config.line import PREFLIGHT as STEP
from posttrain.config.line import TRAININGS
from posttrain.config.mixture import uris_of
from posttrain.config.parse import json_object
from posttrain.config.placement import SECRETS_FOLDER
from posttrain.nodes import kubernetes
from posttrain.nodes.kubernetes import Kubernetes
from posttrain.pages import wording
from posttrain.registries import registration
from posttrain.rows import chat, prompts
from posttrain.rows.chat import ChatTokenizer
from posttrain.rows.held_out import Prompts, supplies
from posttrain.serving import formats
from posttrain.signing import signature
from posttrain.step import cost, frame, kfp_io, run, settings, webhook
from posttrain.step.cost import Load
from posttrain.step.records import recent_records
from posttrain.step.running import Running
from posttrain.storage import hub
from posttrain.train import memory
from posttrain.weights.folder import check_gives_one_reward, check_model_folder, weights_size
from posttrain.weights.targets import Layout, Targets, check_trainable, resolve
from posttrain.weights.tokens import check_tokens

NUM_MEASURED_ROWS = 200  # of a data set, whose tokens are counted
SMALL_STORE = "minio://"  # the object store that an installation brings along
DATASETS = {"sft_dataset": "sft", "preference_dataset": "preference"}  # parameter -> kind of rows

logger = logging.getLogger(__name__)

Config = PipelineConfig | PreflightStep


@dataclass
class Counted:
    """Findings of the checks: row and prompt counts of local data, on which the gates decide, and the model."""

    data_sets: dict[str, Prompts | None]  # by kind; None: remote, unread or unreadable
    asked: dict[str, int] = field(default_factory=dict)  # distinct prompts by the key of their file
    layout: Layout | None = None  # of the base model; None: unreadable
    tokenizer: ChatTokenizer | None = None  # of the base model
    loads: dict[str, Load] = field(default_factory=dict)  # by training: the local data that it will read
    warning: str | None = None  # of the base model
    unexported: str = ""  # what a format of `export` cannot represent of the base model

    @classmethod
    def of(cls, config: Config) -> "Counted":
        """Makes the counts of a configuration, with nothing read yet."""
        return cls(dict.fromkeys(DATASETS[name] for name in datasets(config)))

    def shortages(self, config: Config) -> list[str]:
        """Lists the kinds of rows that are too few, with a remedy, one line each."""
        return [
            f"{supply.counted}: {supply.shortage}; {supply.remedy}"
            for supply in supplies(config.evidence, self.data_sets, self.asked)
            if supply.is_short
        ]


@dataclass
class Lengths:
    """Counts the rows of a training, and the tokens of the first few: a quick estimate."""

    tokenizer: ChatTokenizer | None  # None: unreadable
    num_rows: int = 0
    tokens: list[int] = field(default_factory=list)  # of each of the first rows

    def add(self, side: str, row: dict) -> None:
        if side != "train":
            return
        self.num_rows += 1
        if self.tokenizer and len(self.tokens) < NUM_MEASURED_ROWS:
            with suppress(ValueError, *chat.refusals()):  # a row that does not render is the data gate's to report
                self.tokens.append(chat.num_tokens(self.tokenizer, row))

    @property
    def mean(self) -> float | None:
        return sum(self.tokens) / len(self.tokens) if self.tokens else None


def check(config: Config, parameters: dict[str, Any], *, disk: Path) -> None:
    """Raises one ValueError with all problems.

    Args:
        disk: a folder, existing or not, on the disk for inputs and outputs of the steps.
    """
    refuse(findings(config, parameters, disk=disk))


def check_for_cluster(config: PipelineConfig, parameters: dict[str, Any]) -> None:
    """Raises ValueError for addresses that no pod could read. Remote ones are not looked up: pods may see more."""
    data_sets = {}
    for name in datasets(config):
        data_sets |= addresses_of(parameters[name], name=name)
    validation = config.validation
    run_time = {name: parameters[name] for name in ("base_model", "storage_root")} | data_sets
    others = {f"validation.{key}": uri for key, uri in prompts.given(validation).items()}
    others |= {"publish_root": config.publish_root, "validation.judge_model": validation.judge_model}
    others |= {"pairs.reward_model": config.pairs.reward_model if config.stages.pairs.enabled else None}
    others |= {f"pairs.prompts {uri}": uri for uri in uris_of(prompts_of_pairs(config))}
    others |= {"validation.lm_eval_data": validation.lm_eval_data if validation.lm_eval_tasks else None}
    addresses = {name: uri for name, uri in (run_time | others).items() if uri}
    others |= {"signing.keyless.trust_config": config.signing and config.signing.trust_config}
    local = [f"{name}={uri!r}" for name, uri in addresses.items() if storage.kind(uri) == "local"]
    if local:
        raise ValueError(
            f"{', '.join(local)}: on this machine, where no pod can see it; "
            "copy it to the cluster's storage and give its gs:// or s3:// address"
        )
    for name, uri in run_time.items():
        storage.check_allowed(uri, config.prefixes, name=name)
    storage.check_storage_root(parameters["storage_root"], config.storage_roots, name="storage_root")


def findings(config: Config, parameters: dict[str, Any], *, disk: Path, counted: Counted | None = None) -> list[str]:
    """Lists everything that would end the run later, one line each.

    It records what it learns about data and model in `counted`.
    """
    problems, counted = [], counted or Counted.of(config)
    for look in _looks(config, parameters, disk, counted):
        try:
            look()
        except (ValueError, OSError) as error:
            problems.append(wording.line(named(str(error), look)))
        except Exception as error:  # noqa: BLE001  no error of one check may hide the findings of the others
            logger.exception("unexpected error in a check")
            problems.append(wording.line(named(f"{type(error).__name__}: {error}", look)))
    return problems + counted.shortages(config)


def named(problem: str, look: partial) -> str:
    """Prefixes a problem with the setting that it is about: a file name alone does not say which."""
    setting = look.keywords.get("name") or SETTINGS.get(look.func, "")
    if look.func is check_prompts:
        setting = f"validation.{look.keywords['key']}"
    return problem if problem.startswith(setting) else f"{setting}: {problem}"


def refuse(problems: list[str]) -> None:
    """Raises one ValueError for all problems, if there are any."""
    if problems:
        raise ValueError(f"{len(problems)} problems: {'; '.join(problems)}" if len(problems) > 1 else problems[0])


def _looks(config: Config, parameters: dict[str, Any], disk: Path, counted: Counted) -> list[partial]:
    """Returns the checks; each raises on its own, and records in `counted` how many rows there are."""
    looks = [partial(check_name, parameters["model_name"], key="model_name")]
    looks.append(partial(check_storage_root, parameters["storage_root"], config))
    sources = config.sources if isinstance(config, PreflightStep) else {}
    looks += [partial(check_source, source, variable) for variable, source in sources.items()]
    runtimes = (config.training_runtimes or []) if isinstance(config, PreflightStep) else []
    looks += [partial(check_runtime, runtime) for runtime in runtimes]
    if config.signing and isinstance(config, PreflightStep):
        looks.append(partial(signature.check, config.signing, config.prefixes))
    if config.notify and isinstance(config, PreflightStep):
        looks.append(partial(webhook.check))
    if config.registries and config.registries.required and isinstance(config, PreflightStep):
        looks.append(partial(check_registries, config, parameters["storage_root"]))
    if config.publish_root:
        looks.append(partial(check_storage, config.publish_root, config, name="publish_root"))
    looks.append(partial(check_base_model, parameters["base_model"], config, counted, disk=disk))
    looks += [partial(check_targets, counted, config, stage) for stage in trained(config)]
    if prompts_of_pairs(config):
        looks.append(partial(check_prompts_of_pairs, config))
    if config.export:
        looks.append(partial(formats.check_installed, config.export))
        looks.append(partial(check_export, counted, name="export.formats"))
    if config.upload_to_hub:
        looks.append(partial(hub.check_upload, config.hub_repo_id, name="hub_repo_id"))
    looks += [partial(check_dataset, parameters[name], config, counted, name=name) for name in datasets(config)]
    files = prompts.given(config.validation)
    looks += [partial(check_prompts, uri, config, counted, key=key) for key, uri in files.items()]
    models = {"judge_model": config.validation.judge == "model" and config.validation.judge_model}
    models["match_options.judge_model"] = config.validation.matching_judge
    looks += [partial(check_model, uri, config, name=f"validation.{key}") for key, uri in models.items() if uri]
    if config.stages.pairs.enabled and config.pairs and config.pairs.reward_model:
        looks.append(partial(check_reward_model, config.pairs.reward_model, config, name="pairs.reward_model"))
    if config.validation.lm_eval_tasks:
        looks.append(partial(check_tasks, config.validation.lm_eval_data, config, name="validation.lm_eval_data"))
    return looks


def datasets(config: Config) -> list[str]:
    """Lists the parameters of the data sets that the graph reads."""
    read = {"sft": "sft", "preference": "brought_pairs"}
    return [name for name, kind in DATASETS.items() if config.stages.has(read[kind])]


def prompts_of_pairs(config: Config) -> str:
    """Returns the address of the separate prompts for which pairs are sampled; empty if there are none."""
    return config.pairs.prompts if config.stages.pairs.enabled else ""


def check_prompts_of_pairs(config: Config) -> None:
    """Checks the data set of `pairs.prompts`; local rows are read."""
    for name, uri in addresses_of(prompts_of_pairs(config), name="pairs.prompts").items():
        check_address(uri, config, name=name)
        if storage.kind(uri) == "local":
            data.prepare(uri, kind="sft", settings=config.data)


def check_storage_root(uri: str, config: Config) -> None:
    """Checks the storage root of a run: it is one of those that are allowed, and can be written to."""
    if config.storage_roots is not None:
        storage.check_storage_root(uri, config.storage_roots, name="storage_root")
    check_storage(uri, config, name="storage_root")


def check_source(source: str, variable: str) -> None:
    """Checks that the namespace has the secret or config map that sets `variable` in this pod.

    The other steps' pods would start without it, and fail hours later.
    """
    value = os.environ.get(variable, "")
    if not value or (value.startswith(SECRETS_FOLDER) and not Path(value).is_file()):
        raise ValueError(
            f"{source}: is missing or empty in the run's namespace; create it there, or remove it from placement"
        )


def check_runtime(runtime: str) -> None:
    """Checks what a training on several nodes needs from the cluster: its TrainingRuntime, and permission to use it.

    This pod has the same service account as the launch step's.
    """
    api = Kubernetes.of_this_pod()
    if api is None:
        raise ValueError("several nodes need a cluster, and this is not one: set nodes to 1, and compile again")
    forbidden = [f"{verb} trainjobs" for verb in kubernetes.VERBS if not api.may(verb, "trainjobs")]
    forbidden += [] if api.may("get", "trainingruntimes") else ["get trainingruntimes"]
    forbidden += [f"{verb} pods" for verb in ("get", "list") if not api.may(verb, "pods", group="")]
    if forbidden:
        raise ValueError(
            f"this pod's service account may not {', '.join(forbidden)} in namespace {api.namespace}: give it the Role "
            f"of {kubernetes.MANIFESTS}"
        )
    if not api.has_runtime(runtime):
        raise ValueError(
            f"namespace {api.namespace} has no TrainingRuntime {runtime!r}: apply {kubernetes.MANIFESTS} there, or "
            "name another one in training_runtime"
        )


def check_registries(step: PreflightStep, storage_root: str) -> None:
    """Queries registries whose refusal of a version would fail the run; raises ValueError with all faults."""
    if faults := registration.faults(step.registries, step.publish_root or storage_root):
        raise ValueError(" | ".join(faults))


def registry_warnings(step: PreflightStep, storage_root: str) -> list[str]:
    """Queries registries whose refusal does not stop publishing; returns one line for each fault."""
    if step.registries is None or step.registries.required:
        return []
    faults = registration.faults(step.registries, step.publish_root or storage_root)
    return [f"registries.{fault}; until it is fixed, models are published but not registered" for fault in faults]


def check_storage(uri: str, config: Config, *, name: str) -> None:
    storage.check_allowed(uri, config.prefixes, name=name)
    storage.check_writable(uri)


def trained(config: Config) -> list[str]:
    """Lists the stages that train."""
    return [stage for stage in TRAININGS.values() if getattr(config.stages, stage).enabled]


def check_targets(counted: Counted, config: Config, stage: str) -> Targets | None:
    """Checks that a stage's target modules are in the base model and can be merged; None if it could not be read."""
    if counted.layout is None:
        return None
    return resolve(counted.layout, getattr(config, stage).target_modules, setting=f"{stage}.target_modules")


def check_base_model(uri: str, config: Config, counted: Counted, *, disk: Path) -> None:
    num_bytes = check_model(uri, config, name="base_model")
    with model.described(uri) as (folder, layout):
        check_trainable(layout)
        counted.warning = check_tokens(folder, layout)
        with suppress(ValueError, OSError):  # without one, tokens are not counted: others check that it is there
            counted.tokenizer = ChatTokenizer(folder)
        counted.unexported = export_fault(folder, layout, config)
    counted.layout = layout
    num_copies = 1 + (config.stages.sft.enabled and config.stages.merge.enabled) + config.stages.dpo.enabled
    check_disk(disk, num_bytes, num_copies=num_copies)


def export_fault(folder: Path, layout: Layout, config: Config) -> str:
    """Says what a format of `export` cannot represent of the base model; empty if there is nothing."""
    if config.export is None:
        return ""
    try:
        formats.check_model(folder, layout, config.export)
    except ValueError as error:
        return str(error)
    return ""


def check_export(counted: Counted, *, name: str) -> None:
    """Refuses formats that cannot hold the base model: the trained model will have the same shape."""
    if counted.unexported:
        raise ValueError(f"{name}: {counted.unexported}")


def check_model(uri: str, config: Config, *, name: str) -> int:
    """Checks a model and returns the size of its weights, in bytes."""
    storage.check_allowed(uri, config.prefixes, name=name)
    place = storage.kind(uri)
    if place == "hub":
        return model.size_on_hub(uri, name=name)
    if place == "local":
        path = storage.local_path(uri)
        if not path.is_dir():
            fault = "is a file" if path.exists() else "does not exist"
            raise ValueError(f"{name}: {uri!r} {fault}; give a model's folder, org/name[@revision], gs:// or s3://")
        check_model_folder(path)
    sizes = storage.file_sizes(uri)
    if "config.json" not in sizes:
        raise ValueError(f"{name}: {uri!r} has no config.json; give the address of a model's folder")
    return weights_size(uri, sizes)


def check_reward_model(uri: str, config: Config, *, name: str) -> None:
    """Checks that a model exists and gives one reward."""
    check_model(uri, config, name=name)
    check_gives_one_reward(model.read_config(uri), source=uri)


def check_disk(disk: Path, num_bytes: int, *, num_copies: int) -> None:
    """Checks that the base model and each merged one fit on the disk: the last gate has all of them there."""
    folder = next(path for path in (disk, *disk.absolute().parents) if path.is_dir())
    free, needed = shutil.disk_usage(folder).free, num_copies * num_bytes
    if free < needed:
        sizes = f"{free / 1e9:.3g} GB free, and {num_copies} copies of the model are {needed / 1e9:.3g} GB"
        raise ValueError(f"{folder}: {sizes}; make room there, or choose nodes with a larger disk")


def check_dataset(dataset: str, config: Config, counted: Counted, *, name: str) -> None:
    by_name = addresses_of(dataset, name=name)
    for key, uri in by_name.items():
        check_address(uri, config, name=key)
    local = [uri for uri in by_name.values() if storage.kind(uri) == "local"]
    if len(local) == len(by_name):
        kind, lengths = DATASETS[name], Lengths(counted.tokenizer)
        prepared = data.prepare(dataset, kind=kind, settings=config.data, write=lengths.add)
        counted.data_sets[kind] = Prompts(prepared.held_out, set().union(*prepared.prompts.values()))
        training, section = ("train_dpo", config.dpo) if kind == "preference" else ("train_sft", config.sft)
        counted.loads[training] = Load(lengths.num_rows, section.epochs, lengths.mean)
        return
    for uri in local:  # only what is wrong with them: how many rows there are in all is not known here
        data.prepare(uri, kind=DATASETS[name], settings=config.data)


def check_address(uri: str, config: Config, *, name: str) -> None:
    """Checks that a run may read a data set, and that a remote one is there."""
    storage.check_allowed(uri, config.prefixes, name=name)
    place = storage.kind(uri)
    if place == "hub":
        hub.check_data_set(uri, name=name)
    elif place != "local" and not storage.exists(uri):
        raise ValueError(f"{name}: {uri!r} does not exist; give the address of one file")


def addresses_of(dataset: str, *, name: str) -> dict[str, str]:
    """Returns the addresses of a parameter's data sets by their names: `sft_dataset`, or of several `sft_dataset[0]`.

    Raises:
        ValueError: there is none, or the parameter begins like a list and is not one.
    """
    if not dataset:
        raise ValueError(f"{name} is empty; set it with --{name.replace('_', '-')} or in the configuration")
    try:
        uris = uris_of(dataset)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return {name: uris[0]} if len(uris) == 1 else {f"{name}[{at}]": uri for at, uri in enumerate(uris)}


def check_prompts(uri: str, config: Config, counted: Counted, *, key: str) -> None:
    """Checks the prompts of `validation.<key>`."""
    if not storage.is_remote(uri):
        counted.asked[key] = len(prompts.read_prompts(uri, config.prefixes, key=key))
        return
    storage.check_allowed(uri, config.prefixes, name=f"validation.{key}")
    if not storage.exists(uri):
        raise ValueError(f"validation.{key}: {uri!r} does not exist; give the address of one file")


def check_tasks(uri: str, config: Config, *, name: str) -> None:
    """Checks the folder of the tasks of lm-evaluation-harness."""
    storage.check_allowed(uri, config.prefixes, name=name)
    if not any(file.endswith((".yaml", ".yml")) for file in storage.list_files(uri)):
        raise ValueError(f"{name}: {uri!r} has no YAML file; give the folder with the tasks' YAML files and their data")


def memory_warnings(step: PreflightStep, base_model: str) -> list[str]:
    """Lists the trainings that will not fit on the GPU of their placement, if the placement says which GPU it is."""
    if not step.gpu_memory_gb:
        return []
    shape = memory.Shape.of(model.read_config(base_model))
    warnings = []
    for name, size in step.gpu_memory_gb.items() if shape else ():
        config: LoraTraining = getattr(step, TRAININGS[name])
        needed = memory.estimate(
            shape, config, num_ranks=step.num_gpus[name], checkpointing=config.gradient_checkpointing is not False
        )
        if needed.total > step.gpu_memory_fraction * size * 1e9:
            warnings.append(f"{name}: {memory.too_small(needed, config, section=TRAININGS[name], card_gb=size)}")
    return warnings


def without_gpu(step: PreflightStep) -> list[str]:
    """Names the steps that load a model where their placement has no GPU."""
    return [
        f"{name}: its placement has no GPU, so it will run on the CPU"
        for name, num_gpus in step.num_gpus.items()
        if not num_gpus
    ]


SETTINGS = {
    check_storage_root: "storage_root",
    check_base_model: "base_model",
    check_runtime: "placement.nodes",
    signature.check: "signing",
    webhook.check: "notify",
    check_registries: "registries",
}  # look without a name -> its setting


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base-model", required=True, help="org/name[@revision], gs://, s3:// or a folder")
    for name in DATASETS:
        parser.add_argument(f"--{name.replace('_', '-')}", required=True, help="path, gs://, s3:// or Hub id")
    parser.add_argument("--model-name", required=True, help="name to publish the model under")
    parser.add_argument("--notes", help="output: remarks that are not problems, Markdown")
    return parser


def main(argv: list[str] | None = None) -> None:
    args, compiled = parse_args(argv)
    step = parse_step(PreflightStep, args.config, args.overrides)
    run.configure_logging()
    root = kfp_io.artifacts_root(args.executor_input)
    # Before the record is begun: if the storage is not writable, nothing else would be reported.
    counted = Counted.of(step)
    problems = findings(step, vars(args), disk=kfp_io.output_folder(args.executor_input), counted=counted)
    if len(problems) > 1:
        print(*(f"problem: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    targets = [] if problems else target_lines(step, counted)
    expected = [] if problems else cost_lines(step, counted, storage_root=args.storage_root, base_model=args.base_model)
    for line in (*targets, *expected):
        logger.info("%s", line)
    warnings = [
        *without_gpu(step),
        *([] if problems else memory_warnings(step, args.base_model)),
        *([counted.warning] if counted.warning else []),
        *artifact_warnings(root),
        *registry_warnings(step, args.storage_root),
    ]
    for warning in warnings:
        logger.warning("%s", warning)

    def work(_: Running) -> dict[str, Any]:
        refuse(problems)
        settings.write(args.storage_root, compiled)
        if args.notes:
            storage.write_text(args.notes, notes(root, warnings, [*targets, *expected]))
        return {"artifacts": root} if root else {}

    outputs = {"notes": args.notes} if args.notes else {}
    frame.run_step(args, inputs={}, outputs=outputs, config=step, work=work, reusable=False)


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """Returns the flags, with the configuration of this step alone, and the settings of all steps."""
    args = build_parser().parse_args(argv)
    compiled = settings_of_all(args.config)
    return argparse.Namespace(**vars(args) | {"config": json.dumps(compiled[STEP])}), compiled


def settings_of_all(config: str) -> dict[str, dict[str, Any]]:
    """Returns the settings of all steps that the graph was compiled with; a step by hand has its own alone."""
    values = json_object(config, "--config")
    return table.settings_of(values) if table.is_table(values) else {STEP: values}


def artifact_warnings(root: str | None) -> list[str]:
    """Warns of a place for artifacts that is small in most installations."""
    if not root or not root.startswith(SMALL_STORE):
        return []
    return [
        f"artifacts go to {root}, the installation's own store, often a 20 GiB disk for all runs: a run writes its "
        "models there several times; start the run with a pipeline root in a bucket"
    ]


def target_lines(config: Config, counted: Counted) -> list[str]:
    """Lists the layers that each training will adapt."""
    lines = {stage: check_targets(counted, config, stage) for stage in trained(config)}
    return [f"{stage} trains adapters on {targets}" for stage, targets in lines.items() if targets]


def cost_lines(step: PreflightStep, counted: Counted, *, storage_root: str, base_model: str) -> list[str]:
    """Says what each training will read and what the run is expected to cost, as far as that is known."""
    try:
        known = cost.costs(recent_records(storage_root), base_model=base_model, loads=counted.loads)
    except (OSError, ValueError) as error:
        logger.warning("the costs of earlier runs cannot be read: %s", wording.line(str(error)))
        known = {}
    shape = memory.Shape.of(counted.layout.config) if counted.layout else None
    lines = []
    for name in (name for name, stage in TRAININGS.items() if stage in trained(step)):
        load, before = counted.loads.get(name), known.get(name)
        words = [load.words if load else "its rows are remote and not counted"]
        words += [before.words if before else "time unknown, as no earlier run has this base model"]
        words += [gpu_memory(step, shape, name)] if shape and step.num_gpus.get(name) else []
        lines.append(f"{name}: {'; '.join(words)}")
    return [*lines, *([f"the run: {cost.sentence(known)}"] if known else [])]


def gpu_memory(step: PreflightStep, shape: memory.Shape, name: str) -> str:
    """Says how much memory of each GPU a training is estimated to take, with and without gradient checkpointing."""
    config, num_ranks = getattr(step, TRAININGS[name]), step.num_gpus[name]
    most, least = (
        memory.estimate(shape, config, num_ranks=num_ranks, checkpointing=on).total / 1e9 for on in (False, True)
    )
    return f"an estimated {least:.0f} to {most:.0f} GB per GPU, with and without gradient checkpointing"


def notes(root: str | None, warnings: list[str], targets: list[str]) -> str:
    """Renders preflight's remarks on a run that can start."""
    lines = [f"Artifacts go to {root}."] if root else []
    lines += [f"{line}." for line in targets]
    lines += [f"Warning: {warning}" for warning in warnings]
    return "\n\n".join(map(wording.markdown, lines or ["Found nothing that would end the run."])) + "\n"


if __name__ == "__main__":
    main()
