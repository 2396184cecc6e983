"""Chat templates as jinja2 runs them for transformers, with bounded work, sizes and output.

A template comes with a model, and is a program: jinja2's sandbox keeps it from the machine, but not from running for
hours or filling the memory. Whatever repeats, grows or reads values is charged here before it happens. The limits do
not depend on the clock, so that a template that works here works everywhere. Templates in use need a few hundred
steps; `MINIMUM_STEPS` takes about half a second.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, KeysView, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# The longest templates in use have some 30,000 characters.
MAX_SOURCE = 1 << 17
MINIMUM_STEPS, STEPS_PER_MESSAGE = 100_000, 2_000
# Characters, or items, of a value: at least, and as a multiple of what the template is given.
MINIMUM_SIZE, GROWTH = 1 << 20, 16
# So many characters are read or written in the time of one step, and so many items of lists looked at.
SIZE_OF_A_STEP, ITEMS_OF_A_STEP = 1_000, 3
MAX_BITS = 1 << 16
# The result of these may be as long as the product of two arguments, where an integer counts by its value.
_EXPANDING = frozenset(
    (
        *("batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust"),
        *("round", "slice", "to_bytes", "tojson", "translate", "truncate", "wordwrap", "xmlattr", "zfill"),
    )
)
# The time of these grows with the square of what they read.
_QUADRATIC = frozenset(["striptags", "sum", "urlize", "wordwrap"])
_WIDTH = re.compile(r"\d{5,}")


class TooMuchWorkError(jinja2.TemplateRuntimeError):
    """A template does not end, or what it makes is too large."""


@dataclass
class _Budget:
    steps: float
    size: int
    output: int

    def spend(self, steps: float) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TooMuchWorkError("it takes far more steps than a chat template needs, and may never end")

    def fits(self, size: int) -> int:
        if size > self.size:
            raise TooMuchWorkError(f"it makes a text or list of {size:,} items or more from a short conversation")
        return size

    def measured(self, value: Any) -> int:
        """The number of characters and items in a value, charged for being read."""
        if isinstance(value, str):
            self.spend(len(value) / SIZE_OF_A_STEP)
            return len(value)
        total, pending = 1, [value]
        while pending:
            each = pending.pop()
            if isinstance(each, str | bytes | range):
                total += len(each)
            elif (items := _items(each)) is not None:
                self.spend((1 + len(items)) / ITEMS_OF_A_STEP)
                total = self.fits(total + len(items))
                pending += items
        self.spend(total / SIZE_OF_A_STEP)
        return self.fits(total)


def _items(value: Any) -> Collection[Any] | None:
    """What a container holds; None for what is no container, or holds nothing but characters and numbers."""
    if isinstance(value, str | bytes | range):
        return None
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, Sequence | AbstractSet | KeysView | ValuesView) else None


def _largest(value: Any) -> int:
    """The largest of the integers in a value, without its sign."""
    if isinstance(value, int):
        return abs(value)
    return max(map(_largest, _items(value) or ()), default=0)


_budget: ContextVar[_Budget] = ContextVar("budget of the template that is rendered")


class _Namespace(Namespace):
    """Does not show what it holds, which could be itself many times over."""

    def __init__(*args: Any, **options: Any) -> None:
        for name in (attributes := dict(*args[1:], **options)):
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")


class _Generation(Extension):
    """The tag that marks what the assistant writes. It does not change the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Charges(NodeTransformer):
    """Adds to a parsed template what charges for loops, joined texts, new lists, parts of lists, and
    comparisons."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step"), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("step"), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call("checked", node.expr)
        for operand in node.ops:
            operand.expr = _call("checked", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("checked", node.node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("checked", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("checked", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("checked", node) if node.ctx == "load" else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        # Not constant text, so that `finalize` counts it.
        return nodes.Const(node.data, lineno=node.lineno)


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, within a budget."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            # It would evaluate at once, before there is a budget.
            optimized=False,
            finalize=jinja2.pass_context(_written),
        )
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": strftime_now,
            "namespace": _Namespace,
            "dict": dict,
        }
        self.filters["tojson"] = _tojson
        self.filters = {name: _charged(name, filter_) for name, filter_ in self.filters.items()}
        self.tests: dict[str, Any] = {name: _charged(name, test) for name, test in self.tests.items()}

    def bounded(self, source: str) -> jinja2.Template:
        """The compiled template.

        Raises:
            jinja2.TemplateSyntaxError: the source is too long, or not a template.
        """
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateSyntaxError(f"it has {len(source):,} characters, at most {MAX_SOURCE:,} are read", 1)
        try:
            return self.from_string(_Charges().visit(self.parse(source)))
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise jinja2.TemplateSyntaxError("it is nested too deeply", 1) from error

    def step(self) -> bool:
        """Charge for one pass of a loop; true."""
        _budget.get().spend(1)
        return True

    def checked(self, value: Any) -> Any:
        """The value, charged for being read whole."""
        budget = _budget.get()
        budget.spend(1)
        budget.measured(value)
        return value

    def concatenated(self, *values: Any) -> str:
        """The values as one text."""
        budget = _budget.get()
        budget.spend(1)
        budget.fits(sum(budget.measured(value) for value in values))
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, if what it makes is not too large."""
        budget = _budget.get()
        budget.spend(1)
        sizes = budget.measured(left), budget.measured(right)
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "*" and numbers:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            times = next((abs(value) for value in (left, right) if isinstance(value, int)), 1)
            budget.spend(budget.fits(max(sizes) * times) / SIZE_OF_A_STEP)
        elif operator == "**" and numbers:
            _check_bits(left.bit_length() * abs(right))
        elif operator == "+":
            budget.fits(sum(sizes))
        elif operator == "%" and isinstance(left, str):
            _check_expansion(budget, "format", (left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, if it is safe and what it makes is not too large."""
        budget = _budget.get()
        budget.spend(1)
        of_the_template = isinstance(__obj, Macro | LoopContext | BlockReference)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if of_the_template or owner is __self:
            return super().call(__context, __obj, *args, **kwargs)
        _check_expansion(budget, getattr(__obj, "__name__", ""), (owner, *args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is charged for what it reads, and that returns a list instead of an iterator."""

    @functools.wraps(function)
    def charged(*args: Any, **options: Any) -> Any:
        budget = _budget.get()
        budget.spend(1)
        _check_expansion(budget, name, (*args, *options.values()))
        result = function(*args, **options)
        return list(result) if isinstance(result, Iterator) else result

    return charged


def _check_expansion(budget: _Budget, name: str, values: Sequence[Any]) -> None:
    sizes = sorted((budget.measured(value) for value in values), reverse=True)
    if name in _QUADRATIC:
        budget.spend(sizes[0] ** 2 / SIZE_OF_A_STEP)
    budget.spend(sizes[0] * (sizes[1] if len(sizes) > 1 else 1) / SIZE_OF_A_STEP)
    if name in _EXPANDING:
        texts = [value for value in values if isinstance(value, str)] if name.startswith("format") else []
        numbers = [_largest(value) for value in values]
        if any(number > MINIMUM_SIZE for number in numbers) or any(_WIDTH.search(text) for text in texts[:1]):
            raise TooMuchWorkError(f"it calls {name} with a number that is too large")
        factors = sorted((*sizes, *numbers), reverse=True)
        budget.spend(budget.fits(factors[0] * max(1, factors[1] if len(factors) > 1 else 1)) / SIZE_OF_A_STEP)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooMuchWorkError("it computes a number that is too large")


def _written(_context: Context, value: Any) -> Any:
    """What `{{ }}` and the text between the tags write, counted."""
    budget = _budget.get()
    budget.spend(1)
    budget.output -= budget.measured(value)
    if budget.output < 0:
        raise TooMuchWorkError("it writes far more than the conversation holds, and may never end")
    return value


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja2's own escapes what HTML does.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: jinja2.Template, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Render a template of `BoundedEnvironment.bounded`.

    Raises:
        TooMuchWorkError: it takes too many steps, or makes too much.
        Exception: whatever else the template raises; see `models.template`.
    """
    # json is what all of it is made of.
    given = len(json.dumps([*messages, variables], default=str))
    size = MINIMUM_SIZE + GROWTH * given
    budget = _Budget(MINIMUM_STEPS + STEPS_PER_MESSAGE * len(messages) + given, size, size)
    token = _budget.set(budget)
    try:
        return template.render(messages=messages, **variables)
    finally:
        _budget.reset(token)
