"""Declarative maps between the names of a weight file and the paths of a model, in both directions.

A map is a table of `Rule`s between the names of a source ("layer1.0.conv1.weight") and paths in a model
("params/stage1/0/conv1/kernel"). Reading is strict: every source name must be used, every path filled and every
shape equal, or one error lists all that is wrong. All of that is found out from shapes alone; only then are
numbers read, a bounded piece at a time.
"""

import functools
import math
import mmap
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from zoo.errors import ZooError
from zoo.models import functional
from zoo.models.functional import Tree

Shape = tuple[int, ...]
Index = tuple[slice, ...]
Read = Callable[[Index], np.ndarray]
Place = Callable[[str, Shape], Sharding]
"""(path of a parameter without "params/", its shape) -> where it lies."""

SLAB_BYTES = 2**22  # of a source that are in memory at a time
PIECE_BYTES = 2**24  # of a target that are on the host at a time, if a layer is not larger


@dataclass(frozen=True)
class Source:
    """A tensor that is not in memory."""

    shape: Shape
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]
    """The tensor. It is asked for as often as a part of it is wanted, so a view of a file is best."""


@dataclass(frozen=True)
class Transform:
    """How one source tensor becomes the arrays of a rule's targets, and back. Views are best, copies are allowed."""

    load: Callable[[np.ndarray, Sequence[Shape]], Sequence[np.ndarray]]
    """(source, shapes wanted) -> arrays; may raise ValueError for a source of another shape."""
    save: Callable[[Sequence[np.ndarray]], np.ndarray]
    """Its inverse."""


