"""Walks a compiled graph on this machine: decides which task runs when, and what follows from a failure.

tasks of a scope and their inputs -> their outputs; tasks that do not depend on each other run side by side

Values and their scopes, arguments, retries and loops are handled by kfp.local (2.17.0). Its own walk is not used:

- It does not find a named output in a condition, takes the condition for false and skips both branches of a gate, which
  leaves the run green. Ours reads one form, `<boolean> == true|false`, and raises for any other.
- It lets an exception escape past the exit task. Ours turns it into a failed task.
- It runs one task after another, independent ones in random order.
- It runs two iterations of a loop at once, whether they fit into memory or not, and waits for them when interrupted.
  `runner.loops` measures their memory, and ends them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kfp.local import io, utils
from kfp.local.orchestrator import enhanced_dag_orchestrator as kfp_walk
from kfp.local.orchestrator import task_executor, task_spec_utils
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.local.status import Status
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineTaskSpec

from pipelines.package import CONDITION
from runner import loops

Outputs = tuple[dict[str, Any], Status]
FAILED: Outputs = ({}, Status.FAILURE)


class GraphError(Exception):
    """The graph cannot go on: a step failed for good, or a reference has no value."""


@dataclass(frozen=True)
class Walk:
    """Runs the tasks of one graph once."""

    spec: Any  # PipelineSpec
    run_id: str
    artifacts: str  # folder of all outputs
    end_running: Callable[[], None]  # ends tasks in other threads when the walk is interrupted
    peak_memory: Callable[[], int]  # bytes that an iteration of a loop needs; 0: unknown
    errors: list[str]  # why the graph did not go on

    def run(self, arguments: dict[str, Any]) -> bool:
        """Runs the graph; returns whether every task that ran succeeded.

        Raises:
            GraphError: the outermost scope, where no exit task could run, cannot go on.
        """
        for name in ("_task_output_data", "_parent_input_data", "_parent"):
            existing(io.IOStore(), name)
        return self._run_scope(self.spec.root, arguments)[1] == Status.SUCCESS

    def _run_scope(self, component: Any, arguments: dict[str, Any], parent: io.IOStore | None = None) -> Outputs:
        scope, declared = io.IOStore(parent=parent), component.input_definitions
        inputs = OrchestratorUtils.join_user_inputs_and_defaults(dag_arguments=arguments, dag_inputs_spec=declared)
        for name, value in inputs.items():
            scope.put_parent_input(name, value)
        tasks = dict(sorted(component.dag.tasks.items()))
        exits = {name: task for name, task in tasks.items() if _is_exit(task)}
        succeeded = self._run_tasks({name: task for name, task in tasks.items() if name not in exits}, scope)
        succeeded &= all(self._keep(name, self._execute(name, task, scope), scope) for name, task in exits.items())
        if not succeeded:
            return FAILED
        return OrchestratorUtils.get_dag_outputs(dag_outputs_spec=component.dag.outputs, io_store=scope), Status.SUCCESS

    def _run_tasks(self, tasks: dict[str, Any], scope: io.IOStore) -> bool:
        """Runs each task when those that it depends on have ended; returns whether all succeeded or were skipped."""
        ended: dict[str, bool] = {}
        while waiting := {name: task for name, task in tasks.items() if name not in ended}:
            ready = {}
            for name, task in waiting.items():
                if not ended.keys() >= set(task.dependent_tasks):
                    continue
                if not (_runs_anyway(task) or all(ended[other] for other in task.dependent_tasks)):
                    ended[name] = self._keep(name, FAILED, scope)
                elif (condition := task.trigger_policy.condition) and not evaluate_condition(condition, scope):
                    ended[name] = True
                else:
                    ready[name] = partial(self._execute, name, task, scope)
            outputs = loops.side_by_side(ready, len(ready), self.end_running)
            ended |= {name: self._keep(name, output, scope) for name, output in outputs.items()}
        return all(ended.values())

    def _keep(self, name: str, outputs: Outputs, scope: io.IOStore) -> bool:
        """Puts status and outputs of a task into its scope; returns whether it succeeded."""
        values, status = outputs
        scope.put_task_status(name, "SUCCEEDED" if status == Status.SUCCESS else "FAILED")
        for key, value in values.items():
            scope.put_task_output(name, key, value)
        return status == Status.SUCCESS

    def _execute(self, name: str, task: Any, scope: io.IOStore) -> Outputs:
        """Runs one task: a scope of its own, the iterations of a loop, or a step."""
        component = self.spec.components[task.component_ref.name]
        try:
            if task.WhichOneof("iterator"):
                return self._run_loop(name, task, scope)
            if component.WhichOneof("implementation") == "dag":
                arguments = task_spec_utils.build_nested_dag_arguments(
                    task_name=name, task_spec=task, component_spec=component, io_store=scope
                )
                return self._run_scope(component, arguments, scope)
            return task_executor.execute_single_task(
                task_name=name, task_spec=task, io_store=scope, **self._common(), runner=None
            )
        except (GraphError, ValueError) as error:  # kfp raises ValueError for a reference without a value
            self.errors.append(str(error))
            return FAILED

    def _run_loop(self, name: str, task: Any, scope: io.IOStore) -> Outputs:
        """Runs the iterations of a loop; puts a list of each of their outputs into the scope, under the loop's name."""
        failed = kfp_walk._run_parallel_for_task(
            task_name=name, task_spec=task, io_store=scope, **self._common(), runner=None, parallel_executor=self
        )
        return FAILED if failed else ({}, Status.SUCCESS)

    def execute_parallel_tasks(
        self, tasks: list[tuple[str, Any]], io_store: io.IOStore, parallelism_limit: int, **common: Any
    ) -> tuple[dict[str, dict[str, Any]], Status]:
        """Runs the iterations of a loop when kfp.local asks for it."""
        return loops.run_iterations(
            {name: partial(self._execute, name, task, io_store) for name, task in tasks},
            num_at_once=lambda: loops.num_that_fit(parallelism_limit or len(tasks), self.peak_memory()),
            end_running=self.end_running,
        )

    def _common(self) -> dict[str, Any]:
        """Returns the arguments that kfp's functions take and pass on."""
        executors = self.spec.deployment_spec["executors"].items()
        return {
            "pipeline_resource_name": self.run_id,
            "components": dict(self.spec.components.items()),
            "executors": {name: utils.struct_to_executor_spec(executor) for name, executor in executors},
            "pipeline_root": self.artifacts,
            "unique_pipeline_id": self.run_id,
            "fail_stack": [],
        }


