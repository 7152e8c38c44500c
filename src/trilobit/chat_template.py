"""Chat templates: the messages of a chat as one text.

A template is a program that came with a model file. It runs in jinja2's sandbox, which keeps it
away from Python, and on a budget, which keeps it from taking all time and memory: every turn of a
loop, every macro call, list and character of a new text is paid for. Only filters and text methods
that chat templates use exist; those that make a long text out of a number (`center`) do not.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from typing import Any

from .errors import RequestError

# The longest real chats are some 10^6 characters, written a few times over.
_BUDGET = 50_000_000
_SECONDS = 5.0
_LONGEST_TEMPLATE = 1_000_000

_FILTERS = frozenset(
    "abs capitalize count d default dictsort escape e first float int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr sort string "
    "sum title tojson trim unique upper".split()
)
_TEXT_METHODS = frozenset(
    "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join "
    "lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
    "rstrip split splitlines startswith strip swapcase title upper".split()
)
# Filters that look at a collection from outside; all others may read everything in it.
_SHALLOW = frozenset(
    "count d default dictsort first items last length list map max min reject rejectattr reverse "
    "select selectattr sort sum unique".split()
)


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """A chat as text, ending where the assistant's reply begins.

    Raises RequestError when the template refuses the messages, is damaged or exceeds its budget.
    """
    import jinja2

    if len(template) > _LONGEST_TEMPLATE:
        raise RequestError(f"the chat template has {len(template)} characters; it cannot be real")
    try:
        text: str = (
            _environment(_Budget())
            .from_string(template)
            .render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=bos_token,
                eos_token=eos_token,
                tools=None,
                documents=None,
            )
        )
    except RequestError:
        raise
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        raise _failed(error) from None
    except Exception as error:  # a template's own mistakes: 1 // 0, a missing key, a wrong type
        raise _failed(error) from None
    return text


def _failed(error: BaseException) -> RequestError:
    reason = str(error)[:200] or type(error).__name__
    return RequestError(f"the chat template failed: {reason}; use generate with a plain prompt")


class _Budget:
    """Work that a template may still do."""

    def __init__(self) -> None:
        self._left = _BUDGET
        self._deadline = time.monotonic() + _SECONDS

    def pay(self, work: int) -> None:
        """Raise RequestError when the work or the time is used up."""
        self._left -= work
        if self._left < 0 or time.monotonic() > self._deadline:
            raise RequestError("the chat template takes too much time or memory; it was stopped")

    def pay_for(self, value: Any) -> Any:
        """Pay for all that is in a collection, which may hold itself many times over."""
        if isinstance(value, (list, tuple, KeysView, ValuesView, ItemsView)):
            self.pay(1 + len(value))
            for item in value:
                self.pay_for(item)
        elif isinstance(value, dict):
            self.pay(1 + len(value))
            for key, item in value.items():
                self.pay_for((key, item))
        elif isinstance(value, str):
            self.pay(len(value))
        return value


def _environment(budget: _Budget) -> Any:
    """jinja2's sandbox with the budget in it, set up as transformers does."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Metered(NodeTransformer):
        """Puts a payment into loop and macro bodies, around `~` and around new collections."""

        def visit_For(self, node: nodes.For) -> nodes.Node:
            return self._with_tick(node)

        def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
            return self._with_tick(node)

        def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
            return self._with_tick(node)

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
            self.generic_visit(node)
            return _call("joined", node.nodes, node.lineno)

        def visit_List(self, node: nodes.List) -> nodes.Node:
            self.generic_visit(node)
            return _call("pay_for", [node], node.lineno)

        visit_Dict = visit_List

        def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
            self.generic_visit(node)
            return _call("pay_for", [node], node.lineno) if node.ctx == "load" else node

        def _with_tick(self, node: Any) -> nodes.Node:
            self.generic_visit(node)
            tick = nodes.ExprStmt(_call("tick", [], node.lineno), lineno=node.lineno)
            node.body.insert(0, tick)
            return node  # type: ignore[no-any-return]

    def _call(name: str, arguments: list[Any], line: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name, lineno=line)
        return nodes.Call(function, arguments, [], None, None, lineno=line)

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for training; here it is only text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
            tree: nodes.Template = Metered().visit(super()._parse(source, name, filename))
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sized = [value for value in (left, right) if hasattr(value, "__len__")]
            if operator == "**" or (operator == "*" and sized):
                raise SecurityError("powers and repetitions are not allowed")
            if operator == "%" and isinstance(left, str):
                if re.search(r"%(\(|[^%a-zA-Z]*[\d*])", left):
                    raise SecurityError("a field width or name is not allowed")
                budget.pay_for(right)
            if any(isinstance(v, int) and v.bit_length() > 256 for v in (left, right)):
                raise SecurityError("a number grew too large")
            budget.pay(1 + sum(len(value) for value in sized))
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> Any:
            return None  # `format` is not among the text methods

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, str) and attr not in _TEXT_METHODS:
                return False
            return super().is_safe_attribute(obj, attr, value)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            text = getattr(__obj, "__self__", None)
            if isinstance(text, str):
                budget.pay_for(args)
                # A text method joins its argument, a filter its value: count as the filter.
                swap = __obj.__name__ == "join" and args
                value, rest = (args[0], [text]) if swap else (text, args)
                budget.pay(_cost(__obj.__name__, value, rest))
            return super().call(__context, __obj, *args, **kwargs)

    class OpaqueNamespace(Namespace):
        """Shows nothing of what it holds: namespaces in namespaces could be endlessly long."""

        def __repr__(self) -> str:
            return "<Namespace>"

    def joined(*parts: Any) -> str:
        return concat([str(budget.pay_for(part)) for part in parts])

    def concat(parts: Iterable[str]) -> str:
        texts = list(parts)
        budget.pay(1 + sum(map(len, texts)))
        return "".join(texts)

    def bounded_range(*bounds: int) -> range:
        numbers = range(*bounds)
        budget.pay(len(numbers))
        return numbers

    environment: Any = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        cache_size=0,
        finalize=budget.pay_for,
    )
    # Instance attributes: found before the class's, never bound.
    environment.concat = concat
    environment.joined = joined
    environment.pay_for = budget.pay_for
    environment.tick = functools.partial(budget.pay, 100)  # a turn costs more than a character
    filters = {**environment.filters, "tojson": _to_json}
    environment.filters = {name: _paid(filters[name], name, budget) for name in _FILTERS}
    environment.globals = {
        "range": bounded_range,
        "dict": lambda *pairs, **named: budget.pay_for(dict(*pairs, **named)),
        "namespace": OpaqueNamespace,
        "raise_exception": lambda message: _refuse(budget.pay_for(message)),
        "strftime_now": lambda pattern: time.strftime(str(budget.pay_for(pattern))[:100]),
    }
    return environment


