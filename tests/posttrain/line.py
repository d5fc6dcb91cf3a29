"""A short line in the real frame of a step, its work stood in for: fetch, prepare, gate, train, gate, merge, gate.

folder -> run record below <folder>/storage, the merged model to publish
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from pydantic import BaseModel
from pydantic_core import to_json

from posttrain import publish
from posttrain.config import RUN_ID_ENV, CheckAlignmentStep, PublishStep, SftConfig, StepSection
from posttrain.step import digests, frame, kfp_io
from posttrain.verdict import Check, Verdict, at_most, holds
from posttrain.weights.folder import source_digest

NO_SETTINGS = StepSection()
GATES = ["check_data", "check_sft", "check_safety"]
GOOD = (at_most("loss", 1.0, 2.0, detail="a | b", interval=(0.9, 1.1)), holds("finite", True))
METRICS = json.dumps({"total_steps": 8, "kept_step": 4, "kept_because": "best of 2 checkpoints"})
PROMPTS = "gs://acme/red_team.jsonl"


@dataclass
class Line:
    """One run. What a step gives depends on its name and on `seed` alone."""

    folder: Path
    run_id: str = "run-1"
    seed: str = ""
    taken: dict[str, dict[str, Path]] = field(default_factory=dict)  # by gates

    @property
    def root(self) -> str:
        return str(self.folder / "storage")

    @property
    def model(self) -> Path:
        return self.path("merge_sft", "model")

    def path(self, step: str, name: str) -> Path:
        return self.folder / "artifacts" / self.run_id / step / name

    def run(self) -> "Line":
        """All steps of a promoted run but the publishing."""
        base, tokenizer = self.fetch()
        data = self.prepare()
        self.judge("check_data", {"tokenizer": tokenizer} | {f"sft_{name}": path for name, path in data.items()})
        taken, given = {"base": base} | data, ["adapter", "metrics"]
        adapter = self.step("train_sft", taken, given, config=SftConfig(), metrics=METRICS)["adapter"]
        self.judge("check_sft", {"base": base, "adapter": adapter, "eval": data["eval"]})
        model = self.step("merge_sft", {"base": base, "adapter": adapter}, ["model", "info"])["model"]
        self.judge("check_safety", {"before": base, "model": model, "red_team_prompts": self.prompts})
        return self

    @property
    def prompts(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "red_team.jsonl").write_text("prompts")
        return self.folder / "red_team.jsonl"

    def fetch(self, **changes) -> tuple[Path, Path]:
        """`changes` of what the step measures."""
        told = {"source": "hf://acme/base", "commit": "c0ffee", "digest": source_digest(self.base)} | changes
        outputs = self.step("fetch_model", {}, ["model", "tokenizer"], measured=told)
        return outputs["model"], outputs["tokenizer"]

    def prepare(self) -> dict[str, Path]:
        told = {"source": str(self.data), "commit": "", "digest": digests.digest(self.data)}
        return self.step("prepare_sft_data", {}, ["train", "eval"], measured=told)

    @property
    def base(self) -> Path:
        """The base model, with a file beside it that nobody fetches."""
        folder = self.folder / "base"
        if not folder.exists():
            write_model(folder, f"fetch_model{self.seed}")
            (folder / "notes.txt").write_text("notes")
        return folder

    @property
    def data(self) -> Path:
        (self.folder / "sft.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        return self.folder / "sft.jsonl"

    def judge(
        self, gate: str, inputs: dict[str, Path] | None = None, *, checks: tuple[Check, ...] = GOOD,
        claims: dict | None = None, answers: str | None = None,
    ) -> None:  # fmt: skip
        """A gate with these checks, by default again on what it took before. `claims` stand in its verdict instead."""
        self.taken[gate] = inputs = self.taken[gate] if inputs is None else inputs
        subject = {name: digests.digest(path) for name, path in inputs.items()}
        verdict = Verdict(gate=gate, subject=subject, checks=checks).model_dump(mode="json") | (claims or {})
        limits = CheckAlignmentStep.model_validate({"validation": {"red_team_prompts": PROMPTS}})
        outputs, texts = ["verdict", "report"], {"text": to_json(verdict, indent=2).decode()}
        if answers is not None:
            outputs, texts = [*outputs, "answers"], texts | {"answers": answers, "measured": {"passed": True}}
        self.step(gate, inputs, outputs, config=limits, **texts)

    def step(
        self, step: str, inputs: dict[str, Path], outputs: list[str], *, config: BaseModel = NO_SETTINGS, **words
    ) -> dict[str, Path]:  # fmt: skip
        """Runs one step, `words` being the text of its files and what it measures."""
        paths = {name: self.path(step, name) for name in outputs}
        args = kfp_io.parser("posttrain.sft").parse_args(["--step", step, "--storage-root", self.root])

        def work(_) -> dict:
            for path in paths.values():
                write_model(path, step + self.seed) if path.name in ("model", "export") else path.write_text(
                    words.get(path.name) or words.get("text") or f"{path.name} of {step}{self.seed}"
                )
            return words.get("measured") or {}

        given = {name: str(path) for name, path in paths.items()}
        with patch.dict(os.environ, {RUN_ID_ENV: self.run_id}):
            frame.run_step(
                args, inputs={name: str(path) for name, path in inputs.items()}, outputs=given, config=config,
                work=work, reusable=False,
            )  # fmt: skip
        return paths

    def export(self) -> Path:
        """Writes exported files, and the verdict on them."""
        (folder,) = self.step("export_model", {"model": self.model}, ["export"]).values()
        self.judge("check_export", {"model": self.model, "export": folder})
        return folder

    @property
    def exported(self) -> tuple:
        """The folder of exported files and their SHA-256, if there is one."""
        folder = self.path("export_model", "export")
        return (folder, digests.file_digests(folder)) if folder.is_dir() else ()

    def edit(self, step: str, **changes) -> None:
        """Changes what stands in the record of a step."""
        (file,) = Path(self.root, "runs", self.run_id).glob(f"{step}.*.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def publish(self, root: str, *, version: str | None = None, **values) -> dict:
        """Publishes the merged model below `root`, under the name `m`; `values` are settings of the step."""
        gates = {"required_gates": GATES, "judged_gates": ["check_safety"]}
        settings = PublishStep(publish_root=root, **gates | values)
        with patch.dict(os.environ, {RUN_ID_ENV: self.run_id}):
            folders = publish.Folders(self.model, digests.file_digests(self.model), *self.exported)
            return publish.publish(folders, model_name="m", storage_root=self.root, settings=settings, version=version)


def write_model(folder: Path, text: str) -> None:
    """A folder with the names of a model's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text(f"{name} of {text}")
    config = {"model_type": "tiny", "architectures": ["TinyForCausalLM"], "made_by": text}
    (folder / "config.json").write_text(json.dumps(config))
