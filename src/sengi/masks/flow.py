"""Does a chat template only copy the texts of messages? A proof from its syntax tree.

A conversation's rendering can be put together from its parts without running the template only if the template's
decisions do not depend on what the messages say. This file follows every value that holds a message's text through the
Jinja source. A text may be written out, put beside other text, and stripped of white space. It may be searched
for a fixed string (``'</think>' in content``), which then becomes a *guard*: texts without the guards all take the
same way. Any other use (length, comparison, case, a loop over characters, a filter that is not known here) ends
the proof, and every conversation is rendered in full.

It holds for conversations of plain messages: a role and a text that is not blank, no tools, no documents.
"""

from __future__ import annotations

from jinja2 import nodes

from sengi.masks.values import CLEAN, CONSTANT, MESSAGE, MESSAGES, NAMESPACE, TEXT, TEXTS, NotProven, Values, refuse


def content_guards(syntax: nodes.Template) -> tuple[str, ...] | None:
    """Strings that decide how the template writes a text.

    Args:
        syntax: the parsed template.

    Returns:
        The guards: conversations of one shape none of whose texts holds one are all written in the same way, each
        text whole or stripped at an end of all white space or of new lines. None: not proven.
    """
    values = Values()
    flow = _Flow(values)
    try:
        while True:  # until no variable can be more than was seen: few rounds, kinds only grow
            before = dict(values.kinds)
            flow.body(syntax.body)
            if values.kinds == before:
                return tuple(sorted(values.guards))
    except (NotProven, RecursionError):
        return None


class _Flow:
    """A walk over the statements of a template."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._written = CLEAN  # what the body that is being walked writes

    # ---- statements

    def body(self, body: list[nodes.Node]) -> None:
        """Walk statements."""
        for node in body:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for child in node.nodes:
                    self._write(child)
            case nodes.If():
                self._if(node)
            case nodes.For():
                self._for(node)
            case nodes.Assign():
                self._assign(node)
            case nodes.AssignBlock():
                self._assign_block(node)
            case nodes.Macro():
                self._macro(node)
            case nodes.CallBlock() if isinstance(node.call.node, nodes.ExtensionAttribute):
                self.body(node.body)  # {% generation %}
            case nodes.ExprStmt():
                if self._values.kind(node.node) not in CONSTANT:
                    refuse(node)
            case nodes.Continue() | nodes.Break():
                pass
            case _:
                refuse(node)

    def _write(self, node: nodes.Node) -> None:
        kind = self._values.kind(node)
        if kind not in TEXTS | CONSTANT:
            refuse(node)
        if kind in TEXTS:
            self._written = TEXT

    def _if(self, node: nodes.If) -> None:
        for branch in (node, *node.elif_):
            answer = self._values.test(branch.test)
            if answer is not False:
                self.body(branch.body)
            if answer is True:
                return
        self.body(node.else_)

    def _for(self, node: nodes.For) -> None:
        over = self._values.kind(node.iter)
        if node.recursive or over not in (MESSAGES, *CONSTANT):
            refuse(node)
        self._set(node.target, MESSAGE if over == MESSAGES else CLEAN)
        if node.test is not None:
            self._values.test(node.test)
        self.body(node.body)
        self.body(node.else_)

    def _assign(self, node: nodes.Assign) -> None:
        value = node.node
        if isinstance(value, nodes.Call) and isinstance(value.node, nodes.Name) and value.node.name == "namespace":
            if not isinstance(node.target, nodes.Name) or value.args or value.dyn_args or value.dyn_kwargs:
                refuse(node)
            self._values.join(node.target.name, NAMESPACE, node)
            for pair in value.kwargs:
                self._values.join(f"{node.target.name}.{pair.key}", self._values.kind(pair.value), node)
            return
        self._set(node.target, self._values.kind(value))

    def _assign_block(self, node: nodes.AssignBlock) -> None:
        if node.filter is not None:
            refuse(node)
        self._set(node.target, self._written_by(node.body))

    def _written_by(self, body: list[nodes.Node]) -> str:
        outer, self._written = self._written, CLEAN
        self.body(body)
        inner, self._written = self._written, outer
        return inner

    def _macro(self, node: nodes.Macro) -> None:
        if self._values.macros.setdefault(node.name, node) is not node or node.name in self._values.kinds:
            refuse(node)
        for argument in node.args:
            self._values.join(argument.name, CLEAN, node)  # a call may leave it out
        for default in node.defaults:
            if self._values.kind(default) not in CONSTANT:
                refuse(node)
        self._values.join(f"{node.name}()", self._written_by(node.body), node)

    def _set(self, target: nodes.Node, kind: str) -> None:
        match target:
            case nodes.Name():
                self._values.join(target.name, kind, target)
            case nodes.NSRef():
                self._values.join(f"{target.name}.{target.attr}", kind, target)
            case nodes.Tuple() if kind in CONSTANT:
                for item in target.items:
                    self._set(item, CLEAN)
            case _:
                refuse(target)
