"""A checkpoint's chat template, as a program that the database runs.

A chat template is Jinja from a stranger. It is parsed here, with the settings of
transformers' apply_chat_template (utils/chat_template_utils.py), and never run in
Python. What is loaded is its syntax tree as JSON; the database function chat_text
walks it, and can do no more than what it has an instruction for. What it has none for
is an instruction `unsupported`, which fails where a conversation reaches it.

An instruction is a list: its name, then its operands.

    ["text", "..."]                          literal text
    ["out", value]                           {{ value }}
    ["if", [[test, body], ...], otherwise]
    ["for", targets, values, test, body, otherwise]
    ["set", targets, value]                  {% set x = value %}
    ["set_attribute", name, key, value]      {% set x.key = value %}, of a namespace
    ["set_block", name, body]                {% set x %}...{% endset %}
    ["with", targets, values, body]
    ["break"], ["continue"]

A value is one, too:

    ["const", x], ["name", x], ["list", values], ["dict", [[key, value], ...]]
    ["item", value, key], ["slice", value, start, stop, step]
    ["if_else", test, value, otherwise], ["and", x, y], ["or", x, y], ["not", x]
    ["compare", x, [[operator, y], ...]], ["concat", values]
    ["add", x, y], "sub", "mul", "div", "floordiv", "mod"; ["neg", x]
    ["filter", name, x, arguments, named], ["test", name, x, arguments]
    ["call", name, arguments, named], ["method", x, name, arguments, named]
    ["unsupported", what]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from dbt_nn.checkpoint.config import check_value
from dbt_nn.checkpoint.files import MIB, CheckpointError, quoted
from dbt_nn.checkpoint.vocabulary import KINDS, Settings, read_text

TEMPLATE_FILE = "chat_template.jinja"
DEFAULT = "default"
MAX_INSTRUCTIONS = 20_000
# x.items is a method, and not an item of x
DICT_METHODS = {*("clear", "copy", "fromkeys", "get", "items", "keys"), "values"} | {
    *("pop", "popitem", "setdefault", "update")
}

Instruction = list[Any]


def chat_settings(folder: Path) -> dict[str, Any]:
    """What config says of a checkpoint's chat template; nothing if it has none.

    Returns:
        chat_template, the text; chat_program, what the database runs, or
        chat_problem, why it can't; chat_tokens, the special tokens by the names that
        templates have for them.

    Raises:
        CheckpointError: the file that holds it can't be read.

    """
    settings = Settings(folder)
    template = _template(folder, settings)
    if template is None:
        return {}
    found: dict[str, Any] = {"chat_template": template}
    try:
        found["chat_program"] = compile_template(template)
    except ValueError as error:
        found["chat_problem"] = str(error)
    tokens = {f"{kind}_token": settings.token(kind) for kind in KINDS}
    found["chat_tokens"] = {name: token for name, token in tokens.items() if token}
    check_value(found["chat_tokens"], folder / "tokenizer_config.json")
    return found


def _template(folder: Path, settings: Settings) -> str | None:
    """The template: of its own file, or of tokenizer_config.json.

    Of several by name it is the one without tools, `default`.
    """
    where = folder / TEMPLATE_FILE
    template: object = None
    if where.is_file():
        template = read_text(where)
    else:
        for path, content in settings.files.items():
            if content.get("chat_template"):
                where, template = path, content["chat_template"]
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get(DEFAULT)
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > MIB:
        raise CheckpointError(
            f"{where}: the chat template is {quoted(template)}, where a text of at "
            "most 1 MiB is needed. Fetch the file again."
        )
    check_value(template, where)
    return template


def compile_template(template: str) -> list[Instruction]:
    """Parse a template, and translate its syntax tree.

    Raises:
        ValueError: it is no Jinja, or too long; the message says what is wrong.

    """
    # importing it takes a tenth of a second
    from jinja2 import Environment, TemplateError, nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """{% generation %} marks what a network wrote: transformers' own tag."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    try:
        return _Compiler(nodes).body(environment.parse(template).body)
    except TemplateError as error:
        raise ValueError(f"it is no valid Jinja: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _Compiler:
    """Jinja's nodes as instructions."""

    # by the names of jinja2.nodes
    BINARY = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod")

    def __init__(self, nodes: Any) -> None:
        self.nodes = nodes
        self.count = 0

    def body(self, statements: list[Any]) -> list[Instruction]:
        found: list[Instruction] = []
        for statement in statements:
            found += self.statement(statement)
        return found

    def statement(self, node: Any) -> list[Instruction]:
        self.count += 1
        if self.count > MAX_INSTRUCTIONS:
            raise ValueError(f"it has more than {MAX_INSTRUCTIONS} instructions")
        n = self.nodes
        match node:
            case n.Output():
                return [self.output(part) for part in node.nodes]
            case n.If():
                cases = [node, *node.elif_]
                branches = [[self.value(x.test), self.body(x.body)] for x in cases]
                return [["if", branches, self.body(node.else_)]]
            case n.For(recursive=False):
                return [
                    [
                        "for",
                        self.targets(node.target),
                        self.value(node.iter),
                        self.value(node.test) if node.test else None,
                        self.body(node.body),
                        self.body(node.else_),
                    ]
                ]
            case n.Assign(target=n.NSRef() as target):
                value = self.value(node.node)
                return [["set_attribute", target.name, target.attr, value]]
            case n.Assign():
                return [["set", self.targets(node.target), self.value(node.node)]]
            case n.AssignBlock(filter=None, target=n.Name() as target):
                return [["set_block", target.name, self.body(node.body)]]
            case n.With():
                targets = [self.targets(target)[0] for target in node.targets]
                values = [self.value(value) for value in node.values]
                return [["with", targets, values, self.body(node.body)]]
            case n.Scope():
                return [["with", [], [], self.body(node.body)]]
            case n.Break():
                return [["break"]]
            case n.Continue():
                return [["continue"]]
            case n.Macro():
                # of use to tools, as a rule; who calls it fails
                return []
        return [["out", self.unsupported(node)]]

    def output(self, node: Any) -> Instruction:
        if isinstance(node, self.nodes.TemplateData):
            return ["text", node.data]
        return ["out", self.value(node)]

    def targets(self, node: Any) -> list[str]:
        """The names that are set: several where a value is taken apart."""
        items = node.items if isinstance(node, self.nodes.Tuple) else [node]
        if not all(isinstance(item, self.nodes.Name) for item in items):
            raise ValueError(f"line {node.lineno} sets what is no name")
        return [item.name for item in items]

    def values(self, nodes: list[Any]) -> list[Instruction]:
        return [self.value(node) for node in nodes]

    def named(self, pairs: list[Any]) -> dict[str, Instruction]:
        return {pair.key: self.value(pair.value) for pair in pairs}

    def value(self, node: Any) -> Instruction:
        self.count += 1
        if self.count > MAX_INSTRUCTIONS:
            raise ValueError(f"it has more than {MAX_INSTRUCTIONS} instructions")
        n = self.nodes
        if getattr(node, "dyn_args", None) or getattr(node, "dyn_kwargs", None):
            return self.unsupported(node)
        match node:
            case n.Const(value=bool() | int() | float() | str() | None):
                return ["const", node.value]
            case n.Name():
                return ["name", node.name]
            case n.List() | n.Tuple():
                return ["list", self.values(node.items)]
            case n.Dict():
                pairs = [[self.value(p.key), self.value(p.value)] for p in node.items]
                return ["dict", pairs]
            case n.Getattr() if node.attr not in DICT_METHODS:
                return ["item", self.value(node.node), ["const", node.attr]]
            case n.Getitem(arg=n.Slice() as part):
                bounds = [
                    x and self.value(x) for x in (part.start, part.stop, part.step)
                ]
                return ["slice", self.value(node.node), *bounds]
            case n.Getitem():
                return ["item", self.value(node.node), self.value(node.arg)]
            case n.CondExpr():
                otherwise = node.expr2 and self.value(node.expr2)
                test, value = self.value(node.test), self.value(node.expr1)
                return ["if_else", test, value, otherwise]
            case n.And() | n.Or():
                name = type(node).__name__.lower()
                return [name, self.value(node.left), self.value(node.right)]
            case n.Not():
                return ["not", self.value(node.node)]
            case n.Neg():
                return ["neg", self.value(node.node)]
            case n.Compare():
                others = [[x.op, self.value(x.expr)] for x in node.ops]
                return ["compare", self.value(node.expr), others]
            case n.Concat():
                return ["concat", self.values(node.nodes)]
            case n.Filter(node=n.Expr()):
                return [
                    *("filter", node.name, self.value(node.node)),
                    *(self.values(node.args), self.named(node.kwargs)),
                ]
            case n.Test(kwargs=[]):
                return [
                    "test",
                    node.name,
                    self.value(node.node),
                    self.values(node.args),
                ]
            case n.Call(node=n.Name() as function):
                arguments, named = self.values(node.args), self.named(node.kwargs)
                return ["call", function.name, arguments, named]
            case n.Call(node=n.Getattr() as method):
                return [
                    *("method", self.value(method.node), method.attr),
                    *(self.values(node.args), self.named(node.kwargs)),
                ]
        name = type(node).__name__
        if name in self.BINARY:
            return [name.lower(), self.value(node.left), self.value(node.right)]
        return self.unsupported(node)

    def unsupported(self, node: Any) -> Instruction:
        name = type(node).__name__
        return ["unsupported", f"{name} in line {node.lineno}"]
