"""Changes the code that judges, one place at a time, and runs the tests of the changed module: one of them must fail.

python -m tests.mutants                        every mutant that was not killed yet; results go to build/mutants.jsonl
python -m tests.mutants --only verdict --sample 50     50 of one module, the same ones for the same --seed
python -m tests.mutants --only sign,push --quick       with the tests alone that the table below names for a module
python -m tests.mutants --report               the mutants that lived, and their share by module

A mutant that lives shows a test that is missing, or changes nothing that can be seen: the latter are listed, with the
reason, in tests/mutants/equivalent.txt. The tests of each mutant run in a fork of a process that has imported torch and
the like and has collected them: those that call the changed function, fast ones first, and the first that fails ends
the mutant. Which call it is kept in build/mutants_tests, so that a run that is stopped goes on where it was.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from itertools import groupby
from pathlib import Path

from posttrain.step.become import forget
from tests.mutants import order, patched
from tests.mutants.changes import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "mutants.jsonl"
CALLS = ROOT / "build" / "mutants_tests"
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
# Modules, and the tests that concern each: those of its own name, and these.
MODULES = (
    "validators/*.py", "validators/matching/*.py", "validators/skills/*.py",
    "posttrain/verdict.py", "posttrain/publish.py", "posttrain/verify.py", "posttrain/promote.py",
    "posttrain/make_current.py", "posttrain/compare.py", "posttrain/serving/export.py", "posttrain/nodes/launch.py",
    "posttrain/registries/push.py", "posttrain/step/*.py", "posttrain/train/checkpoints.py", "posttrain/signing/*.py",
    "posttrain/nodes/*.py", "posttrain/pages/card.py", "posttrain/pages/front_matter.py",
    "posttrain/weights/licence.py")  # fmt: skip
MATCHING = "tests/validators/matching/test_matching.py"
NODES = ["tests/posttrain/nodes/test_train_job.py", "tests/posttrain/nodes/test_launch.py"]
SIGNED = ["tests/posttrain/test_signing.py", "tests/posttrain/test_keyless.py"]
COMMANDS = ["tests/components/test_components.py"]
CARD = ["tests/posttrain/pages/test_card.py", "tests/posttrain/test_publish.py"]
FURTHER_TESTS = {
    **{f"validators/matching/{name}.py": [MATCHING] for name in ("__init__", "choice", "number", "structured", "text")},
    **{f"posttrain/signing/{name}.py": ["tests/posttrain/test_signing.py"]
       for name in ("bill", "envelope", "signature", "statements")},
    **{f"posttrain/nodes/{name}.py": NODES for name in ("follow", "inputs", "kubernetes", "train_job")},
    **{f"posttrain/pages/{name}.py": CARD for name in ("card", "front_matter")},
    **{f"posttrain/{name}.py": COMMANDS
       for name in ("export", "make_current", "launch", "promote", "push", "compare")},
    **{f"posttrain/{name}.py": [*COMMANDS, *SIGNED] for name in ("publish", "verify")},
    "posttrain/step/become.py": ["tests/posttrain/step/test_attempts.py"],
    "posttrain/step/published.py": ["tests/posttrain/test_verify.py", "tests/posttrain/test_publish.py"],
    "posttrain/step/provenance.py": ["tests/posttrain/test_verify.py", "tests/posttrain/test_publish.py"],
    "posttrain/step/results.py": ["tests/posttrain/step/test_frame.py"],
    "posttrain/step/gate_answers.py": ["tests/posttrain/test_publish.py", "tests/posttrain/test_report.py"],
    "posttrain/step/digests.py": ["tests/posttrain/test_verify.py", "tests/posttrain/step/test_frame.py"],
    "validators/answers.py": ["tests/validators/test_calls.py"],
    "validators/leaks.py": ["tests/validators/test_data.py"],
    "validators/llama_cpp.py": ["tests/posttrain/serving/test_gguf.py", "tests/validators/test_export.py"],
    "validators/observe.py": ["tests/validators/test_alignment.py", "tests/validators/test_answers.py"],
    "validators/parity.py": ["tests/validators/test_merge.py"],
    "validators/preferences.py": ["tests/validators/test_alignment.py"],
    "validators/sampling.py": ["tests/validators/test_reward.py"],
    "validators/serving.py": ["tests/validators/test_export.py"],
    "validators/session.py": ["tests/validators/test_sft.py"],
    "validators/skills/asking.py": ["tests/validators/skills/test_leg.py", "tests/validators/skills/test_judging.py"],
    "validators/skills/leg.py": ["tests/validators/skills/test_judging.py"],
    "validators/skills/constraints.py": ["tests/validators/skills/test_verifiers.py"],
}  # fmt: skip
OF_ALL = ("tests/components/test_components.py", "tests/posttrain/config/test_metrics.py")  # tests of many modules
SLOW_IMPORTS = ("pytest", "torch", "transformers", "peft", "scipy.stats", "statsmodels.stats.proportion", "jinja2")
OURS = ("posttrain", "validators", "tests", "examples", "runner", "pipelines", "components", "benchmarks")
IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # plugins of pytest, by `SLOW_IMPORTS`
LONG = "tests/validators/"  # of these, tests marked long run too: they take seconds
NO_RACES = "not race and not racing and not publishers and not chaos"  # they take long, and see no more


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.report:
        return report()
    wanted = [mutant for module in modules(args.only) for mutant in mutants_of(ROOT, module)]
    if args.sample:
        wanted = random.Random(args.seed).sample(wanted, min(args.sample, len(wanted)))
    outcomes = {one["id"]: one["outcome"] for one in results()}
    left = [one for one in wanted if outcomes.get(one.id, "lived") == "lived" and one.key not in equivalents()]
    left.sort(key=lambda one: (one.id in outcomes, one.module))  # what lived is tried again last
    print(f"{len(wanted)} mutants, {len(left)} to try", flush=True)
    for slow in SLOW_IMPORTS:
        importlib.import_module(slow)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(copy_of_the_repository(Path(folder)), is_quick=args.quick)
        for _, mutants in groupby(left, key=lambda one: one.module):
            for mutant, outcome in bench.outcomes(list(mutants)):
                print(keep(mutant, outcome), flush=True)
    return report()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="modules whose path contains this, or one of these: a,b,c")
    parser.add_argument("--sample", type=int, help="number of mutants to draw, instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--quick", action="store_true", help="run the module's own tests alone: more mutants may live")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser


def modules(only: str) -> Iterator[str]:
    """Yields the modules that are mutated and have tests."""
    for pattern in MODULES:
        for path in sorted(ROOT.glob(pattern)):
            module = path.relative_to(ROOT).as_posix()
            if any(part in module for part in only.split(",")) and tests_of(module):
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
    is_quick: bool = False
    tests: dict[str, dict[str, order.Test]] = field(default_factory=dict)  # file -> its tests by name

    def outcomes(self, mutants: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yields the mutants of one module with `killed`, `lived`, or `hung`, which counts as killed."""
        names = tests_of(mutants[0].module)
        tried, lived = set(), []
        for mutant, outcome in self._forks(mutants, names, self._tests(*names)):
            tried.add(mutant.id)
            if outcome == "lived":
                lived.append(mutant)
            else:
                yield mutant, outcome
        for mutant in lived:
            further = {} if self.is_quick else self._further(mutant)
            files = sorted({name.partition("::")[0] for name in further})
            yield from self._forks([mutant], files, further) if files else [(mutant, "lived")]
        for mutant in mutants:
            if mutant.id not in tried:
                yield mutant, self.outcome(mutant)

    def _forks(
        self, mutants: list[Mutant], names: list[str], tests: dict[str, order.Test]
    ) -> Iterator[tuple[Mutant, str]]:
        """Yields mutants and their outcomes, without those that `patched` leaves out."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            exit_code = 1
            try:
                os.close(reading)
                exit_code = self._in_fork(names, patched.Forks(mutants, tests, self.tree, writing, self._write))
            finally:
                os._exit(exit_code)  # of this process, or of one of its forks
        os.close(writing)
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                at, outcome = line.split()
                yield mutants[int(at)], outcome
        os.waitpid(pid, 0)

    def outcome(self, mutant: Mutant) -> str:
        """Returns the outcome of one mutant, in processes that import the changed module."""
        names = tests_of(mutant.module)
        outcome = self._try(mutant, names, self._tests(*names))
        if outcome == "lived" and not self.is_quick and (further := self._further(mutant)):
            outcome = self._try(mutant, [*further], further)
        return outcome

    def _try(self, mutant: Mutant, names: list[str], tests: dict[str, order.Test]) -> str:
        limit = 20 + 10 * sum(test.seconds for test in tests.values())
        try:
            self._write(mutant.module, mutant.source)
            return self._test(names, order.Sorted(tests, mutant.place), limit=limit)
        finally:
            self._write(mutant.module, mutant.original)

    def _further(self, mutant: Mutant) -> dict[str, order.Test]:
        """Returns the tests of other modules that call the changed function; any of its module, if it is none."""
        package = mutant.module.partition("/")[0]  # tests of another one are not traced for its sake
        files = {file for module in modules(f"{package}/") for file in tests_of(module)}
        tests = self._tests(*OF_ALL, *sorted(files))
        own = self._tests(*tests_of(mutant.module))
        places = {call for test in tests.values() for call in test.calls if call.startswith(f"{mutant.module}:")}
        if mutant.place in places:
            places = {mutant.place}
        return {name: test for name, test in tests.items() if name not in own and places & test.calls}

    def _tests(self, *files: str) -> dict[str, order.Test]:
        """Maps the names of the tests in some files to what is known of them."""
        for file in files:
            if file not in self.tests:
                self.tests[file] = order.read(self._calls(file))
        return {name: test for file in files for name, test in self.tests[file].items()}

    def _calls(self, test: str) -> Path:
        """Returns what `order.Tracing` writes of a file of tests.

        Raises ValueError if one fails: the tests would seem to kill every mutant.
        """
        path = CALLS / f"{hash_of(self.tree, test)}.tsv"
        part = path.with_suffix(f".{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if self._test([test], order.Tracing(self.tree, frozenset(modules("")), part), limit=600) != "lived":
                raise ValueError(f"{test} fails without a change, or takes longer than 10 minutes; mend it first")
            part.rename(path)
        return path

    def _write(self, module: str, source: str) -> None:
        """Writes a module; what was compiled of it may look as new, and goes."""
        (self.tree / module).write_text(source, encoding="utf-8")
        Path(cache_from_source(str(self.tree / module))).unlink(missing_ok=True)

    def _test(self, tests: list[str], plugin: object, *, limit: float) -> str:
        """Runs tests in a fork and returns the outcome; the limit is in seconds."""
        pid = os.fork()
        if not pid:
            exit_code = 1
            try:
                exit_code = self._in_fork(tests, plugin)
            finally:
                os._exit(exit_code)
        return patched.outcome(pid, limit)

    def _in_fork(self, tests: list[str], plugin: object) -> int:
        os.setsid()
        os.chdir(self.tree)
        sys.path[0] = str(self.tree)
        with open(os.devnull, "r+b") as null:
            for stream in range(3):
                os.dup2(null.fileno(), stream)
        pytest = importlib.import_module("pytest")
        forget(OURS)
        long = ["-m", "long or not long"] if all(test.startswith(LONG) for test in tests) else []
        arguments = ["-x", "-p", "no:cacheprovider", "-W", IMPORTED, "-k", NO_RACES, *long, *tests]
        return pytest.main(arguments, plugins=[plugin])


def hash_of(tree: Path, test: str) -> str:
    """Returns a name for what a file of tests calls: another one once the file has changed."""
    return hashlib.sha256(b"\0".join([test.encode(), (tree / test).read_bytes()])).hexdigest()[:16]


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
