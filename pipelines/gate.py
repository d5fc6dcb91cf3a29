"""A gate: what stands below it runs only if its check passed; otherwise the run ends FAILED with the verdict."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kfp import dsl

from components import reject
from pipelines.steps import Steps


@contextmanager
def gate(steps: Steps, component, name: str | None = None, **inputs) -> Iterator[None]:
    """Runs a check and opens the branch behind it. Both sides stand here: no gate can be written without its reject."""
    check = steps.run(component, name, **inputs)
    name = steps.names[-1].removeprefix("check_")
    passed = check.outputs["passed"]
    with condition(passed == False, f"{name}-failed"):  # noqa: E712 (== builds a condition)
        steps.run(reject, f"reject_{name}", verdict=check.outputs["verdict"])
    with condition(passed == True, f"{name}-passed"):  # noqa: E712
        yield


@contextmanager
def condition(operation, name: str) -> Iterator[None]:
    """A `dsl.Condition` block. kfp deprecates the name in favour of its base class `dsl.If`; the graph is the same."""
    with ExitStack() as block:
        with warnings.catch_warnings():  # the warning comes on entering
            warnings.filterwarnings("ignore", message="dsl.Condition is deprecated", category=DeprecationWarning)
            block.enter_context(dsl.Condition(operation, name=name))
        yield
