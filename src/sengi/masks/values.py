"""What a value in a chat template can be: the half of `masks.flow` that walks expressions and conditions.

Variables are followed by name, without regard to order or branch, so a value is at least what is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from jinja2 import nodes

# What a value is. Those of TEXTS hold the text of messages; CONTENT is always one, MAYBE one or a constant.
CLEAN, ABSENT, CONTENT, MAYBE, TEXT = "clean", "absent", "content", "maybe", "text"
MESSAGES, MESSAGE, NAMESPACE, SPLIT = "messages", "message", "namespace", "split"
TEXTS = frozenset({CONTENT, MAYBE, TEXT})
CONSTANT = frozenset({CLEAN, ABSENT})
_STRIPS = {"strip", "lstrip", "rstrip"}
# Tests whose answer the type alone decides; the value is the answer for a text, None: not used to leave out a branch.
_TYPE_TESTS = {
    "defined": True, "undefined": False, "string": True, "none": False, "mapping": False, "sequence": True,
    "iterable": True, "number": False, "integer": False, "float": False, "boolean": False, "true": False,
    "false": False, "callable": False,
}  # fmt: skip
_FUNCTIONS = {"range", "strftime_now", "raise_exception", "dict"}


class NotProven(Exception):
    """The template does with texts what this file does not follow."""


def refuse(node: nodes.Node) -> NoReturn:
    """End the proof.

    Raises:
        NotProven: always; it names the place.
    """
    raise NotProven(f"line {node.lineno}: {type(node).__name__}")


def joined(a: str, b: str, node: nodes.Node) -> str:
    """What a value is that may be either."""
    if a == b:
        return a
    kinds = {CLEAN if kind == ABSENT else kind for kind in (a, b)}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds <= {CLEAN, CONTENT, MAYBE}:
        return MAYBE
    if kinds <= {CLEAN, CONTENT, MAYBE, TEXT}:
        return TEXT
    refuse(node)


class Values:
    """What variables, namespace fields and macro results can be (``kinds``), and the guards met on the way."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {"messages": MESSAGES}
        self.guards: set[str] = set()
        self.macros: dict[str, nodes.Macro] = {}

    def join(self, name: str, kind: str, node: nodes.Node) -> None:
        """Note that a variable can be of this kind, too."""
        if name in self.macros or name == "loop":
            refuse(node)
        kind = CLEAN if kind == ABSENT else kind
        self.kinds[name] = joined(self.kinds[name], kind, node) if name in self.kinds else kind

    def test(self, node: nodes.Node) -> bool | None:
        """Walk a condition; its answer where that is the same for every plain conversation."""
        match node:
            case nodes.Not():
                answer = self.test(node.node)
                return None if answer is None else not answer
            case nodes.And() | nodes.Or():
                stops = isinstance(node, nodes.Or)
                left = self.test(node.left)
                if left is stops:
                    return stops
                right = self.test(node.right)
                return right if left is not None or right is stops else None
            case nodes.Test():
                return self._type_test(node)
            case nodes.Compare(expr=nodes.Const(value=key), ops=[nodes.Operand(op="in" | "notin" as op, expr=where)]):
                if self.kind(where) == MESSAGE:
                    return (key in ("role", "content")) is (op == "in")
        kind = self.kind(node)
        # A text that is not blank stays so when it is stripped, so "is there one" has one answer.
        return {CONTENT: True, ABSENT: False}.get(kind)

    def _type_test(self, node: nodes.Test) -> bool | None:
        kind = self.kind(node.node)
        if node.name in _TYPE_TESTS:
            if kind == CONTENT:
                return _TYPE_TESTS[node.name]
            return node.name == "undefined" if kind == ABSENT and node.name in ("defined", "undefined") else None
        if kind not in CONSTANT or any(self.kind(argument) not in CONSTANT for argument in node.args):
            refuse(node)
        return None

    def kind(self, node: nodes.Node) -> str:
        """What the value of an expression can be.

        Raises:
            NotProven: it does with a text what is not followed here.
        """
        match node:
            case nodes.Const() | nodes.TemplateData():
                return CLEAN
            case nodes.Name():
                return self._name(node)
            case nodes.Getattr():
                return self._attribute(node, node.node, node.attr)
            case nodes.Getitem():
                return self._item(node)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Call():
                return self._call(node)
            case nodes.Add():
                return self._concatenated([node.left, node.right], node)
            case nodes.Concat():
                return self._concatenated(node.nodes, node)
            case nodes.CondExpr():
                return self._conditional(node)
            case nodes.And() | nodes.Or():
                return joined(self.kind(node.left), self.kind(node.right), node)
            case nodes.Not() | nodes.Test():
                self.test(node)
                return CLEAN
            case nodes.Compare():
                return self._compare(node)
        # arithmetic, lists, dicts and the rest: of constants only
        for child in node.iter_child_nodes():
            self._constant_below(child)
        return CLEAN

    def _constant_below(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Expr):
            if self.kind(node) not in CONSTANT:
                refuse(node)
        else:  # a pair, keyword or operand
            for child in node.iter_child_nodes():
                self._constant_below(child)

    def _name(self, node: nodes.Name) -> str:
        kind = self.kinds.get(node.name, CLEAN)
        if kind == NAMESPACE or node.name == "loop" or node.name in self.macros:
            refuse(node)  # passed on as a whole
        return kind

    def _attribute(self, node: nodes.Node, owner: nodes.Node, name: str) -> str:
        if isinstance(owner, nodes.Name):
            if owner.name == "loop":
                return MESSAGE if name in ("previtem", "nextitem") else CLEAN
            if self.kinds.get(owner.name) == NAMESPACE:
                return self.kinds.get(f"{owner.name}.{name}", CLEAN)
        kind = self.kind(owner)
        if kind in CONSTANT:
            return CLEAN
        if kind != MESSAGE or hasattr(dict, name):
            refuse(node)
        return {"content": CONTENT, "role": CLEAN}.get(name, ABSENT)

    def _item(self, node: nodes.Getitem) -> str:
        kind, key = self.kind(node.node), node.arg
        if isinstance(key, nodes.Const) and isinstance(key.value, str) and kind == MESSAGE:
            return {"content": CONTENT, "role": CLEAN}.get(key.value, ABSENT)
        try:
            constant = key.as_const()
        except nodes.Impossible:
            constant = None
        if kind == SPLIT and constant in (0, -1):
            return MAYBE
        self._constant_below(key)
        if kind == MESSAGES:
            return MESSAGES if isinstance(key, nodes.Slice) else MESSAGE
        if kind not in CONSTANT:
            refuse(node)
        return CLEAN

    def _concatenated(self, items: Sequence[nodes.Node], node: nodes.Node) -> str:
        kinds = {self.kind(item) for item in items}
        if not kinds <= TEXTS | CONSTANT:
            refuse(node)
        return TEXT if kinds & TEXTS else CLEAN

    def _conditional(self, node: nodes.CondExpr) -> str:
        answer = self.test(node.test)
        kinds = []
        if answer is not False:
            kinds.append(self.kind(node.expr1))
        if answer is not True:
            kinds.append(CLEAN if node.expr2 is None else self.kind(node.expr2))
        return kinds[0] if len(kinds) == 1 else joined(kinds[0], kinds[1], node)

    def _compare(self, node: nodes.Compare) -> str:
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        kinds = [self.kind(operand) for operand in operands]
        if set(kinds) <= CONSTANT:
            return CLEAN
        if len(operands) != 2:
            refuse(node)
        op = node.ops[0].op
        if op in ("in", "notin") and kinds[0] in CONSTANT and kinds[1] in (CONTENT, MAYBE):
            self._guard(operands[0], node)
        elif op in ("in", "notin") and kinds[1] == MESSAGE and isinstance(operands[0], nodes.Const):
            pass  # whether it has a field
        elif op in ("eq", "ne") and sorted(kinds)[0] == CLEAN and set(kinds) & {CONTENT, MAYBE}:
            constant = operands[kinds.index(CLEAN)]
            if not isinstance(constant, nodes.Const):
                refuse(node)
            if isinstance(constant.value, str) and constant.value.strip():
                self._guard(constant, node)  # equal to it: holds it
        else:
            refuse(node)
        return CLEAN

    def _guard(self, needle: nodes.Node, node: nodes.Node) -> None:
        if not isinstance(needle, nodes.Const) or not isinstance(needle.value, str) or not needle.value:
            refuse(node)
        self.guards.add(needle.value)

    def _filter(self, node: nodes.Filter) -> str:
        if node.node is None or node.dyn_args or node.dyn_kwargs:
            refuse(node)
        kind, name = self.kind(node.node), node.name
        if kind in CONSTANT:
            for part in (*node.args, *node.kwargs):
                self._constant_below(part)
            return CLEAN
        if kind in TEXTS and ((name == "trim" and self._strips(node)) or (name == "string" and not node.args)):
            return kind
        if kind == SPLIT and name in ("first", "last"):
            return MAYBE
        if kind == MESSAGES and not node.args and not node.kwargs:
            known = {"length": CLEAN, "count": CLEAN, "first": MESSAGE, "last": MESSAGE}
            known |= {"list": MESSAGES, "reverse": MESSAGES}
            if name in known:
                return known[name]
        if kind == MESSAGES and name in ("selectattr", "rejectattr") and self._by_role(node):
            return MESSAGES
        refuse(node)

    def _by_role(self, node: nodes.Filter) -> bool:
        values = [argument.value for argument in node.args if isinstance(argument, nodes.Const)]
        return len(values) == len(node.args) and not node.kwargs and values[:1] == ["role"]

    def _strips(self, node: nodes.Filter | nodes.Call) -> bool:
        """Whether a strip takes all white space or new lines; other sets of characters are not followed."""
        if node.kwargs or node.dyn_args or node.dyn_kwargs:
            return False
        return not node.args or (
            len(node.args) == 1 and isinstance(node.args[0], nodes.Const) and node.args[0].value == "\n"
        )

    def _call(self, node: nodes.Call) -> str:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            refuse(node)
        if isinstance(node.node, nodes.Getattr):
            return self._method(node, node.node)
        if not isinstance(node.node, nodes.Name):
            refuse(node)
        name = node.node.name
        if name in self.macros:
            return self._macro_call(node, self.macros[name])
        kinds = [self.kind(argument) for argument in node.args]
        kinds += [self.kind(pair.value) for pair in node.kwargs]
        if name in self.kinds or name not in _FUNCTIONS:
            refuse(node)
        if name != "raise_exception" and not set(kinds) <= CONSTANT:
            refuse(node)
        return CLEAN

    def _macro_call(self, node: nodes.Call, macro: nodes.Macro) -> str:
        if len(node.args) > len(macro.args):
            refuse(node)
        given = [(parameter.name, argument) for parameter, argument in zip(macro.args, node.args, strict=False)]
        given += [(pair.key, pair.value) for pair in node.kwargs]
        for name, argument in given:
            if name not in [parameter.name for parameter in macro.args]:
                refuse(node)
            self.join(name, self.kind(argument), node)
        return self.kinds.get(f"{macro.name}()", CLEAN)

    def _method(self, node: nodes.Call, method: nodes.Getattr) -> str:
        name = method.attr
        if isinstance(method.node, nodes.Name) and method.node.name == "loop":
            self._constant_arguments(node)
            return CLEAN
        kind = self.kind(method.node)
        if kind == MESSAGE and name == "get" and node.args and isinstance(node.args[0], nodes.Const):
            self._constant_arguments(node)
            return {"content": CONTENT}.get(node.args[0].value, CLEAN)
        if kind in TEXTS and name in _STRIPS and self._strips(node):
            return kind
        if kind in (CONTENT, MAYBE) and name in ("startswith", "endswith", "split") and node.args:
            self._constant_arguments(node)
            self._guard(node.args[0], node)
            return SPLIT if name == "split" else CLEAN
        if kind not in CONSTANT:
            refuse(node)
        self._constant_arguments(node)
        return CLEAN

    def _constant_arguments(self, node: nodes.Call) -> None:
        for part in (*node.args, *node.kwargs):
            self._constant_below(part)
