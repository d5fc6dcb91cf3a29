"""Walks a compiled graph on this machine: which task runs when, and what comes of one that fails.

tasks of a scope, what they take -> what they give; tasks that do not wait for each other run side by side

Values and their scopes, arguments, retries and loops are kfp.local's (2.17.0). Its walk is not used, for these reasons:

- It does not find a named output in a condition, takes that for false and skips both branches of a gate, which leaves
  the run green. Ours reads one form, `<boolean> == true|false`, and raises for all else.
- It lets an exception out past the exit task. Ours makes a failed task of it.
- It runs one task after the other, and independent ones in an order left to chance.
- It runs two iterations of a loop at once, whether they fit or not, and waits for them when it is interrupted.
  `runner.loops` asks for their memory, and ends them.
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
    """The graph cannot go on: a step failed for good, or what it refers to has no value."""


@dataclass(frozen=True)
class Walk:
    """One walk through one graph."""

    spec: Any  # PipelineSpec
    run_id: str
    artifacts: str  # folder of all outputs
    end_running: Callable[[], None]  # called when the walk is interrupted while other threads run tasks
    peak_memory: Callable[[], int]  # bytes that an iteration of a loop needs; 0: not known
    errors: list[str]  # why it did not go on

    def run(self, arguments: dict[str, Any]) -> bool:
        """Whether every task that ran succeeded.

        Raises:
            GraphError: in the outermost scope, where there is no exit task to run.
        """
        for name in ("_task_output_data", "_parent_input_data", "_parent"):
            existing(io.IOStore(), name)
        return self._run_scope(self.spec.root, arguments)[1] == Status.SUCCESS

    def _run_scope(self, component: Any, arguments: dict[str, Any], parent: io.IOStore | None = None) -> Outputs:
        scope, declared = io.IOStore(parent=parent), component.input_definitions
        given = OrchestratorUtils.join_user_inputs_and_defaults(dag_arguments=arguments, dag_inputs_spec=declared)
        for name, value in given.items():
            scope.put_parent_input(name, value)
        tasks = dict(sorted(component.dag.tasks.items()))
        exits = {name: task for name, task in tasks.items() if _is_exit(task)}
        worked = self._run_tasks({name: task for name, task in tasks.items() if name not in exits}, scope)
        worked &= all(self._ended_well(name, self._execute(name, task, scope), scope) for name, task in exits.items())
        if not worked:
            return FAILED
        return OrchestratorUtils.get_dag_outputs(dag_outputs_spec=component.dag.outputs, io_store=scope), Status.SUCCESS

    def _run_tasks(self, tasks: dict[str, Any], scope: io.IOStore) -> bool:
        """Runs each task once all that it waits for have ended; whether all that ran, and could run, did well."""
        ended: dict[str, bool] = {}
        while waiting := {name: task for name, task in tasks.items() if name not in ended}:
            ready = {}
            for name, task in waiting.items():
                if not ended.keys() >= set(task.dependent_tasks):
                    continue
                if not (_runs_anyway(task) or all(ended[other] for other in task.dependent_tasks)):
                    ended[name] = self._ended_well(name, FAILED, scope)
                elif (condition := task.trigger_policy.condition) and not evaluate_condition(condition, scope):
                    ended[name] = True
                else:
                    ready[name] = partial(self._execute, name, task, scope)
            outputs = loops.side_by_side(ready, len(ready), self.end_running)
            ended |= {name: self._ended_well(name, found, scope) for name, found in outputs.items()}
        return all(ended.values())

    def _ended_well(self, name: str, outputs: Outputs, scope: io.IOStore) -> bool:
        """Puts what a task gave into its scope."""
        found, status = outputs
        scope.put_task_status(name, "SUCCEEDED" if status == Status.SUCCESS else "FAILED")
        for key, value in found.items():
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
        except (GraphError, ValueError) as error:  # ValueError: kfp's word for a reference that has no value
            self.errors.append(str(error))
            return FAILED

    def _run_loop(self, name: str, task: Any, scope: io.IOStore) -> Outputs:
        """Puts a list of each output that the iterations gave into the scope, under the loop's name."""
        failed = kfp_walk._run_parallel_for_task(
            task_name=name, task_spec=task, io_store=scope, **self._common(), runner=None, parallel_executor=self
        )
        return FAILED if failed else ({}, Status.SUCCESS)

    def execute_parallel_tasks(
        self, tasks: list[tuple[str, Any]], io_store: io.IOStore, parallelism_limit: int, **common: Any
    ) -> tuple[dict[str, dict[str, Any]], Status]:
        """What kfp.local asks of its executor of loops."""
        return loops.run_iterations(
            {name: partial(self._execute, name, task, io_store) for name, task in tasks},
            num_at_once=lambda: loops.that_fit(parallelism_limit or len(tasks), self.peak_memory()),
            end_running=self.end_running,
        )

    def _common(self) -> dict[str, Any]:
        """Arguments that kfp's functions take and pass on."""
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
    """Whether it is an exit handler's task, which alone is given how the run ended."""
    return any(given.HasField("task_final_status") for given in task.inputs.parameters.values())


def _runs_anyway(task: Any) -> bool:
    """Whether it runs also after failed tasks."""
    strategies = PipelineTaskSpec.TriggerPolicy.TriggerStrategy
    return task.trigger_policy.strategy == strategies.ALL_UPSTREAM_TASKS_COMPLETED


def evaluate_condition(condition: str, io_store: io.IOStore) -> bool:
    """Whether a branch is taken. The gates' `<boolean> == true|false` is the only form: nothing is evaluated as code.

    Raises:
        GraphError: another form, a reference that has no value, or a value that is not a boolean.
    """
    match = CONDITION.fullmatch(" ".join(condition.split()))
    if not match:
        raise GraphError(f"condition {condition!r} is not of the form <boolean> == true|false")
    value = _value_of(match["channel"], io_store)
    if not isinstance(value, bool):
        raise GraphError(f"condition {condition!r}: {match['channel']} is {value!r}, not true or false")
    return value is (match["wanted"] == "true")


def _value_of(channel: str, io_store: io.IOStore) -> Any:
    """The value of `pipelinechannel--<task>-<output>` in the nearest scope that knows it."""
    scope = io_store
    while scope is not None:
        found = [
            value
            for task, outputs in scope._task_output_data.items()
            for output, value in outputs.items()
            if channel == f"pipelinechannel--{task}-{output}"
        ]
        found += [value for name, value in scope._parent_input_data.items() if name == channel]
        if len(found) > 1:
            raise GraphError(f"condition: {channel} names {len(found)} values")
        if found:
            return found[0]
        scope = scope._parent
    raise GraphError(f"condition: {channel} has no value: neither branch may be skipped for that")


def existing(owner: Any, name: str) -> Any:
    """The attribute.

    Raises:
        RuntimeError: another release of kfp, which has no such.
    """
    if not hasattr(owner, name):
        raise RuntimeError(f"kfp has no {owner!r}.{name} any more, which local runs depend on: install kfp==2.17.0")
    return getattr(owner, name)
