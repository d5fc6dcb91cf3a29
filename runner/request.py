"""Reads what the command line asks for: a configuration, the parameters of one run, and a sweep if there is one.

parsed command line, YAML files -> `RunRequest`
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.compiler import compile_graph, compile_sweep
from pipelines.steps import step_names
from pipelines.sweep import sweep_steps
from posttrain.config import PipelineConfig, ReportStep, load_config
from posttrain.config.sweep import SweepConfig
from runner.parameters import absolute_paths, for_storage_root, run_parameters


@dataclass(frozen=True)
class RunRequest:
    """A graph and the values to run it with."""

    config: PipelineConfig
    parameters: dict[str, Any]  # of the run
    sweep: SweepConfig | None = None

    @classmethod
    def read(cls, args: argparse.Namespace) -> "RunRequest":
        """Reads the files that the command line names.

        Raises:
            ValueError: a file or a flag says something that cannot be run.
        """
        config = absolute_paths(load_config(args.config, args.settings))
        sweep = SweepConfig.read(args.sweep).for_line(config.stages, config.validation) if args.sweep else None
        parameters = run_parameters(config, args)
        return cls(for_storage_root(config, parameters["storage_root"]), parameters, sweep)

    @property
    def storage_root(self) -> str:
        return self.parameters["storage_root"]

    @property
    def steps(self) -> list[str]:
        """The steps of a run that succeeds, in the order of the graph."""
        return sweep_steps(self.config, self.sweep) if self.sweep else step_names(self.config)

    @property
    def report_settings(self) -> ReportStep:
        """The configuration of the step that reports this run."""
        return ReportStep(pipeline_id=self.config.pipeline_id, steps=self.steps)

    def compile(self, path: Path, *, by_trial: bool = False) -> None:
        """Writes the graph; `by_trial` as for `compile_sweep`."""
        if self.sweep:
            compile_sweep(self.config, self.sweep, path, by_trial=by_trial)
        else:
            compile_graph(self.config, path)
