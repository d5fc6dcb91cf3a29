"""Tries mutants in forks of one process that has collected the tests: nothing is imported again for each of them.

A mutant whose change lies in the body of a function replaces the code of that function; one that changes what is done
at import, such as a constant or a default, is left to a process that imports the module with the change.
"""

import gc
import importlib
import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from tests.mutants import order
from tests.mutants.changes import Mutant


@dataclass(frozen=True)
class Forks:
    """A plugin of pytest that runs the collected tests once for each mutant, and writes the outcomes to a pipe."""

    mutants: list[Mutant]
    tests: dict[str, order.Test]
    tree: Path
    pipe: int
    write: Callable[[str, str], None]  # of a module's source

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        importlib.import_module(self.mutants[0].module.removesuffix(".py").replace("/", "."))
        items, functions = list(session.items), functions_of(self.tree / self.mutants[0].module)
        for at, mutant in enumerate(self.mutants):
            name, code = changed_function(mutant)
            if name not in functions:
                continue
            session.items[:] = order.Sorted(self.tests, mutant.place).of(items)
            self.write(mutant.module, mutant.source)  # for processes that import it
            pid = os.fork()
            if not pid:
                os.close(self.pipe)
                os.setsid()
                for function in functions[name]:
                    function.__code__ = code
                return None  # pytest runs the tests, and this process ends with its exit code
            seconds = sum(self.tests.get(item.nodeid, order.Test()).seconds for item in session.items)
            os.write(self.pipe, f"{at} {outcome(pid, 20 + 10 * seconds)}\n".encode())
            self.write(mutant.module, mutant.original)
        return True


def outcome(pid: int, limit: float) -> str:
    """Waits for a process that runs tests: `killed` if one failed, `lived`, or `hung`, which counts as killed."""
    until, ended = time.monotonic() + limit, 0
    while not ended and time.monotonic() < until:
        time.sleep(0.02)
        ended, status = os.waitpid(pid, os.WNOHANG)
    with suppress(ProcessLookupError):  # also what the tests have started and left
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
        return "hung"
    return "killed" if os.waitstatus_to_exitcode(status) else "lived"


def changed_function(mutant: Mutant) -> tuple[str, CodeType | None]:
    """Returns the name of the function whose body the mutant changes, and its code; an empty name if it is none."""
    original = compile(mutant.comparable, mutant.module, "exec")
    changed = compile(mutant.source, mutant.module, "exec")
    before, after = dict(_codes(original)), dict(_codes(changed))
    names = [name for name in before if before[name] != after.get(name)]
    if len(names) != 1 or _outside(original) != _outside(changed):
        return "", None
    return names[0], after[names[0]]


def functions_of(path: Path) -> dict[str, list[FunctionType]]:
    """Maps the names of a module's functions to all that were made of each."""
    functions: dict[str, list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename == str(path):
            functions.setdefault(one.__code__.co_qualname, []).append(one)
    return functions


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """Yields the outermost functions of a module and its classes."""
    for const in code.co_consts:
        if isinstance(const, CodeType) and const.co_flags & inspect.CO_OPTIMIZED:
            yield const.co_qualname, const
        elif isinstance(const, CodeType):
            yield from _codes(const)


def _outside(code: CodeType) -> tuple:
    """Returns what is run at import."""
    consts = [_outside(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return (code.co_code, code.co_names, consts) if not code.co_flags & inspect.CO_OPTIMIZED else ()