def _paid(function: Callable[..., Any], name: str, budget: _Budget) -> Callable[..., Any]:
    """A filter that pays for its input, and first for what it would make out of it."""
    # jinja2 marks filters that want the context or environment as their first argument.
    skip = 1 if getattr(function, "jinja_pass_arg", None) else 0

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        value, rest = args[skip], args[skip + 1 :]
        if name not in _SHALLOW:
            value = budget.pay_for(list(value) if hasattr(value, "__next__") else value)
        budget.pay(_cost(name, value, [*rest, *kwargs.values()]))
        return function(*args[:skip], value, *rest, **kwargs)

    return paid


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: jinja2's own would write HTML escapes."""
    if indent is not None and not 0 <= int(indent) <= 8:
        raise RequestError(f"the chat template failed: tojson: indent is {indent}")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _cost(name: str, value: Any, arguments: Sequence[Any]) -> int:
    """Characters that a text method or filter reads or writes."""
    size = len(value) if hasattr(value, "__len__") else 1
    if name == "replace" and len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        return 1 + size + str(value).count(old) * len(new)
    if name == "join" and arguments:
        return 1 + size * len(str(arguments[0]))
    return 1 + size


def _refuse(message: str) -> str:
    raise RequestError(f"the chat template refused the messages: {str(message)[:200]}")
