"""Changes the code that judges, one place at a time, and runs the tests of the changed module: one of them must fail.

python -m tests.mutants                        every mutant that was not killed yet; results go to build/mutants.jsonl
python -m tests.mutants --only verdict --sample 50     50 of one module, the same ones for the same --seed
python -m tests.mutants --report               the mutants that lived, and their share by module

A mutant that lives shows a test that is missing, or changes nothing that can be seen: the latter are listed, with the
reason, in tests/mutants/equivalent.txt. The tests of each mutant run in a fork of this process, which has imported
torch and the like once.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path

from posttrain.step.become import forget
from tests.mutants.changes import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "mutants.jsonl"
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
# Modules, and the tests that concern each: those of its own name, and these.
MODULES = ("validators/*.py", "validators/matching/*.py", "posttrain/verdict.py", "posttrain/publish.py",
    "posttrain/verify.py", "posttrain/train/checkpoints.py", "posttrain/step/*.py")  # fmt: skip
MATCHING = "tests/validators/matching/test_matching.py"
FURTHER_TESTS = {
    **{f"validators/matching/{name}.py": [MATCHING] for name in ("__init__", "choice", "number", "structured", "text")},
    "posttrain/step/published.py": ["tests/posttrain/test_verify.py", "tests/posttrain/test_publish.py"],
    "posttrain/step/provenance.py": ["tests/posttrain/test_verify.py", "tests/posttrain/test_publish.py"],
    "posttrain/step/results.py": ["tests/posttrain/step/test_frame.py"],
    "posttrain/step/gate_answers.py": ["tests/posttrain/test_publish.py", "tests/posttrain/test_report.py"],
    "posttrain/step/digests.py": ["tests/posttrain/test_verify.py", "tests/posttrain/step/test_frame.py"],
    "validators/leaks.py": ["tests/validators/test_data.py"],
    "validators/parity.py": ["tests/validators/test_merge.py"],
    "validators/preferences.py": ["tests/validators/test_alignment.py"],
}
SLOW_IMPORTS = ("pytest", "torch", "transformers", "peft", "scipy.stats", "statsmodels.stats.proportion", "jinja2")
OURS = ("posttrain", "validators", "tests", "examples", "runner", "pipelines", "components", "benchmarks")
IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # plugins of pytest, by `SLOW_IMPORTS`
NO_RACES = "not race and not racing and not publishers and not chaos"  # they take long, and see no more


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.report:
        return report()
    wanted = [mutant for module in modules(args.only) for mutant in mutants_of(ROOT, module)]
    if args.sample:
        wanted = random.Random(args.seed).sample(wanted, min(args.sample, len(wanted)))
    killed = {one["id"] for one in results() if one["outcome"] != "lived"}
    left = [mutant for mutant in wanted if mutant.id not in killed and mutant.key not in equivalents()]
    print(f"{len(wanted)} mutants, {len(left)} to try", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(copy_of_the_repository(Path(folder)))
        for mutant in left:
            print(keep(mutant, bench.outcome(mutant)), flush=True)
    return report()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="modules whose path contains this")
    parser.add_argument("--sample", type=int, help="number of mutants to draw, instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser


def modules(only: str) -> Iterator[str]:
    """Yields the modules that are mutated and have tests."""
    for pattern in MODULES:
        for path in sorted(ROOT.glob(pattern)):
            module = path.relative_to(ROOT).as_posix()
            if only in module and tests_of(module):
                yield module


def tests_of(module: str) -> list[str]:
    path = Path("tests", module)
    own = path.with_name(f"test_{path.name}").as_posix()
    return [test for test in (own, *FURTHER_TESTS.get(module, [])) if (ROOT / test).is_file()]


def copy_of_the_repository(folder: Path) -> Path:
    """Copies what git tracks: mutants never touch the working tree."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@dataclass
class Bench:
    """Runs tests in a copy of the repository."""

    tree: Path
    seconds: dict[str, float] = field(default_factory=dict)  # module -> what its tests take while nothing is changed

    def outcome(self, mutant: Mutant) -> str:
        """Returns `killed`, `lived`, or `hung`, which counts as killed."""
        if mutant.module not in self.seconds:
            self.seconds[mutant.module] = self._time_unchanged(mutant.module)
        original = (self.tree / mutant.module).read_text(encoding="utf-8")
        try:
            self._write(mutant.module, mutant.source)
            exit_code = self._test(mutant.module, limit=20 + 10 * self.seconds[mutant.module])
        finally:
            self._write(mutant.module, original)
        return "hung" if exit_code is None else "killed" if exit_code else "lived"

    def _time_unchanged(self, module: str) -> float:
        """Raises ValueError if the tests fail anyway: they would seem to kill every mutant."""
        for slow in SLOW_IMPORTS:
            importlib.import_module(slow)
        begun = time.monotonic()
        if self._test(module, limit=600):
            raise ValueError(f"{module}: {', '.join(tests_of(module))} fail without a change; mend them first")
        return time.monotonic() - begun

    def _write(self, module: str, source: str) -> None:
        """Writes a module; what was compiled of it may look as new, and goes."""
        (self.tree / module).write_text(source, encoding="utf-8")
        Path(cache_from_source(str(self.tree / module))).unlink(missing_ok=True)

    def _test(self, module: str, *, limit: float) -> int | None:
        """Runs the tests of a module in a fork and returns the exit code; None if they take longer than `limit`."""
        pid = os.fork()
        if not pid:
            exit_code = 1
            try:
                exit_code = self._in_fork(tests_of(module))
            finally:
                os._exit(exit_code)
        until, ended = time.monotonic() + limit, 0
        while not ended and time.monotonic() < until:
            time.sleep(0.02)
            ended, status = os.waitpid(pid, os.WNOHANG)
        with suppress(ProcessLookupError):  # also what the tests have started and left
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status) if ended else os.waitpid(pid, 0) and None

    def _in_fork(self, tests: list[str]) -> int:
        os.setsid()
        os.chdir(self.tree)
        sys.path[0] = str(self.tree)
        with open(os.devnull, "r+b") as null:
            for stream in range(3):
                os.dup2(null.fileno(), stream)
        pytest = importlib.import_module("pytest")
        forget(OURS)
        return pytest.main(["-x", "-p", "no:cacheprovider", "-W", IMPORTED, "-k", NO_RACES, *tests])


def keep(mutant: Mutant, outcome: str) -> str:
    """Appends the result, so that a run that is stopped goes on there; returns a line about it."""
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"id": mutant.id, "key": mutant.key, "module": mutant.module, "outcome": outcome, "at": int(time.time())}
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    return f"{outcome}: {mutant.key}"


def results() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def equivalents() -> set[str]:
    """The keys of mutants that change nothing that can be seen."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def report() -> int:
    """Prints what lived; exit code 1 if that is more than one mutant in twenty."""
    last = {one["id"]: one for one in results() if one["key"] not in equivalents()}
    lived = [one for one in last.values() if one["outcome"] == "lived"]
    for one in sorted(lived, key=lambda one: one["key"]):
        print(f"lived: {one['key']}")
    by_module, living = Counter(one["module"] for one in last.values()), Counter(one["module"] for one in lived)
    for module, number in sorted(by_module.items()):
        print(f"{module}: {living[module]} of {number} lived")
    print(f"{len(lived)} of {len(last)} lived")
    return int(len(lived) > len(last) / 20)


if __name__ == "__main__":
    sys.exit(main())
