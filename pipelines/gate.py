"""Writes a gate: what follows runs only if its check passed; otherwise the run ends as FAILED with the verdict."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from kfp import dsl

from components import reject, reject_and_tell
from pipelines.steps import Steps


@contextmanager
def gate(
    steps: Steps, component, name: str | None = None, *, after: Iterable[dsl.PipelineTask] = (), **inputs
) -> Iterator[None]:
    """Runs a check, once the tasks in `after` are done, and opens the branch behind it. It writes both sides: there is
    no gate without its reject.
    """
    check = steps.run(component, name, **inputs).after(*after)
    name = steps.names[-1].removeprefix("check_")
    passed = check.outputs["passed"]
    with condition(passed == False, f"{name}-failed"):  # noqa: E712 (== builds a condition)
        rejecting = reject_and_tell if steps.tells("stop") else reject
        steps.run(rejecting, f"reject_{name}", verdict=check.outputs["verdict"])
    with condition(passed == True, f"{name}-passed"):  # noqa: E712
        yield


@contextmanager
def condition(operation, name: str) -> Iterator[None]:
    """Opens a `dsl.Condition` block. kfp deprecates it in favour of its base class `dsl.If`; the graph is the same."""
    with ExitStack() as block:
        with warnings.catch_warnings():  # issued on entering
            warnings.filterwarnings("ignore", message="dsl.Condition is deprecated", category=DeprecationWarning)
            block.enter_context(dsl.Condition(operation, name=name))
        yield
