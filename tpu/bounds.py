"""What a step cannot be faster than, whatever is done about one of its parts: the same step without it."""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

import zoo.models
from zoo.errors import unknown


@contextlib.contextmanager
def left_out(names: Sequence[str]) -> Iterator[None]:
    """Modules of `zoo.models`, named FILE.CLASS, give back what they get. Raises ZooError for names of none."""
    known: dict[str, Any] = modules() if names else {}
    with contextlib.ExitStack() as stack:
        for name in names:
            if name not in known:
                raise unknown("module", name, known)
            stack.callback(setattr, known[name], "__call__", known[name].__call__)
            known[name].__call__ = lambda self, x, *_, **__: x
        yield


def modules() -> dict[str, type[nnx.Module]]:
    """The classes that can be called, of every file of `zoo.models`."""
    found = {}
    for each in pkgutil.iter_modules(zoo.models.__path__):
        for name, value in vars(importlib.import_module(f"zoo.models.{each.name}")).items():
            own = isinstance(value, type) and value.__module__ == f"zoo.models.{each.name}"
            if own and issubclass(value, nnx.Module) and "__call__" in vars(value):
                found[f"{each.name}.{name}"] = value
    return found
