"""Where does a template pay, when nothing of the sandbox is called there?

A turn of a loop, the body of a macro, `~`, a comparison and a key run as plain Python in a compiled
template.  Before compiling, calls of functions of the environment are put there; `sandbox.py` has
those functions: `turn`, `concatenate` and `weigh`.
"""

from typing import Any

import jinja2.ext
from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class PayForTurns(NodeTransformer):
    """Make loops, macros, `~` and comparisons pay, by changing the syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        if node.test is not None:  # a turn that the condition skips is one, too
            node.test = nodes.And(_call("turn", nodes.Const(0)), node.test)
        return self._pay(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        return self._pay(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        self.generic_visit(node)
        return self._pay(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("concatenate", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _call("weigh", node.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Test:
        self.generic_visit(node)
        node.args = [_call("weigh", arg) for arg in node.args]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = _call("weigh", node.key)
        return node

    def _pay(self, node: Any) -> Any:
        num_chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(_call("turn", nodes.Const(num_chars))))
        return node


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [*args], [], None, None)
