"""Chat templates: the Jinja2 text that comes with a tokenizer and says how messages become one text.

Templates are programs of strangers. They run in Jinja's sandbox, on plain data, with bounds on the template's length,
the steps and the time it takes, and the length of what it makes.
"""

import contextvars
import datetime
import functools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from zoo.errors import ZooError

Message = dict[str, Any]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""OpenAI's ChatML, as Qwen's and SmolLM's tokenizers write it, without a system message of its own."""

TURNS = (
    "{% set mark = {'system': '\x01', 'user': '\x02', 'assistant': '\x03'} %}{% for message in messages %}"
    "{{ mark[message['role']] + message['content'] + '\x04' }}{% endfor %}{% if add_generation_prompt %}\x03{% endif %}"
)
"""One control character opens a turn and one ends it: for codecs whose tokens are characters or bytes."""

MARKS = {CHATML: ("<|im_start|>", "<|im_end|>"), TURNS: ("\x01", "\x02", "\x03", "\x04")}
"""What messages must not hold where a template's marks are ordinary text to the codec."""

MOST_TEMPLATE = 2**17  # characters; published ones have up to 2**14
MOST_STEPS = 200_000  # turns of loops, calls, and numbers of ranges
MOST_SECONDS = 10.0
MOST_TEXT = 2**22  # characters of any text that a template makes

_spent: contextvars.ContextVar["_Budget"] = contextvars.ContextVar("spent")


