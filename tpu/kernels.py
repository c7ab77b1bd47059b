"""What the Pallas kernels of a step do, counted from its jaxpr: the compiler tells nothing of them.

A `pallas_call` holds the jaxpr of one program of its grid. What a program does may hang on its place in the grid and on
tables that are prefetched, such as those by which splash attention skips masked blocks: where the tables are constants
of the step, every branch on them is decided here, for all programs of the grid at once. So the products of a block
count as often as the block is visited, masked entries of a visited block included, and a block of an operand is moved
as often as its index changes from one program to the next. What cannot be decided counts as its dearest.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.extend import core

from zoo.train.flops import as_product, equation_flops

LANES = 128  # rows and columns of a matrix unit that a product fills, or leaves idle
REACHED = 0.7  # part of the peak that products of full width reach in a kernel
MOST = 2**20  # elements of a table that is still followed

Value = Any  # a numpy array, or None where it is not known


@dataclass(frozen=True)
class Kernel:
    """One Pallas kernel of a step, on one device."""

    name: str
    results: tuple[tuple[int, ...], ...]
    """Shapes of what it returns."""
    flops: int
    """Of the products of all blocks that it visits, two for each multiply-add."""
    needed: float
    """Of those, what the model needs; see `needed_flops`."""
    work: float
    """`flops`, those of a product divided by min(1, its smallest dimension / 128)."""
    bytes: int
    """Moved between HBM and the core: blocks of the operands and results, as often as they change."""

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The longer of its products at a part of the peak (FLOP/s) and its bytes at the bandwidth (bytes/s)."""
        return max(self.work / (REACHED * peak), self.bytes / bandwidth)


@dataclass(frozen=True)
class Tally:
    """What a step does, over all devices."""

    flops: float = 0.0
    """Of its products, convolutions and kernels, two for each multiply-add."""
    needed: float = 0.0
    """The same without what is a product only for speed, and of kernels what the model needs."""
    kernels: tuple[Kernel, ...] = ()
    """The Pallas kernels in it, one after the other."""

    def plus(self, other: "Tally", times: int = 1) -> "Tally":
        flops, needed = self.flops + times * other.flops, self.needed + times * other.needed
        return Tally(flops, needed, self.kernels + other.kernels)


class Known:
    """The values of a jaxpr that follow from constants, found when they are asked for.

    `programs` are the coordinates of all programs of a grid, one array for each of its axes: inside of a kernel every
    scalar is an array over the programs, and a reference to a prefetched table is the table.
    """

    def __init__(self, jaxpr: Any, inputs: Sequence[Callable[[], Value]], programs: Sequence[np.ndarray] | None = None):
        closed, jaxpr = jaxpr, getattr(jaxpr, "jaxpr", jaxpr)
        self.programs = programs
        self.given = dict(zip(jaxpr.invars, inputs, strict=True))
        consts = getattr(closed, "consts", ())
        self.given |= {var: functools.partial(np.asarray, x) for var, x in zip(jaxpr.constvars, consts, strict=False)}
        self.makers = {var: (equation, i) for equation in jaxpr.eqns for i, var in enumerate(equation.outvars)}
        self.found: dict[Any, Value] = {}

    def value(self, atom: Any) -> Value:
        """The value of a variable or literal, or None."""
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val)
        if atom not in self.found:
            self.found[atom] = None if too_large(atom) else self.find(atom)
        return self.found[atom]

    def find(self, var: Any) -> Value:
        if var in self.given:
            value = self.given[var]()
            return value if value is None or self.programs or value.shape == var.aval.shape else None
        if var not in self.makers:
            return None
        equation, i = self.makers[var]
        name = equation.primitive.name
        if self.programs and name == "program_id":
            return self.programs[equation.params["axis"]]
        if self.programs and name == "get":
            return self.looked_up(equation)
        if equation.effects or (self.programs and var.aval.shape):
            return None
        (inner, *others) = [*subjaxprs(equation), None]
        if inner is not None and name not in ("scan", "while", "cond") and not any(others):
            return self.within(inner, equation.invars).value(getattr(inner, "jaxpr", inner).outvars[i])
        values = [self.value(x) for x in equation.invars]
        if inner is not None or any(value is None for value in values):
            return None
        bind = functools.partial(equation.primitive.bind, **equation.params)
        axes = [0 if value.shape and self.programs else None for value in values]
        results = jax.vmap(bind, in_axes=axes)(*values) if 0 in axes else bind(*values)
        return np.asarray(results[i] if equation.primitive.multiple_results else results)

    def looked_up(self, equation: Any) -> Value:
        """An entry of a prefetched table for each program, where its indices are known."""
        table, *rest = equation.invars
        transforms = jax.tree.unflatten(equation.params["tree"], rest)
        values = self.value(table)
        if values is None or len(transforms) != 1 or equation.outvars[0].aval.shape:
            return None
        indices = [index if isinstance(index, int) else self.value(index) for index in transforms[0].indices]
        return None if any(index is None for index in indices) else values[tuple(indices)]

    def within(self, inner: Any, atoms: Sequence[Any]) -> "Known":
        """The values of a jaxpr that an equation holds, called with these atoms; unknown where they do not fit."""
        wanted = len(getattr(inner, "jaxpr", inner).invars)
        inputs = [functools.partial(self.value, atom) for atom in atoms] if len(atoms) == wanted else [nothing] * wanted
        return Known(inner, inputs, self.programs)

    def loop(self, equation: Any) -> "Known":
        """The values in the body of a scan that are the same in every round."""
        inner, count = equation.params["jaxpr"], equation.params["num_consts"]
        fixed = [functools.partial(self.value, atom) for atom in equation.invars[:count]]
        return Known(inner, [*fixed, *[nothing] * (len(inner.jaxpr.invars) - count)], self.programs)


