"""The changes that make mutants: another comparison, a condition reversed, a border moved, a check left out.

source of a module -> one `Mutant` for each place and change
"""

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr}
CALLS = {"fullmatch": "match", "all": "any", "any": "all", "min": "max", "max": "min"}


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    module: str  # its path
    original: str  # its source, without the change
    node: int  # number of the changed node in `ast.walk`
    number: int  # of the change, among those of the node
    function: str  # the innermost around the place, or its class, or `module`
    change: str  # the expression before and after

    @property
    def key(self) -> str:
        """Says what was changed; the same however the lines above it change."""
        return f"{self.module}: {self.function}: {self.change}"

    @property
    def place(self) -> str:
        """The function, as `order.Tracing` writes it."""
        return f"{self.module}:{self.function}"

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.module}\n{self.original}\n{self.node} {self.number}".encode()).hexdigest()

    @property
    def comparable(self) -> str:
        """The module's source without the change, laid out as `source` is."""
        return ast.unparse(ast.parse(self.original))

    @property
    def source(self) -> str:
        """The module's source with the change."""
        tree = ast.parse(self.original)
        place = next(node for at, node in enumerate(ast.walk(tree)) if at == self.node)
        list(changes_of(place))[self.number]()
        return ast.unparse(ast.fix_missing_locations(tree))


def mutants_of(root: Path, module: str) -> Iterator[Mutant]:
    """Yields every mutant of a module."""
    source = (root / module).read_text(encoding="utf-8")
    tree = ast.parse(source)
    left_out, names = set(map(id, unseen(tree))), functions(tree)
    for at, node in enumerate(ast.walk(tree)):
        if id(node) in left_out:
            continue
        for number in range(len(list(changes_of(node)))):
            changed = copy.deepcopy(node)
            list(changes_of(changed))[number]()
            change = f"{ast.unparse(node)} -> {ast.unparse(changed)}"
            yield Mutant(module, source, at, number, names[id(node)], change)


def unseen(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields what no test is to see changed: annotations, how classes are frozen, indents, what zip asserts; and the
    start of a command as a module, which takes a process each time and is seen by the tests of components.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            yield from ast.walk(node)
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.keyword) and node.arg in ("frozen", "slots", "kw_only", "indent", "strict"):
            parts.append(node.value)
        for part in filter(None, parts):
            yield from ast.walk(part)


def functions(tree: ast.AST) -> dict[int, str]:
    """Maps each node to the name of the function or class that it is in."""
    names = dict.fromkeys(map(id, ast.walk(tree)), "module")
    for node in ast.walk(tree):  # inner ones come later
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names |= dict.fromkeys(map(id, ast.walk(node)), node.name)
    return names


def changes_of(node: ast.AST) -> Iterator:
    """Yields functions that each change this node in one way."""
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            yield lambda at=at, operator=operator: node.ops.__setitem__(at, COMPARISONS[type(operator)]())
    if isinstance(node, ast.BoolOp):
        yield lambda: setattr(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield lambda: setattr(node, "op", OPERATORS[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield lambda: setattr(node, "value", not node.value if isinstance(node.value, bool) else node.value + 1)
    if isinstance(node, ast.Call):
        yield from _calls(node)
    if isinstance(node, ast.comprehension):
        for at in range(len(node.ifs)):
            yield lambda at=at: node.ifs.pop(at)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _is_a_line_of_the_log(node.value):
        yield lambda: setattr(node, "value", ast.Constant(None))


def _is_a_line_of_the_log(call: ast.Call) -> bool:
    return ast.unparse(call.func).startswith("logger.")


def _calls(node: ast.Call) -> Iterator:
    if isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
        yield lambda: setattr(node.func, "attr", CALLS[node.func.attr])
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield lambda: setattr(node.func, "id", CALLS[node.func.id])
