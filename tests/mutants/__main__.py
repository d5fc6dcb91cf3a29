"""Changes the code that judges, one place at a time, and runs the tests of the changed module: one of them must fail.

python -m tests.mutants                        every mutant that has no result yet; results go to build/mutants.jsonl
python -m tests.mutants --only verdict --sample 50     50 of one module, the same ones for the same --seed
python -m tests.mutants --report               the mutants that lived, and their share by module

A mutant that lives shows a test that is missing, or changes nothing that can be seen: the latter are listed, with the
reason, in tests/mutants/equivalent.txt.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.mutants.changes import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "mutants.jsonl"
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
# Modules, and the tests that concern each: those of its own name, and these.
MODULES = ("validators/*.py", "posttrain/verdict.py", "posttrain/publish.py", "posttrain/verify.py",
    "posttrain/train/checkpoints.py", "posttrain/step/*.py")  # fmt: skip
FURTHER_TESTS = {
    "posttrain/step/published.py": ["tests/posttrain/test_verify.py", "tests/posttrain/test_publish.py"],
    "posttrain/step/provenance.py": ["tests/posttrain/test_verify.py", "tests/posttrain/test_publish.py"],
    "posttrain/step/results.py": ["tests/posttrain/step/test_frame.py"],
    "posttrain/step/gate_answers.py": ["tests/posttrain/test_publish.py", "tests/posttrain/test_report.py"],
    "posttrain/step/digests.py": ["tests/posttrain/test_verify.py", "tests/posttrain/step/test_frame.py"],
    "validators/leaks.py": ["tests/validators/test_data.py"],
    "validators/parity.py": ["tests/validators/test_merge.py"],
    "validators/preferences.py": ["tests/validators/test_alignment.py"],
}
LONGEST = 600  # seconds for the tests of one mutant; one that hangs is noticed too
NO_RACES = "not race and not racing and not publishers and not chaos"  # they take long, and see no more


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.report:
        return report()
    wanted = [mutant for module in modules(args.only) for mutant in mutants_of(ROOT, module)]
    if args.sample:
        wanted = random.Random(args.seed).sample(wanted, min(args.sample, len(wanted)))
    known = {one["id"] for one in results()}
    left = [mutant for mutant in wanted if mutant.id not in known and mutant.key not in equivalents()]
    print(f"{len(wanted)} mutants, {len(left)} without a result", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_repository(Path(folder))
        for mutant in left:
            print(keep(mutant, run(mutant, tree)), flush=True)
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


def run(mutant: Mutant, tree: Path) -> str:
    """Returns `killed`, `lived`, or `hung`, which counts as killed."""
    file = tree / mutant.module
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", NO_RACES]
    try:
        ended = subprocess.run([*command, *tests_of(mutant.module)], cwd=tree, capture_output=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        file.write_text(original, encoding="utf-8")
    return "lived" if ended.returncode == 0 else "killed"


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