def _is_exit(task: Any) -> bool:
    """Tells whether the task is an exit handler's: only that gets the final status of the run."""
    return any(parameter.HasField("task_final_status") for parameter in task.inputs.parameters.values())


def _runs_anyway(task: Any) -> bool:
    """Tells whether the task also runs after failed tasks."""
    strategies = PipelineTaskSpec.TriggerPolicy.TriggerStrategy
    return task.trigger_policy.strategy == strategies.ALL_UPSTREAM_TASKS_COMPLETED


def evaluate_condition(condition: str, io_store: io.IOStore) -> bool:
    """Tells whether a branch is taken. Only the gates' `<boolean> == true|false` is read: nothing is run as code.

    Raises:
        GraphError: another form, a reference without a value, or a value that is not a boolean.
    """
    match = CONDITION.fullmatch(" ".join(condition.split()))
    if not match:
        raise GraphError(f"condition {condition!r} is not of the form <boolean> == true|false")
    value = _value_of(match["channel"], io_store)
    if not isinstance(value, bool):
        raise GraphError(f"condition {condition!r}: {match['channel']} is {value!r}, not true or false")
    return value is (match["wanted"] == "true")


def _value_of(channel: str, io_store: io.IOStore) -> Any:
    """Returns the value of `pipelinechannel--<task>-<output>` in the nearest scope that has it."""
    scope = io_store
    while scope is not None:
        values = [
            value
            for task, outputs in scope._task_output_data.items()
            for output, value in outputs.items()
            if channel == f"pipelinechannel--{task}-{output}"
        ]
        values += [value for name, value in scope._parent_input_data.items() if name == channel]
        if len(values) > 1:
            raise GraphError(f"condition: {channel} names {len(values)} values")
        if values:
            return values[0]
        scope = scope._parent
    raise GraphError(f"condition: {channel} has no value: the branch is neither taken nor skipped")


def existing(owner: Any, name: str) -> Any:
    """Returns the attribute.

    Raises:
        RuntimeError: this release of kfp has no such attribute.
    """
    if not hasattr(owner, name):
        raise RuntimeError(f"kfp has no {owner!r}.{name} any more, which local runs depend on: install kfp==2.17.0")
    return getattr(owner, name)
