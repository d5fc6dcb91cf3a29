"""Starts local steps in milliseconds, by forking them from processes that have imported what they need.

a compiled graph, the steps that an earlier run has finished -> a `Runner`

Two such processes run beside the pipeline. One serves steps without a model and is ready in a third of a second; the
other serves steps with a model and needs as long as the first of them would to import torch and trl.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.package import Package
from posttrain.config import ATTEMPTS_ENV
from posttrain.config.line import CHAMPION
from runner.fork_server import IS_POSSIBLE, WITH_MODEL, ForkServer
from runner.local import Process, ProcessRunner, Runner, Step


@dataclass
class ForkingRunner(ProcessRunner):
    """Forks each step from one of two processes, or starts it like a `ProcessRunner` where it cannot be forked."""

    needs_models: bool  # whether some step will load a model
    reused: Collection[str]  # steps that will have next to nothing to do
    servers: dict[str, ForkServer] = field(default_factory=dict)

    def start(self, step: Step, directory: Path, environment: dict[str, str], stdout: int) -> Process:
        if not self.servers:
            self._start_servers(directory, environment)
        loads_model = step.module in WITH_MODEL and step.name not in self.reused
        server = self.servers["models" if loads_model and self.needs_models else "plain"]
        if _shared(environment) == _shared(server.environment):  # which libraries read while the server imported them
            try:
                return server.fork(step.command[2:], environment=environment, stdout=stdout)
            except OSError:  # the server has been killed, or the request is too long
                pass
        return super().start(step, directory, environment, stdout)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()

    def _start_servers(self, directory: Path, environment: dict[str, str]) -> None:
        for name in ("plain", "models") if self.needs_models else ("plain",):
            self.servers[name] = ForkServer(name, directory=directory, environment=environment)


def _shared(environment: dict[str, str]) -> dict[str, str]:
    """Returns the variables that do not differ among the steps of a run."""
    return {name: value for name, value in environment.items() if name != ATTEMPTS_ENV}


@contextmanager
def forked(runner: Runner, package: Package, reused: Collection[str]) -> Iterator[Runner]:
    """Yields a runner that forks the steps of this graph, in place of a `ProcessRunner`; leaves any other."""
    if not (IS_POSSIBLE and type(runner) is ProcessRunner):
        yield runner
        return
    # check_champion loads none where the model is that of an earlier run, and is the only one that is never reused.
    to_do = [task for task in package.steps if task.constants.get("step") not in {*reused, CHAMPION}]
    forking = ForkingRunner(any(task.runs(module) for task in to_do for module in WITH_MODEL), reused)
    try:
        yield forking
    finally:
        forking.close()
