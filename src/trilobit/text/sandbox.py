"""jinja2 for templates that nobody has read: away from Python, and on a budget.

A budget keeps a template from taking all time and memory: every turn of a loop, every item of a
collection and every character of a new text is paid for, before it is made where it could be
large. Only filters and methods that chat templates use exist; those that make a long text out of a
number (`center`, `to_bytes`) do not.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from trilobit.errors import RequestError

# In characters. The longest real chats are some 10^6, written a few times over.
_BUDGET = 50_000_000
_SECONDS = 5.0
_ITEM = 50  # an item of a collection, in characters: its object and its place
_TURN = 100  # a turn of a loop takes more time than a character
_LONGEST_NUMBER = 400  # digits of the largest float
_NUMBER_BITS = 256
_LONGEST_DATE = 200  # characters of its form

_FILTERS = frozenset(
    "abs capitalize count d default dictsort escape e first float int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr sort string "
    "sum title tojson trim unique upper".split()
)
# Filters that only look at a collection, and those that pass its items on. All others may read or
# copy everything in it.
_LOOKING = frozenset("count d default first last length".split())
_PASSING = frozenset("items list map reject rejectattr select selectattr".split())
# Those that take even a text apart into items.
_WALKING = _PASSING | {"max", "min", "sort", "sum", "unique"}
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join "
        "lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
        "rstrip split splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
_PLAIN = (str, int, float, type(None), list, tuple, dict, Undefined)
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class Budget:
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
        if isinstance(value, str):
            self.pay(len(value))
        elif isinstance(value, dict):
            self.pay(_size(value))
            self._pay_for_items(itertools.chain(value.keys(), value.values()))
        elif isinstance(value, (list, tuple, KeysView, ValuesView, ItemsView)):
            self.pay(_size(value))
            self._pay_for_items(value)
        return value

    def _pay_for_items(self, items: Iterable[Any]) -> None:
        for item in items:
            # Others (a namespace, a loop) have attributes that are paid for nowhere.
            if not isinstance(item, _PLAIN):
                raise SecurityError(f"a {type(item).__name__} in a collection is not allowed")
            self.pay_for(item)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, paid for one by one as they come."""
        for item in items:
            self.pay(_ITEM)
            yield item


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, set up as transformers does, with a budget of its own: for one rendering.

    What a template does wrong is an exception of jinja2 or Python, what it takes too much of a
    RequestError.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        self._budget = Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            cache_size=0,
            finalize=self.pay_for,
        )
        self.filters = {name: self._paid(name, self.filters[name]) for name in _FILTERS}
        self.filters |= {"join": self._join, "replace": self._replace, "tojson": self._to_json}
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._paid_test(test) for name, test in tests.items()}
        self.globals = {
            "range": self._range,
            "dict": lambda *pairs, **named: self.pay_for(dict(*pairs, **named)),
            "namespace": _OpaqueNamespace,
            "raise_exception": lambda message: _refuse(self.pay_for(message)),
            "strftime_now": self._now,
        }

    # ---- what compiled templates call: jinja2 itself, or where `_Metered` put it -----------------

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of an output."""
        texts = list(parts)
        self._budget.pay(1 + sum(map(len, texts)))
        return "".join(texts)

    def joined(self, *parts: Any) -> str:
        """`a ~ b`."""
        return self.concat([str(self.pay_for(part)) for part in parts])

    def pay_for(self, value: Any) -> Any:
        """Pay for a new collection or what is put out."""
        return self._budget.pay_for(value)

    def turned(self, value: Any = None) -> Any:
        """Pay for a turn of a loop, or a call of a macro."""
        self._budget.pay(_TURN)
        return value

    def sliced(self, value: Any, *bounds: Any) -> Any:
        """`value[a:b:c]`."""
        part = slice(*bounds)
        count = len(range(*part.indices(len(value))))
        self._budget.pay(count if isinstance(value, str) else _ITEM * count)
        return value[part]

    # ---- jinja2's hooks -------------------------------------------------------------------------

    def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
        tree: nodes.Template = _Metered().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators whose results may be large."""
        sized = [value for value in (left, right) if hasattr(value, "__len__")]
        if operator == "**" or (operator == "*" and sized):
            raise SecurityError("powers and repetitions are not allowed")
        if operator == "%" and isinstance(left, str):
            if re.search(r"%(\(|[^%a-zA-Z]*[\d*])", left):
                raise SecurityError("a field width or name is not allowed")
            self.pay_for(right)
        if any(isinstance(v, int) and v.bit_length() > _NUMBER_BITS for v in (left, right)):
            raise SecurityError("a number grew too large")
        self._budget.pay(1 + sum(map(_size, sized)))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        """`format` is not among the methods."""
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only what is listed, of plain data, and what jinja2's own objects show."""
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        shown = isinstance(obj, (LoopContext, Macro, Namespace))
        return shown and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls; methods of texts are paid for like filters."""
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            if __obj.__name__ == "join" and len(args) == 1:
                return __self._join(args[0], text)
            if __obj.__name__ == "replace":
                return __self._replace(text, *args)
            __self.pay_for(args)
            __self._budget.pay(_cost(__obj.__name__, text, args))
        return super().call(__context, __obj, *args, **kwargs)

    # ---- filters, tests, functions --------------------------------------------------------------

    def _join(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        texts = [str(self.pay_for(item)) for item in self._budget.counted(value)]
        separator = str(self.pay_for(d))
        self._budget.pay(len(separator) * len(texts) + sum(map(len, texts)))
        return separator.join(texts)

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = (str(self.pay_for(part)) for part in (value, old, new))
        self._budget.pay(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: jinja2's own would write HTML escapes."""
        width = len(indent) if isinstance(indent, str) else indent or 0
        if not 0 <= width <= 8 or any(len(text) > 8 for text in separators or ()):
            raise SecurityError("an indent or separators so long are not allowed")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return self.concat(self._budget.counted(encoder.iterencode(value)))

    def _now(self, form: Any) -> str:
        form = str(self.pay_for(form))
        # Two characters may ask for a whole date, and a width for any number of them.
        if len(form) > _LONGEST_DATE or re.search(r"%[^a-zA-Z%]*\d", form):
            raise SecurityError("a form of the date so long, or with a width, is not allowed")
        return str(self.pay_for(datetime.datetime.now().strftime(form)))

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._budget.pay(_ITEM * len(numbers))
        return numbers

    def _paid(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays for its input, and first for what it would make out of it."""
        # jinja2 marks filters that want the context or environment as their first argument.
        skip = 1 if getattr(function, "jinja_pass_arg", None) else 0
        deep = name not in _LOOKING | _PASSING

        @functools.wraps(function)
        def filter_(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[skip], [*args[skip + 1 :], *kwargs.values()]
            if hasattr(value, "__next__"):
                value = self._budget.counted(value)
                value = list(value) if deep else value
            elif name in _WALKING and hasattr(value, "__len__"):
                self._budget.pay(_ITEM * len(value))
            if deep:
                self.pay_for(value)
                self.pay_for(rest)
                _check_arguments(name, value, rest)
                self._budget.pay(_cost(name, value, rest))
            return function(*args[:skip], value, *args[skip + 1 :], **kwargs)

        return filter_

    def _paid_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def test(*args: Any) -> Any:
            self._budget.pay(_ITEM)
            return function(*args)

        return test


class _Metered(NodeTransformer):
    """Puts payments into loops and macros, and around what copies or collects."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is not None:
            node.test = _call("turned", [node.test], node.lineno)
        return self.visit_Macro(node)

    def visit_Macro(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        turn = nodes.ExprStmt(_call("turned", [], node.lineno), lineno=node.lineno)
        node.body.insert(0, turn)
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def visit_List(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return _call("pay_for", [node], node.lineno)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        arguments = [bound or nodes.Const(None) for bound in bounds]
        return _call("sliced", [node.node, *arguments], node.lineno)

    def visit_Call(self, node: Any) -> nodes.Node:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise SecurityError("arguments with stars are not allowed")
        return self.generic_visit(node)

    visit_Filter = visit_Test = visit_Call


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _OpaqueNamespace(Namespace):
    """Shows nothing of what it holds: namespaces in namespaces could be endlessly long."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _call(name: str, arguments: list[Any], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


def _size(value: Any) -> int:
    """What a text or collection costs, from outside."""
    if isinstance(value, str):
        return len(value)
    return _ITEM * len(value) if hasattr(value, "__len__") else 1


def _cost(name: str, text: Any, arguments: Sequence[Any]) -> int:
    """What a text method or filter reads and writes."""
    parts: int = 0
    if name == "splitlines":
        parts = sum(text.count(end) for end in _LINE_ENDS)
    elif name in ("split", "rsplit"):
        parts = text.count(arguments[0]) if arguments and arguments[0] else len(text) // 2
    return 1 + _size(text) + _ITEM * parts


def _check_arguments(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Refuse numbers that name or make huge ones."""
    if name == "sum" and any(isinstance(start, (list, tuple)) for start in arguments):
        raise SecurityError("only numbers are summed")  # lists would be copied at every step
    if name == "round" and any(isinstance(n, int) and abs(n) > 20 for n in arguments):
        raise SecurityError("so many digits are not allowed")
    if name in ("float", "int") and _size(value) > _LONGEST_NUMBER:
        raise SecurityError("a number grew too large")


def _refuse(message: Any) -> str:
    reason = " ".join(str(message)[:200].split())
    raise RequestError(f"the chat template refused the messages: {reason}")