def transpose(*axes: int) -> Transform:
    """The target's axes are these of the source."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(lambda x, shapes: [x.transpose(axes)], lambda parts: parts[0].transpose(back))


def heads(axis: int, parts: int = 1, transposed: bool = False) -> Transform:
    """The source's axis holds (part, head, head size) in one; each target has one part, and the other two as axes.

    The axis is counted after the source, a matrix, is transposed if asked.
    """

    def load(x: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        x = x.T if transposed else x
        joined = [(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]) for shape in shapes]
        if x.ndim != len(joined[0]) or x.shape[axis] % parts:
            raise ValueError(f"wanted {parts} × {list(joined[0])} along axis {axis}")
        pieces = np.split(x, parts, axis)
        if [piece.shape for piece in pieces] != joined:
            raise ValueError(f"wanted {parts} × {list(joined[0])} along axis {axis}")
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def save(arrays: Sequence[np.ndarray]) -> np.ndarray:
        x = np.concatenate([x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]) for x in arrays], axis)
        return x.T if transposed else x

    return Transform(load, save)


def interleaved_heads() -> Transform:
    """[head · head size, d] of a rotary projection whose pairs are neighbours -> [d, head, head size] in halves.

    Row 2i + j of a head becomes row i + j · K/2: files of llama2.c and GGUF turn pairs (x[2i], x[2i + 1]), the
    zoo and Hugging Face (x[i], x[i + K/2]).
    """

    def load(x: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        d, h, k = shapes[0]
        if x.shape != (h * k, d):
            raise ValueError(f"wanted {[h * k, d]}")
        return [x.reshape(h, k // 2, 2, d).transpose(3, 0, 2, 1).reshape(d, h, k)]

    def save(arrays: Sequence[np.ndarray]) -> np.ndarray:
        d, h, k = arrays[0].shape
        return arrays[0].reshape(d, h, 2, k // 2).transpose(1, 3, 2, 0).reshape(h * k, d)

    return Transform(load, save)


SAME = Transform(lambda x, shapes: [x], lambda parts: parts[0])
DENSE = transpose(1, 0)  # [out, in] -> [in, out]
CONV = transpose(2, 3, 1, 0)  # OIHW -> HWIO


@dataclass(frozen=True)
class Rule:
    """One line of a map. In `source` and `targets`, {name} stands for a number.

    A source with {layer} and targets without it are the layers of a stack, on the target's first axis.
    """

    source: str
    targets: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def paths(self) -> tuple[str, ...]:
        """The target templates."""
        return (self.targets,) if isinstance(self.targets, str) else self.targets

    @property
    def stacked(self) -> bool:
        """Whether the source is one layer of its targets."""
        return "{layer}" in self.source and "{layer}" not in self.paths[0]


Rules = Sequence[Rule]


@dataclass(frozen=True)
class Part:
    """Where a target, or one layer of it, comes from: one of the arrays that a transform makes of a source."""

    source: str
    transform: Transform
    shapes: tuple[Shape, ...]
    part: int

    def view(self, sources: Mapping[str, Source]) -> np.ndarray:
        return self.transform.load(sources[self.source].read(), self.shapes)[self.part]


Plan = dict[str, dict[int | None, Part]]  # by path, and by layer if it is a stack


def plan(
    wanted: Mapping[str, Any],
    sources: Mapping[str, Source],
    rules: Rules,
    ignore: str = r"(?!)",
    dtypes: Collection[Any] | None = None,
) -> Plan:
    """What fills each path of `wanted` (arrays or shapes), from shapes alone.

    Names in which the regex `ignore` is found are passed over. Raises one ZooError that lists every name that no
    rule uses or whose dtype is not among `dtypes`, every path that is not filled or filled twice, and every shape
    that differs.
    """
    stacks = [_pattern(path) for rule in rules if rule.stacked for path in rule.paths]
    slots: dict[tuple[str, int | None], Shape] = {}  # what one source tensor fills
    for path, leaf in wanted.items():
        if any(stack.fullmatch(path) for stack in stacks):
            slots |= {(path, layer): tuple(leaf.shape[1:]) for layer in range(leaf.shape[0])}
        else:
            slots[path, None] = tuple(leaf.shape)

    found: Plan = {path: {} for path in wanted}
    problems = []
    for name, source in sources.items():
        if re.search(ignore, name):
            continue
        matches = ((rule, _match(rule.source, name)) for rule in rules)
        rule, fields = next(((rule, fields) for rule, fields in matches if fields is not None), (None, {}))
        if rule is None:
            problems.append(f"{name}: the model has nothing by this name")
            continue
        layer = int(fields["layer"]) if rule.stacked else None
        paths = [path.format(**fields) for path in rule.paths]
        if absent := [_slot_name(path, layer) for path in paths if (path, layer) not in slots]:
            problems.append(f"{name}: the model has no {', '.join(absent)}")
            continue
        if twice := [_slot_name(path, layer) for path in paths if layer in found[path]]:
            problems.append(f"{name}: {', '.join(twice)} is filled already")
            continue
        shapes = tuple(slots[path, layer] for path in paths)
        for part, path in enumerate(paths):
            found[path][layer] = Part(name, rule.transform, shapes, part)
        if dtypes is not None and source.dtype not in dtypes:
            names = ", ".join(np.dtype(dtype).name for dtype in dtypes)
            problems.append(f"{name}: is {source.dtype.name}, which is not one of {names}")
        try:
            results = _loaded_shapes(rule.transform, tuple(source.shape), shapes)
        except ValueError as error:
            problems.append(f"{name}: shape {list(source.shape)}, {error}")
            continue
        for path, shape, result in zip(paths, shapes, results, strict=True):
            if result != shape:
                problems.append(f"{name}: is {list(result)}, {_slot_name(path, layer)} is {list(shape)}")
    problems += [f"{_slot_name(path, layer)}: not filled" for path, layer in slots if layer not in found[path]]
    if problems:
        raise ZooError("the weights do not fit the model:\n" + "\n".join(f"  {problem}" for problem in problems))
    return found


def assign(tree: Tree, tensors: Mapping[str, np.ndarray], rules: Rules, ignore: str = r"(?!)") -> Tree:
    """A tree like `tree` (arrays or shapes) with the values of `tensors`, cast to its dtypes, as numpy arrays.

    Raises ZooError like `plan`.
    """
    wanted = functional.flatten(tree)
    sources = {name: Source(x.shape, x.dtype, functools.partial(np.asarray, x)) for name, x in tensors.items()}
    parts = plan(wanted, sources, rules, ignore)
    return functional.unflatten(
        {path: _read(parts[path], sources, leaf.dtype, leaf.shape, _whole(leaf.shape)) for path, leaf in wanted.items()}
    )


def place(
    parts: Plan, sources: Mapping[str, Source], shapes: Mapping[str, Any], where: Place | None = None
) -> dict[str, jax.Array]:
    """Device arrays of `shapes` (with dtypes, by path), filled by a plan; rows beyond those of a source are zero.

    An accelerator is filled through pieces of PIECE_BYTES or one layer; of an array whose first axis is divided,
    through the part of one device. Without `where` the arrays lie on the default device.
    """
    return {
        path: _fill(
            tuple(leaf.shape),
            leaf.dtype,
            None if where is None else where(path.removeprefix("params/"), tuple(leaf.shape)),
            functools.partial(_read, parts[path], sources, leaf.dtype, tuple(leaf.shape)),
        )
        for path, leaf in shapes.items()
    }


def export(tree: Tree, rules: Rules) -> dict[str, np.ndarray]:
    """The tensors of a tree under the names of the source: the inverse of `assign`.

    Raises ZooError that lists every path that no rule uses.
    """
    return {name: source.read() for name, source in exported(tree, rules).items()}


def exported(tree: Tree, rules: Rules) -> dict[str, Source]:
    """`export` of tensors that are brought to the host only when they are read."""
    leaves = functional.flatten(tree)
    tensors: dict[str, Source] = {}
    used: set[str] = set()

    def add(name: str, transform: Transform, parts: Sequence[Any], layer: int | None) -> None:
        shapes = [part.shape if layer is None else part.shape[1:] for part in parts]
        shape = transform.save([_shape_only(tuple(s)) for s in shapes]).shape

        def read() -> np.ndarray:
            return transform.save([np.asarray(part if layer is None else part[layer]) for part in parts])

        tensors[name] = Source(shape, np.dtype(parts[0].dtype), read)

    for rule in rules:
        for path in leaves:
            fields = _match(rule.paths[0], path)
            if fields is None or path in used:
                continue
            paths = [template.format(**fields) for template in rule.paths]
            used |= set(paths)
            parts = [leaves[p] for p in paths]
            for layer in range(parts[0].shape[0]) if rule.stacked else (None,):
                numbers = fields if layer is None else {"layer": str(layer), **fields}
                add(rule.source.format(**numbers), rule.transform, parts, layer)
    if unused := sorted(set(leaves) - used):
        raise ZooError(f"this format has no place for {', '.join(unused)}")
    return tensors


def _read(
    parts: Mapping[int | None, Part], sources: Mapping[str, Source], dtype: Any, shape: Shape, index: Index
) -> np.ndarray:
    """Those numbers of a target that `index` selects."""
    out = _aligned([len(range(*s.indices(size))) for s, size in zip(index, shape, strict=True)], dtype)
    if None in parts:
        _copy(out, lambda: parts[None].view(sources)[index])
    else:
        for row, layer in enumerate(range(*index[0].indices(shape[0]))):
            _copy(out[row, ...], lambda layer=layer: parts[layer].view(sources)[index[1:]])  # type: ignore[misc]
    return out


def _copy(out: np.ndarray, view: Callable[[], np.ndarray]) -> None:
    """out = view(), and zeros in the rows that it lacks.

    Of a mapped file, slabs that lie together there are read through views of their own: their pages leave memory
    with the view.
    """
    piece = view()
    if piece.ndim:
        out[len(piece) :] = 0
        out = out[: len(piece)]
    if piece.nbytes <= SLAB_BYTES or not _mapped(piece):
        out[...] = piece
        return
    shape, size, axis = piece.shape, piece.nbytes, int(np.argmax(np.abs(piece.strides)))
    del piece
    step = max(1, SLAB_BYTES * shape[axis] // size)
    for start in range(0, shape[axis], step):
        slab = (slice(None),) * axis + (slice(start, start + step),)
        out[slab] = view()[slab]


def _mapped(x: Any) -> bool:
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x, mmap.mmap)


def _fill(shape: Shape, dtype: Any, sharding: Sharding | None, read: Read) -> jax.Array:
    """The array whose numbers `read` gives, for any part of it."""
    row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    rows = max(1, PIECE_BYTES // max(1, row_bytes))
    if not shape or shape[0] <= rows or _platform(sharding) == "cpu":  # which takes the host's array as it is
        return _put(shape, sharding, read)
    if sharding is not None and sharding.shard_shape(shape)[0] != shape[0]:
        # To write rows across the devices would gather the whole on each: every one gets its own rows instead.
        parts = [
            jax.device_put(read(index), device).block_until_ready()
            for device, index in sharding.addressable_devices_indices_map(shape).items()
            if index is not None
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)
    update = jax.jit(
        lambda whole, rows, start: jax.lax.dynamic_update_slice_in_dim(whole, rows, start, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )
    whole = jnp.zeros(shape, dtype, device=sharding)
    for start in range(0, shape[0], rows):
        part_shape = (min(rows, shape[0] - start), *shape[1:])
        whole = update(whole, _put(part_shape, sharding, _shifted(read, start, part_shape[0])), np.int32(start))
        whole.block_until_ready()  # else the host runs ahead, and holds many pieces
    return whole


def _put(shape: Shape, sharding: Sharding | None, read: Read) -> jax.Array:
    if sharding is None:  # not bound to a device, as what jax.numpy makes
        return jax.device_put(read(_whole(shape)))
    parts: dict[str, np.ndarray] = {}  # devices that hold the same share one

    def part(index: Index | None) -> np.ndarray:
        assert index is not None  # jax asks for addressable devices only
        if str(index) not in parts:
            parts[str(index)] = read(index)
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


def _shifted(read: Read, start: int, rows: int) -> Read:
    """`read` for an array that begins at row `start`, and has so many."""
    return lambda index: read((slice(start, start + rows), *index[1:]))


def _platform(sharding: Sharding | None) -> str:
    if sharding is None:
        return jax.default_backend()
    device: Any = next(iter(sharding.device_set))
    return device.platform


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An empty array that a CPU device can take as it is, without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _whole(shape: Sequence[int]) -> Index:
    return (slice(None),) * len(shape)


@functools.lru_cache(maxsize=1024)
def _loaded_shapes(transform: Transform, shape: Shape, wanted: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shapes of what a transform makes of a source of this shape."""
    return tuple(x.shape for x in transform.load(_shape_only(shape), wanted))


def _shape_only(shape: Shape) -> np.ndarray:
    return np.broadcast_to(np.False_, shape)


def _slot_name(path: str, layer: int | None) -> str:
    return path if layer is None else f"{path} of layer {layer}"


@functools.lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"{(\w+)}", template)
    return re.compile("".join(rf"(?P<{p}>[0-9]{{1,9}})" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()
