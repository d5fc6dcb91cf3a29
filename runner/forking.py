"""Local steps that begin in milliseconds: forked from processes that have imported what they need.

a compiled graph, the steps that an earlier run has done -> a `Runner`

Two such processes run beside the line: one for steps without a model, in a third of a second, and one for those with a
model, which takes as long as the first of them would take to import torch and trl.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.package import Package
from runner.forks import IS_POSSIBLE, WITH_MODEL, ForkServer
from runner.local import Process, Processes, Runner, Step, ends_with_us


@dataclass
class ForkedProcesses(Processes):
    """Runs each step as a process forked from one of two, or as `Processes` does where that cannot be."""

    needs_models: bool  # whether a step that loads a model is to be expected
    reused: Collection[str]  # steps that will hardly have anything to do
    servers: dict[str, ForkServer] = field(default_factory=dict)

    def start(self, step: Step, directory: Path, environment: dict[str, str], stdout: int) -> Process:
        if not self.servers:
            self._start_servers(directory, environment)
        loads_model = step.command[2] in WITH_MODEL and step.name not in self.reused
        server = self.servers["models" if loads_model and self.needs_models else "plain"]
        if environment == server.environment:  # which it has read when it began
            try:
                return server.fork(step.command[2:], environment=environment, stdout=stdout)
            except OSError:  # it has been killed, or the request is too long
                pass
        return super().start(step, directory, environment, stdout)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()

    def _start_servers(self, directory: Path, environment: dict[str, str]) -> None:
        for name in ("plain", "models") if self.needs_models else ("plain",):
            self.servers[name] = ForkServer(
                name, directory=directory, environment=environment, prefix=ends_with_us("KILL")
            )


@contextmanager
def forked(runner: Runner, graph: Path, reused: Collection[str]) -> Iterator[Runner]:
    """The runner for the length of a run of this graph; containers are started as they are."""
    if not (IS_POSSIBLE and type(runner) is Processes):
        yield runner
        return
    to_come = [task for task in Package.read(graph).tasks if task.constants.get("step") not in reused]
    processes = ForkedProcesses(any(task.runs(module) for task in to_come for module in WITH_MODEL), reused)
    try:
        yield processes
    finally:
        processes.close()
