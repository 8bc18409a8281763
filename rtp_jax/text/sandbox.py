"""How is a template run, when a stranger wrote it?

Jinja's immutable sandbox keeps a template away from Python; this file bounds what it can cost.
Every render has a `Budget` of steps, characters and processor time.  Operators, calls and filters
pay through the sandbox's own hooks; loops and comparisons pay because `template_tree.py` changes
the syntax tree before it is compiled.  No threads, no signals: a single operation is never
interrupted, a limit is noticed at the next one.  Read `template_cost.py` for the prices.
"""

import datetime
import json
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox
import jinja2.utils

from rtp_jax.text import template_cost
from rtp_jax.text.template_cost import (
    MAX_INDENT,
    Budget,
    LimitReached,
    pay_comparison,
    pay_text,
    size,
)
from rtp_jax.text.template_tree import Generation, PayForTurns

BUDGET = " budget"  # a variable that no template can name, because of the space
MAX_STRFTIME_CHARS = 100
# Filters that chat templates use; each costs about what it is given, or is checked before.
FILTERS = """abs capitalize count d default dictsort e escape first float format indent int items
    join last length list lower map max min reject rejectattr replace reverse round safe select
    selectattr sort string sum title tojson trim truncate unique upper"""
METHODS: dict[type, str] = {
    str: """capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower
        isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix
        replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase
        title upper""",
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count index",
    int: "bit_length",
    float: "is_integer",
}


class Refusal(jinja2.TemplateError):
    """A template called `raise_exception`: it does not take these messages."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one render may cost."""

    output_chars: int = 8 << 20  # about two million tokens
    made_chars: int = 128 << 20  # all strings and lists on the way, together
    steps: int = 1_000_000  # turns of loops, calls and filters
    seconds: float = 5.0  # of this thread's processor time, so that a busy machine changes nothing


def compile_template(
    source: str, *, now: Callable[[], datetime.datetime] = datetime.datetime.now
) -> jinja2.Template:
    """Compile a template together with what bounds it."""
    environment = _Environment(now)
    tree = PayForTurns().visit(environment.parse(source))
    tree.set_environment(environment)
    return environment.from_string(tree)


def render(template: jinja2.Template, variables: dict[str, Any], limits: Limits) -> str:
    """Render within the limits."""
    budget = Budget(limits.steps, limits.made_chars, time.thread_time() + limits.seconds)
    chunks, num_chars = [], 0
    for chunk in template.generate({**variables, BUDGET: budget}):
        chunks.append(chunk)
        num_chars += len(chunk)
        if num_chars > limits.output_chars:
            raise LimitReached(f"it writes more than {limits.output_chars} characters")
    return "".join(chunks)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The settings of transformers, and only listed methods: `'a'.center(10**10)` is too much."""

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # it would compute constants before there is a budget
            extensions=[jinja2.ext.loopcontrols, Generation],
        )

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in METHODS.items():
            if isinstance(obj, kind):
                return attr in names.split()
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `str.format` to the list above, where it is not: its widths know no limit."""


class _Environment(_Sandbox):
    """A sandbox in which everything pays."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: Callable[[], datetime.datetime]):
        super().__init__()
        plain = _Sandbox()
        plain.filters["tojson"] = _tojson
        self.filters = {name: _paying_filter(name, plain) for name in FILTERS.split()}
        self.globals = (
            {name: self.globals[name] for name in ("cycler", "joiner", "range")}
            | {
                "dict": lambda *args, **kwargs: dict(*args, **kwargs),  # the type has more to reach
                "namespace": _Namespace,
                "raise_exception": _raise_exception,
                "strftime_now": lambda format: now().strftime(format[:MAX_STRFTIME_CHARS]),
            }
        )
        self.finalize = _finalize
        self.concatenate = _concatenate
        self.turn = _turn
        self.weigh = _weigh

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # hashing one may take for ever, and JSON has no such key
            return self.undefined(obj=obj, name=str(type(argument)))
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        template_cost.before_operator(_budget(context), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.step()
        method = isinstance(obj, types.BuiltinMethodType | types.MethodType)
        if method and isinstance(obj.__self__, str):
            args = template_cost.before_method(budget, obj.__self__, obj.__name__, args)
        elif method and isinstance(obj.__self__, list | tuple | dict):
            pay_comparison(budget, *args)  # as `index` and `get` do
        result = super().call(context, obj, *args, **kwargs)
        budget.charge(size(result))
        return result


class _Namespace(jinja2.utils.Namespace):
    """Variables that a loop may set; never a name that Python gives a meaning to."""

    def __init__(*args: Any, **kwargs: Any):
        attributes = dict(*args[1:], **kwargs)  # `self` may be one of them
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {str(name)[:60]!r}")


def _budget(context: Any) -> Budget:
    return context.parent[BUDGET]


@jinja2.pass_context
def _turn(context: Any, num_chars: int) -> bool:
    """Pay for the text that one turn of a loop, or one call of a macro, writes by itself."""
    _budget(context).charge(num_chars)  # the step was paid by calling this
    return True


@jinja2.pass_context
def _weigh(context: Any, value: Any) -> Any:
    """Pay for a value that is about to be compared or hashed."""
    pay_comparison(_budget(context), value)
    return value


@jinja2.pass_context
def _concatenate(context: Any, *parts: Any) -> str:
    for part in parts:
        pay_text(_budget(context), part)
    return "".join(map(str, parts))


@jinja2.pass_context
def _finalize(context: Any, value: Any) -> Any:
    """Pay for what is written, which may be into a variable."""
    pay_text(_budget(context), value)
    return value


def _paying_filter(name: str, plain: _Sandbox) -> Callable[..., Any]:
    @jinja2.pass_context
    def paying(context: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.step()
        value = template_cost.before_filter(budget, name, value, args, kwargs)
        result = plain.call_filter(name, value, args, kwargs, context=context)
        budget.charge(size(result))
        return result

    return paying


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does: nothing is escaped for HTML."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_INDENT):
        raise LimitReached(f"it indents JSON by something else than 0 to {MAX_INDENT}")
    if separators is not None and sum(map(len, separators)) > MAX_INDENT:
        raise LimitReached(f"it separates JSON by more than {MAX_INDENT} characters")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: Any) -> None:
    raise Refusal(str(message))
