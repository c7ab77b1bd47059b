"""Between NNX modules and the pure dicts that are trained, sharded and saved.

A module is split once, into a graph definition and two nested dicts of arrays with string keys:
`params` (what gradients change) and `stats` (everything else, such as batch statistics). Inside a
traced function it is merged again, called, and its new stats are read off.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Tree = dict[str, Any]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Returns (graphdef, params, stats) of a module, the latter two as pure dicts."""
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]  # by filters
    return graphdef, _string_keys(nnx.to_pure_dict(params)), _string_keys(nnx.to_pure_dict(stats))


def merge(graphdef: nnx.GraphDef, params: Tree, stats: Tree) -> Any:
    """The module again, with these arrays. Free inside a traced function."""
    return nnx.merge(graphdef, nnx.State(_list_keys(params)), nnx.State(_list_keys(stats)))


def stats_of(model: nnx.Module) -> Tree:
    """The pure dict of what is not trained by gradient, after a call may have changed it."""
    return split(model)[2]


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Tree, Tree]:
    """`split` of the module that `build` makes, with shapes in place of arrays: costs no memory."""
    return split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def initial(build: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> tuple[Tree, Tree]:
    """(params, stats) of a new module, for tracing: what `train.fit` asks of a recipe."""
    _, params, stats = split(build(nnx.Rngs(key)))
    return params, stats


def count(params: Tree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a nested dict by their slash-joined names: "params/blocks/q"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The nested dict that `flatten` flattened."""
    tree: Tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _string_keys(tree: Any) -> Any:
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _list_keys(tree: Any) -> Any:
    # Entries of an nnx.List are keyed by int, and int keys sort by number: "10" must follow "9".
    return {int(k) if k.isdigit() else k: _list_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
