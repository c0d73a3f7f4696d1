"""Small faults of a Python source, one at a time, for `mutate.py`.

Left alone are annotations, docstrings and other texts, what is only for the type checker, and all inside of ``raise``,
``assert`` and calls of a logger: faults in messages are of another kind.
"""

import ast
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_SWAPPED_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}

Change = Callable[[], None]
"""Puts a fault into the tree that a site was found in."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: the file, lines and columns, the kind of fault, and its number among those of this place.
        line: from 1.
        function: the first line of the function around it, decorators included; 0 outside of functions.
        before: the expression or statement as it was.
        after: as it is.
        tree: the module with the fault.
    """

    name: str
    line: int
    function: int
    before: str
    after: str
    tree: ast.Module


def count_of(source: str) -> int:
    """How many faults there are of a source."""
    return len(_Sites(ast.parse(source)).found)


def mutants_of(source: str, file: str, numbers: Iterable[int]) -> Iterator[Mutant]:
    """Makes faults of a source by their numbers, from 0; ``file`` goes into their names."""
    for number in numbers:
        tree = ast.parse(source)
        site = _Sites(tree).found[number]
        before = _short(site.node)
        site.change()
        ast.fix_missing_locations(tree)
        node = site.node
        place = f"{node.lineno}:{node.col_offset}-{node.end_lineno}:{node.end_col_offset}"
        name = f"{file}:{place}:{site.kind}:{site.number}"
        yield Mutant(name, node.lineno, site.function, before, _short(site.shown or node), tree)


@dataclass
class _Site:
    node: ast.expr | ast.stmt
    kind: str
    number: int
    function: int
    change: Change
    shown: ast.AST | None = None  # what stands there afterwards, where it is not the node itself


class _Sites(ast.NodeVisitor):
    """Finds the places of a tree that a fault can be put into, in a fixed order."""

    def __init__(self, tree: ast.Module):
        self.found: list[_Site] = []
        self._function = 0
        self.visit(tree)

    def _add(self, node: ast.expr | ast.stmt, kind: str, change: Change, shown: ast.AST | None = None) -> None:
        number = sum(site.node is node and site.kind == kind for site in self.found)
        self.found.append(_Site(node, kind, number, self._function, change, shown))

    def _replace(self, parent: ast.AST, node: ast.expr | ast.stmt, kind: str, new: ast.AST) -> None:
        """Adds a site at which ``new`` takes the place of a child of ``parent``."""
        ast.copy_location(new, node)
        self._add(node, kind, lambda: _put(parent, node, new), new)

    def generic_visit(self, node: ast.AST) -> None:
        """Looks at every child in the order of the source, then inside."""
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_left_alone(child):
                    self._offer(node, child)
                    self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Notes which function is around what follows."""
        outside, self._function = self._function, min([node.lineno, *(each.lineno for each in node.decorator_list)])
        self.generic_visit(node)
        self._function = outside

    def visit_Raise(self, node: ast.Raise) -> None:
        """Looks no further: what is in it is a message."""

    def _offer(self, parent: ast.AST, node: ast.AST) -> None:
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
            self._swap_operator(node)
        elif isinstance(node, ast.Compare):
            for index, operator in enumerate(node.ops):
                self._add(node, "comparison", _setter(node.ops, index, _SWAPPED_OPERATORS[type(operator)]()))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
            self._replace(parent, node, "sign", node.operand)
        elif isinstance(node, ast.Constant):
            self._constant(node)
        elif isinstance(node, ast.Call):
            self._arguments(node)
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            test, negated = node.test, ast.UnaryOp(ast.Not(), node.test)
            ast.copy_location(negated, test)
            self._add(test, "condition", lambda: setattr(node, "test", negated), negated)
        if _is_removable(node):
            assert isinstance(node, ast.stmt)
            self._replace(parent, node, "removed", ast.Pass())

    def _swap_operator(self, node: ast.BinOp | ast.AugAssign | ast.BoolOp) -> None:
        other = _SWAPPED_OPERATORS.get(type(node.op))  # type: ignore[call-overload]
        if other is not None:
            self._add(node, "operator", lambda: setattr(node, "op", other()))

    def _constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            others: list[object] = [not value]
        elif isinstance(value, int):
            others = [value + 1, value - 1]
        elif isinstance(value, float):
            others = [value * 2 if value else 1.0]
        else:
            return
        for other in others:
            self._add(node, "constant", lambda other=other: setattr(node, "value", other))  # type: ignore[misc]

    def _arguments(self, node: ast.Call) -> None:
        one, two = (*node.args, None, None)[:2]
        if one is None or two is None or isinstance(one, ast.Starred) or isinstance(two, ast.Starred):
            return
        if ast.dump(one) != ast.dump(two):
            self._add(node, "arguments", lambda: node.args.__setitem__(slice(0, 2), [two, one]))


def _setter(values: list[ast.cmpop], index: int, value: ast.cmpop) -> Change:
    return lambda: values.__setitem__(index, value)


def _put(parent: ast.AST, node: ast.AST, new: ast.AST) -> None:
    for field, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, field, new)
        elif isinstance(value, list):
            value[:] = [new if each is node else each for each in value]


def _is_removable(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr | ast.AugAssign | ast.Break | ast.Continue | ast.Raise) and not (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield | ast.YieldFrom | ast.Await)
    )


def _is_left_alone(node: ast.AST) -> bool:
    """Whether a node has no faults of interest inside."""
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return True
    if isinstance(node, ast.Expr):
        call = node.value
        if isinstance(call, ast.Constant):
            return True  # a docstring
        return isinstance(call, ast.Call) and ast.unparse(call.func).startswith("logger.")
    return False


def _short(node: ast.AST) -> str:
    text = ast.unparse(copy.copy(node)).split("\n", 1)[0]
    return text if len(text) <= 120 else text[:117] + "..."
