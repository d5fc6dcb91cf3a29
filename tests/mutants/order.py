"""Finds which functions each test calls, and how long it takes: a mutant's tests begin with the likely ones to fail."""

import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest


@dataclass
class Tracing:
    """A plugin of pytest that writes lines of a test, a tab and its seconds, or a function that it calls."""

    tree: Path
    modules: Collection[str]  # paths in the tree
    path: Path
    test: str = ""
    calls: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.files = {f"{self.tree}/{module}": module for module in self.modules}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.test, begun = item.nodeid, time.monotonic()
        self.calls.clear()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]  None is what turns it off
            self._write(f"{time.monotonic() - begun:.3f}")

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        """Writes a call at once: forks trace too, and come back with nothing."""
        module = self.files.get(frame.f_code.co_filename)
        if module is not None and (call := f"{module}:{frame.f_code.co_name}") not in self.calls:
            self.calls.add(call)
            self._write(call)

    def _write(self, value: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{self.test}\t{value}\n")


@dataclass
class Test:
    """Facts about a test."""

    seconds: float = 0.0
    calls: set[str] = field(default_factory=set)  # `module:function`


@dataclass(frozen=True)
class Sorted:
    """A plugin of pytest that runs the tests that call a function, fast ones first; all, if none of them calls it."""

    tests: dict[str, Test]
    function: str  # `module:function`

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = self.of(items)

    def of(self, items: list[pytest.Item]) -> list[pytest.Item]:
        calling = [item for item in items if self.function in self._test(item).calls]
        return sorted(calling or items, key=lambda item: self._test(item).seconds)

    def _test(self, item: pytest.Item) -> Test:
        return self.tests.get(item.nodeid, Test())


def read(path: Path) -> dict[str, Test]:
    """Reads what `Tracing` wrote."""
    tests: dict[str, Test] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.rpartition("\t")
        test = tests.setdefault(name, Test())
        if value[:1].isdigit():
            test.seconds = float(value)
        else:
            test.calls.add(value)
    return tests
