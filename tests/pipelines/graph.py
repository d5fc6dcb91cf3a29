"""A compiled package as tests look at it."""

from pathlib import Path

import yaml

from posttrain.config import ATTEMPTS_ENV, Attempts, table

# Shape of the graph -> the settings that give it.
SHAPES = {
    "full": [],
    "sft_only": ["stages.dpo.enabled=false"],
    "dpo_only": ["stages.sft.enabled=false"],
    "pairs": ["stages.pairs.enabled=true"],
    "pairs_alone": ["stages.pairs={enabled: true, alone: true}", 'preference_dataset=""'],
    "exported": ["export.formats=[q8_0]"],
    "registered": [
        "registries.model_registry.url=http://model-registry-service.kubeflow.svc:8080",
        "registries.mlflow={tracking_uri: 'https://mlflow.example.com', secret: mlflow, key: token}",
    ],
    "adapter": [
        "stages.dpo.enabled=false",
        "stages.merge.enabled=false",
        "validation.custom_checks=[output_format_valid]",
    ],
}


class Graph:
    """A compiled package, with the tasks of all its nested groups by their display names."""

    def __init__(self, path: Path):
        self.spec, self.platform = yaml.safe_load_all(path.read_text())
        self.tasks, self.conditions = {}, {}
        self._walk(self.spec["root"], under=())

    def _walk(self, component: dict, under: tuple[str, ...]) -> None:
        for name, task in component["dag"]["tasks"].items():
            child = self.spec["components"][task["componentRef"]["name"]]
            if "dag" in child:
                condition = task.get("triggerPolicy", {}).get("condition")
                self.conditions |= {task["taskInfo"]["name"]: condition} if condition else {}
                self._walk(child, (*under, task["taskInfo"]["name"]))
            else:
                executor = self.spec["deploymentSpec"]["executors"][child["executorLabel"]]
                self.tasks[task["taskInfo"]["name"]] = {
                    "under": under,
                    "task": task,
                    "container": executor["container"],
                    "kubernetes": self.kubernetes(child["executorLabel"]),
                    "key": name,
                }

    def kubernetes(self, executor: str) -> dict:
        return self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].get(executor, {})

    def config_of(self, step: str) -> dict:
        """The settings of a step: those that it gets, or those of the table that preflight gets."""
        constant = self.tasks[step]["task"]["inputs"]["parameters"]["config"]["runtimeValue"]["constant"]
        if not table.is_table(constant) and not table.referred(constant):
            return constant
        compiled = self.tasks["preflight"]["task"]["inputs"]["parameters"]["config"]["runtimeValue"]["constant"]
        settings = table.settings_of(compiled)
        assert step == "preflight" or table.reference(settings[step]) == constant
        return settings[step]

    def attempts_of(self, step: str) -> Attempts:
        variables = {variable["name"]: variable["value"] for variable in self.tasks[step]["container"]["env"]}
        return Attempts.parse(variables[ATTEMPTS_ENV])
