"""Checks a compiled package against those rules of the platform that can be checked in a file.

python -m pipelines.lint [post_training.yaml ...]    print what breaks a rule; exit 1 if anything does
python -m pipelines.lint --allow-tags                allow images without a digest: the graph runs on this machine only
python -m pipelines.lint --rules                     print every rule with its reason and its source
"""

import argparse
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines import graph_rules, step_rules
from pipelines.package import Package
from pipelines.step_rules import Breaches

RULES: dict[str, Callable[[Package], Breaches]] = {  # all public functions of the two modules
    name: rule
    for module in (step_rules, graph_rules)
    for name, rule in vars(module).items()
    if inspect.isfunction(rule) and rule.__module__ == module.__name__ and not name.startswith("_")
}
CLUSTER_RULES = ("image_by_digest", "workflow_size")  # of no concern to a graph that runs on this machine only


@dataclass(frozen=True)
class Finding:
    """A place in a package that breaks a rule."""

    rule: str
    where: str  # step or task, and the key in its specification
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.what}; {self.remedy}"


def lint(package: Package, *, allow_tags: bool = False, is_local: bool = False) -> list[Finding]:
    """Returns what breaks a rule, in the order of the rules.

    Args:
        package: the graph.
        allow_tags: images may have no digest yet.
        is_local: the graph will run on this machine only.
    """
    left_out = CLUSTER_RULES if is_local else CLUSTER_RULES[:1] if allow_tags else ()
    rules = {name: rule for name, rule in RULES.items() if name not in left_out}
    return [Finding(name, *breach) for name, rule in rules.items() for breach in rule(package)]


def check(
    path: str | Path, *, allow_tags: bool = False, is_local: bool = False, shown_as: str | Path | None = None
) -> None:
    """Raises ValueError with all findings, one per line. `shown_as`: the name by which the user knows the file."""
    findings = lint(Package.read(path), allow_tags=allow_tags, is_local=is_local)
    if findings:
        head = f"{shown_as or path} breaks rules of the platform (python -m pipelines.lint --rules explains them):"
        raise ValueError("\n  ".join([head, *map(str, findings)]))


def rule_table() -> str:
    """Returns every rule with its reason and its source, from its docstring."""
    rows = []
    for name, rule in RULES.items():
        why, source = inspect.getdoc(rule).split("\n\nSource: ")
        rows.append(f"{name}\n    {' '.join(why.split())}\n    Source: {' '.join(source.split())}")
    return "\n".join(rows)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=["post_training.yaml"], metavar="FILE")
    parser.add_argument("--allow-tags", action="store_true", help="allow images without a digest")
    parser.add_argument("--rules", action="store_true", help="print the rules and stop")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.rules:
        print(rule_table())
        return 0
    try:
        findings = {path: lint(Package.read(path), allow_tags=args.allow_tags) for path in args.packages}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, breaches in findings.items():
        print("\n".join(f"{path}: {finding}" for finding in breaches or ["no findings"]))
    return 1 if any(findings.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
