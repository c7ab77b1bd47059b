"""The fields of a foreign config, read with their kinds, so that one error can list all that is wrong."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from zoo.errors import ZooError

MAX_JSON = 50_000_000  # bytes


class Fields:
    """Values by key. One that is missing or makes no sense is read as a 1, and noted in `problems`."""

    def __init__(self, fields: Mapping[str, Any], prefix: str = ""):
        self.fields, self.prefix = fields, prefix
        self.problems: list[str] = []

    def get(self, key: str) -> Any:
        """The value as it is; None if there is none."""
        return self.fields.get(self.prefix + key)

    def size(self, key: str, default: int | None = None, most: int = 2**31) -> int:
        """A natural number from 1 on."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is int and 1 <= value <= most:
            return value
        self._wrong(key, f"a number from 1 to {most:,}")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        self._wrong(key, "a positive number")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, "true or false")
        return value if isinstance(value, bool) else default

    def only(self, key: str, allowed: Collection[Any]) -> None:
        """Notes a value that is none of these; a missing one passes."""
        value = self.get(key)
        if value is not None and value not in allowed:
            names = " or ".join(map(str, allowed))
            self.problems.append(f"{self.prefix}{key} is {str(value)[:80]}; the decoder has {names} only")

    def check(self, what: str) -> None:
        """Raises ZooError if there was a problem."""
        if self.problems:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            raise ZooError(f"{what} does not describe a decoder of the zoo:{lines}")

    def _wrong(self, key: str, wanted: str) -> None:
        value = self.get(key)
        found = "missing" if value is None else repr(value)[:80]
        self.problems.append(f"{self.prefix}{key} is {found}; it must be {wanted}")


def read_json(path: epath.Path) -> dict[str, Any]:
    """The dict of a JSON file. Raises ZooError for anything else."""
    try:
        if path.stat().length > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON:,} bytes")
        content = json.loads(path.read_text())
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path} is not JSON, or is damaged ({error}); get it again") from error
    if not isinstance(content, dict):
        raise ZooError(f"{path} holds a {type(content).__name__}, not a dict; get it again")
    return content