def render(
    messages: Sequence[Message],
    template: str = CHATML,
    add_generation_prompt: bool = False,
    names: Mapping[str, Any] | None = None,
    now: datetime.datetime | None = None,
) -> str:
    """The text of messages, as Hugging Face's `apply_chat_template(tokenize=False)` gives it.

    `names` are what else the template may read: bos_token, eos_token, tools, documents, enable_thinking ... . `now`
    is the time that templates with a date show (the clock's by default). Raises ZooError for a template that is
    malformed, refuses the messages (its own words are given), or goes beyond its bounds.
    """
    import jinja2

    given = {"messages": list(messages), "tools": None, "documents": None} | dict(names or {})
    try:
        plain = json.loads(json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise ZooError(f"messages must be made of text, numbers, lists and dicts only ({error})") from None
    token = _spent.set(_Budget(now or datetime.datetime.now()))
    try:
        pieces, length = [], 0
        for piece in _compiled(template).generate(**plain, add_generation_prompt=add_generation_prompt):
            pieces.append(piece)
            length += len(piece)
            _bounded_length(length)
        return "".join(pieces)
    except ZooError:
        raise
    except jinja2.TemplateError as error:
        raise ZooError(f"the chat template cannot render these messages: {error}") from None
    except Exception as error:  # a template can raise whatever Python's operators can
        raise ZooError(f"the chat template fails on these messages ({type(error).__name__}: {error})") from None
    finally:
        _spent.reset(token)


class _Budget:
    """What one rendering may use."""

    def __init__(self, now: datetime.datetime):
        self.now = now
        self.left = MOST_STEPS
        self.deadline = time.monotonic() + MOST_SECONDS

    def take(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise ZooError(f"the chat template takes more than {MOST_STEPS:,} steps; use another template")
        if time.monotonic() > self.deadline:
            raise ZooError(f"the chat template takes more than {MOST_SECONDS:g} s; use another template")


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    import jinja2

    if len(template) > MOST_TEMPLATE:
        raise ZooError(f"a chat template of {len(template):,} characters; {MOST_TEMPLATE:,} at most can be")
    try:
        return _environment().from_string(template)
    except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
        raise ZooError(f"the chat template is malformed: {error}") from None


@functools.cache
def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} around what the assistant writes: it marks, and changes nothing."""

        tags = {"generation"}  # noqa: RUF012  (Jinja reads it from the class)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "+", "%"))

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            """Puts a counter into every loop, and a bound on all that is stored or joined."""
            tree = super()._parse(source, name, filename)

            def wrap(node: Any, by: str) -> Any:
                return nodes.Filter(node, by, [], [], None, None, lineno=tree.lineno, environment=self)

            for loop in tree.find_all(nodes.For):
                loop.iter = wrap(loop.iter, "counted_")
            for kind in (nodes.Assign, nodes.Keyword):
                for node in tree.find_all(kind):
                    attribute = "node" if kind is nodes.Assign else "value"
                    setattr(node, attribute, wrap(getattr(node, attribute), "bounded_"))
            for scope in tree.find_all(nodes.With):
                scope.values = [wrap(value, "bounded_") for value in scope.values]
            for block in tree.find_all(nodes.AssignBlock):
                block.filter = wrap(block.filter, "bounded_")
            for concat in tree.find_all(nodes.Concat):
                concat.nodes = [wrap(nodes.List(concat.nodes, lineno=tree.lineno, environment=self), "joined_")]
            return tree

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            _spent.get().take()
            owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # Jinja wraps str.format
            if isinstance(owner, str):  # methods such as center, replace and join can make much of little
                _bounded_length(len(owner) * max([1, *map(_growth, args), *map(_growth, kwargs.values())]) >> 4)
                _bounded_length(max([0, *(abs(x) for x in args if isinstance(x, int))]))
                if getattr(obj, "__name__", "") in ("format", "format_map"):
                    _bounded_format(owner)
            return _bounded(super().call(context, obj, *args, **kwargs))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                raise ZooError("the chat template computes a power, which none needs; use another template")
            if operator == "*":
                for many, times in ((left, right), (right, left)):
                    if isinstance(many, str | list | tuple) and isinstance(times, int):
                        _bounded_length(len(many) * times)
            if operator == "%" and isinstance(left, str):
                _bounded_format(left)
            return _bounded(super().call_binop(context, operator, left, right))

    def refuse(message: str) -> None:
        raise TemplateError(message)

    class Names(Namespace):
        """`namespace(...)` without names that begin with an underscore, which could reach into Python."""

        def __init__(*args: Any, **kwargs: Any):
            self, *rest = args
            Namespace.__init__(self, *rest, **kwargs)
            for name in dict(*rest, **kwargs):
                _refuse_underscore(name)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_underscore(name)
            super().__setitem__(name, value)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    for name in ("center", "format", "wordwrap", "random", "xmlattr", "urlize", "batch", "slice"):
        del environment.filters[name]  # no chat needs them, and they can be made to take all memory
    replace, indent, join = (environment.filters[name] for name in ("replace", "indent", "join"))
    environment.filters |= {
        "tojson": _to_json,
        "counted_": _counted,
        "bounded_": _bounded,
        "joined_": _joined,
        "replace": _like(replace, lambda s, old="", new="", *_: len(str(s)) * len(str(new)) >> 4),
        "indent": _like(indent, lambda s, width=4, *_, **__: len(s) * _growth(width) >> 4),
        "join": _like(
            join, lambda value, d="", *_, **__: len(str(d)) * (len(value) if hasattr(value, "__len__") else 1)
        ),
    }
    del environment.globals["lipsum"]
    environment.globals |= {
        "range": _range,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": Names,
        "raise_exception": refuse,
        "strftime_now": lambda form: _spent.get().now.strftime(form[:100]),
    }
    return environment


def _like(filter_: Any, length: Any) -> Any:
    """A filter of Jinja with a bound on the length of its result, that `length` estimates from the arguments."""
    passes = [name for name in ("jinja_pass_arg",) if hasattr(filter_, name)]

    @functools.wraps(filter_)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _bounded_length(length(*args[len(passes) :], **kwargs))
        return _bounded(filter_(*args, **kwargs))

    return bounded


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As Hugging Face's: plain JSON, without the escapes that HTML needs."""
    _bounded_length(_growth(indent) if indent is not None else 0)
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, **options)


def _range(*args: int) -> range:
    numbers = range(*args)
    _spent.get().take(len(numbers))
    return numbers


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spent.get().take()
        yield value


def _joined(values: Iterable[Any]) -> str:
    texts, length = [], 0
    for value in values:
        texts.append(str(value))
        length += len(texts[-1])
        _bounded_length(length)
    return "".join(texts)


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict):
        _bounded_length(len(value))
    return value


def _bounded_length(length: int) -> None:
    if length > MOST_TEXT:
        raise ZooError(f"the chat template makes more than {MOST_TEXT:,} characters; use another template")


def _bounded_format(form: str) -> None:
    if re.search(r"\d{4}|\*|\{[^}]*\{", form):
        raise ZooError("the chat template formats text to a great width; use another template")


def _growth(value: Any) -> int:
    return abs(value) if isinstance(value, int) else len(value) if isinstance(value, str | list | tuple) else 1


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ZooError(f"the chat template stores {name!r}; names with an underscore first are not for templates")
