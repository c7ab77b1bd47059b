"""How a collective travels: which chips take part, over how many links at once, and what each of them sends.

By "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter 3: a ring is travelled both ways, an axis of the
topology that does not close to one only once, and the axes that a collective spans all at the same time.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from tpu.chips import Chip

Place = Sequence[int]
RING = 2  # links of a closed axis


def members(attributes: str) -> list[int]:
    """The devices of a collective's first group, by their numbers in the program; none where it does not say."""
    number = lambda text: [int(i) for i in text.split(",")]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        order = re.search(r"device_ids=\((.*)\)", named[2])
        ids = _listed(order[1] if order else f"[{math.prod(sizes.values())}]").reshape(tuple(sizes.values()))
        taken = re.findall(r"'(\w+)'", named[3])
        return ids[tuple(slice(None) if axis in taken else 0 for axis in sizes)].ravel().tolist()
    groups = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if groups:
        return _listed(groups[2]).reshape(number(groups[1]))[0].tolist()
    written = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return number(written[1]) if written else []


def _listed(text: str) -> np.ndarray:
    """Numbers from 0 on of a shape such as [4,2], perhaps with its axes in another order: [4,2]T(1,0)."""
    shape, _, order = text.partition("T")
    sizes = [int(i) for i in shape.strip("[]").split(",")]
    found = np.arange(math.prod(sizes)).reshape(sizes)
    return found.transpose([int(i) for i in order.strip("()").split(",")]) if order else found


def links(group: Sequence[int], places: Sequence[Place], chip: Chip) -> int:
    """Links that each chip of a group sends over at once; `places` are all devices' coordinates, as the program numbers
    them. Those of one closed axis where they are not known."""
    if not places or len(group) < 2:
        return RING
    sizes = np.max(places, axis=0) + 1
    spanned = [len(set(axis)) for axis in zip(*(places[i] for i in group), strict=True)]
    closed = (sizes % chip.ring == 0) & (not chip.cube or all(size % chip.ring == 0 for size in sizes))
    ways = [RING if whole and n == size else 1 for n, size, whole in zip(spanned, sizes, closed, strict=True) if n > 1]
    return sum(ways) or RING


def sent(kind: str, size: int, n: int) -> int:
    """Bytes that each of n devices sends in a collective whose result has `size` bytes, by the ring algorithm."""
    if kind == "all-reduce":
        return 2 * size * (n - 1) // n
    if kind == "reduce-scatter":
        return size * (n - 1)
    if kind == "collective-permute":
        return size
    return size * (n - 1) // n
