"""A JAX/Flax model zoo: every model in one readable file, trained by one engine.

`names`, `create`, `load`, `save`, `draw`, `describe`, `answer` and `edit` load what they need on first use: importing
this package is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.errors import ZooError
    from zoo.scenes import answer, describe, draw, edit
    from zoo.weights.files import load, save
    from zoo.weights.registry import create, names

_HOME = {
    "ZooError": "zoo.errors",
    "answer": "zoo.scenes",
    "create": "zoo.weights.registry",
    "describe": "zoo.scenes",
    "draw": "zoo.scenes",
    "edit": "zoo.scenes",
    "load": "zoo.weights.files",
    "names": "zoo.weights.registry",
    "save": "zoo.weights.files",
}

__all__ = ["ZooError", "answer", "create", "describe", "draw", "edit", "load", "names", "save"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