def nothing() -> Value:
    return None


def too_large(atom: Any) -> bool:
    """Whether a value is not one to follow: no plain numbers, or too many."""
    dtype = getattr(atom.aval, "dtype", None)
    plain = dtype is not None and (np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.bool_))
    return not plain or math.prod(atom.aval.shape) > MOST


def subjaxprs(equation: Any) -> list[Any]:
    """The jaxprs that an equation holds."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [leaf for leaf in leaves if is_jaxpr(leaf)]


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def tally(closed: Any) -> Tally:
    """Counts a closed jaxpr, loops and conditionals as `count_flops` does, a `shard_map` on all of its devices."""
    return tally_of(closed, Known(closed, [nothing] * len(closed.jaxpr.invars)))


def tally_of(jaxpr: Any, known: Known) -> Tally:
    found, jaxpr = Tally(), getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        part = tally_one(equation, known)
        found = found.plus(replace(part, needed=0.0) if as_product(equation) else part)
    return found


def tally_one(equation: Any, known: Known) -> Tally:
    """An equation with all that it holds."""
    name, params = equation.primitive.name, equation.params
    if name == "pallas_call":
        kernel = measure(equation, known)
        return Tally(kernel.flops, kernel.needed, (kernel,))
    if name == "scan":
        return Tally().plus(tally_of(params["jaxpr"], known.loop(equation)), params["length"])
    if name == "cond":
        branches = [tally_of(branch, known.within(branch, equation.invars[1:])) for branch in params["branches"]]
        return max(branches, key=lambda branch: branch.flops)
    if inner := subjaxprs(equation):
        shards = math.prod(params["mesh"].shape[axis] for axis in manual(params)) if name == "shard_map" else 1
        found = Tally()
        for part in inner:
            found = found.plus(tally_of(part, known.within(part, equation.invars)), shards)
        return found
    flops = equation_flops(equation)
    return Tally(flops, flops)


def manual(params: Any) -> Any:
    """The mesh axes over which a `shard_map` splits: inside of it shapes are those of one part."""
    return params.get("newly_manual_axes", params.get("manual_axes", params["mesh"].axis_names))  # by the jax version


def measure(equation: Any, known: Known) -> Kernel:
    """Counts one `pallas_call`, its operands known as far as `known` says; sizes of its grid that are not are 1."""
    params, grid_mapping = equation.params, equation.params["grid_mapping"]
    grid = tuple(size if isinstance(size, int) else 1 for size in grid_mapping.grid)
    places = [axis.reshape(-1) for axis in np.indices(grid)]
    own = [place for i, place in enumerate(places) if i not in grid_mapping.vmapped_dims]
    first = grid_mapping.num_dynamic_grid_bounds
    last = first + grid_mapping.num_index_operands
    tables, operands = equation.invars[first:last], [*equation.invars[last:], *equation.outvars]

    prefetched: list[Callable[[], Value]] = [functools.partial(known.value, table) for table in tables]
    jaxpr, programs = params["jaxpr"], math.prod(grid)
    inputs: list[Callable[[], Value]] = [*prefetched, *[nothing] * (len(jaxpr.invars) - len(prefetched))]
    flops, work = products(jaxpr, Known(jaxpr, inputs, own), np.ones(programs, np.int64))

    moved = 0
    for block, operand in zip(grid_mapping.block_mappings, operands, strict=True):
        index_map = block.index_map_jaxpr
        indices = Known(index_map, [*(functools.partial(np.asarray, place) for place in places), *prefetched], places)
        values = [indices.value(atom) for atom in index_map.jaxpr.outvars]
        size = math.prod(getattr(n, "block_size", n if isinstance(n, int) else 1) for n in block.block_shape)
        moved += changes(values, programs) * size * operand.aval.dtype.itemsize
    name = params.get("name") or jaxpr.debug_info.func_name
    shapes = tuple(var.aval.shape for var in equation.outvars)
    needed = needed_flops(name, flops, [known.value(table) for table in tables])
    return Kernel(name, shapes, flops, needed, work, moved)


def needed_flops(name: str, flops: int, tables: Sequence[Value]) -> float:
    """FLOPs of a kernel without masked entries and without what it computes again; all of them for an unknown kernel.

    Of splash attention: its second table marks blocks as masked (0), masked in part (1) or not (2), and those in part
    count half, which is exact for a causal mask. A gradient needs twice the products of the forward kernel, which is
    named for the residuals that it keeps: they count there, and its backward kernels, which compute scores again, not.
    """
    if not name.startswith("splash_") or len(tables) < 2 or tables[1] is None:
        return flops
    if "_fwd_" not in name:
        return 0.0
    part, full = int(np.count_nonzero(tables[1] == 1)), int(np.count_nonzero(tables[1] == 2))
    return flops * (full + part / 2) / (full + part) * (1 if name.endswith("_no_residuals") else 3)


def changes(values: Sequence[Value], programs: int) -> int:
    """How often a block is fetched, for its indices in all programs in order: where one of them changes."""
    if any(value is None for value in values):
        return programs
    if not values:
        return 1
    indices = np.stack([np.broadcast_to(value, (programs,)) for value in values])
    return 1 + int(np.count_nonzero((indices[:, 1:] != indices[:, :-1]).any(axis=0)))


def products(jaxpr: Any, known: Known, runs: np.ndarray) -> tuple[int, float]:
    """(FLOPs, the same with narrow products weighted) of a kernel that each program of its grid runs so often."""
    flops, work = 0, 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            more, least = dot(equation)
            parts = [(int(runs.sum()) * more, int(runs.sum()) * more / min(1, least / LANES))]
        elif name == "cond":
            chosen, atoms = known.value(equation.invars[0]), equation.invars[1:]
            branches = [(branch, known.within(branch, atoms)) for branch in params["branches"]]
            if chosen is None:
                parts = [max((products(*branch, runs) for branch in branches), key=lambda part: part[1])]
            else:
                parts = [products(*branch, runs * (chosen == i)) for i, branch in enumerate(branches)]
        elif name == "scan":
            parts = [products(params["jaxpr"], known.loop(equation), runs * params["length"])]
        else:
            parts = [products(inner, known.within(inner, equation.invars), runs) for inner in subjaxprs(equation)]
        flops += sum(part[0] for part in parts)
        work += sum(part[1] for part in parts)
    return flops, work


def dot(equation: Any) -> tuple[int, int]:
    """FLOPs of a product, and the smallest of its rows, columns and what it sums over."""
    (contract_left, contract_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    left, right = (x.aval.shape for x in equation.invars)
    inner = math.prod(left[i] for i in contract_left)
    rows = math.prod(n for i, n in enumerate(left) if i not in (*contract_left, *batch_left))
    columns = math.prod(n for i, n in enumerate(right) if i not in (*contract_right, *batch_right))
    return 2 * equation.outvars[0].aval.size * inner, min(rows, columns, inner)
