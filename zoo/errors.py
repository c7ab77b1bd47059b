"""The one error for what a user can mend, and the suggestion of near names that goes with it."""

import difflib
from collections.abc import Iterable


class ZooError(ValueError):
    """A mistake outside the code. The message says what is wrong, where, and how to mend it.

    Scripts print it on one line and exit with code 2; library callers catch it as a `ValueError`.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> ZooError:
    """The error for a name that is not in a table, with the nearest names that are."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return ZooError(f"unknown {kind} {name!r}; {hint}")
