"""Weights of other libraries, by declarative maps that work in both directions.

A map is a table of `Rule`s between the names of a source ("layer1.0.conv1.weight") and paths in a model
("params/stage1/0/conv1/kernel"). Reading is strict: every source name must be used, every path filled and every
shape equal, or one error lists all that is wrong.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.errors import ZooError
from zoo.models import functional
from zoo.models.functional import Tree

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """How one source tensor becomes the arrays of a rule's targets, and back."""

    load: Callable[[np.ndarray, Sequence[Shape]], Sequence[np.ndarray]]
    """(source, shapes wanted) -> arrays; may raise ValueError for a source of another shape."""
    save: Callable[[Sequence[np.ndarray]], np.ndarray]
    """Its inverse."""


def transpose(*axes: int) -> Transform:
    """The target's axes are these of the source."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(lambda x, shapes: [x.transpose(axes)], lambda parts: parts[0].transpose(back))


def heads(axis: int, parts: int = 1) -> Transform:
    """The source's axis holds (part, head, head size) in one; each target has one part, and the other two as axes."""

    def load(x: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        joined = [(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]) for shape in shapes]
        pieces = np.split(x, parts, axis)
        if [piece.shape for piece in pieces] != joined:
            raise ValueError(f"wanted {parts} × {list(joined[0])} along axis {axis}")
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def save(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]) for x in arrays], axis)

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


def assign(tree: Tree, tensors: Mapping[str, np.ndarray], rules: Rules, ignore: str = r"(?!)") -> Tree:
    """A tree like `tree` (arrays or shapes) with the values of `tensors`, cast to its dtypes, as numpy arrays.

    Names in which the regex `ignore` is found are passed over. Raises one ZooError that lists every name that
    no rule uses, every path that is not filled or filled twice, and every shape that differs.
    """
    wanted = functional.flatten(tree)
    arrays = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in wanted.items()}
    stacks = [_pattern(path) for rule in rules if rule.stacked for path in rule.paths]
    slots: dict[tuple[str, int | None], np.ndarray] = {}  # what one source tensor fills: views of the arrays
    for path, array in arrays.items():
        if any(stack.fullmatch(path) for stack in stacks):
            slots |= {(path, layer): array[layer] for layer in range(len(array))}
        else:
            slots[path, None] = array[...]

    filled: set[tuple[str, int | None]] = set()
    problems = []
    for name, tensor in tensors.items():
        if re.search(ignore, name):
            continue
        matches = ((rule, _match(rule.source, name)) for rule in rules)
        rule, fields = next(((rule, fields) for rule, fields in matches if fields is not None), (None, {}))
        if rule is None:
            problems.append(f"{name}: the model has nothing by this name")
            continue
        layer = int(fields["layer"]) if rule.stacked else None
        keys = [(path.format(**fields), layer) for path in rule.paths]
        if absent := [_slot_name(*key) for key in keys if key not in slots]:
            problems.append(f"{name}: the model has no {', '.join(absent)}")
            continue
        if twice := [_slot_name(*key) for key in keys if key in filled]:
            problems.append(f"{name}: {', '.join(twice)} is filled already")
            continue
        filled |= set(keys)
        try:
            values = rule.transform.load(tensor, [slots[key].shape for key in keys])
        except ValueError as error:
            problems.append(f"{name}: shape {list(tensor.shape)}, {error}")
            continue
        for key, value in zip(keys, values, strict=True):
            if value.shape == slots[key].shape:
                slots[key][...] = value
            else:
                problems.append(f"{name}: is {list(value.shape)}, {_slot_name(*key)} is {list(slots[key].shape)}")
    problems += [f"{_slot_name(*key)}: not filled" for key in slots if key not in filled]
    if problems:
        raise ZooError("the weights do not fit the model:\n" + "\n".join(f"  {problem}" for problem in problems))
    return functional.unflatten(arrays)


def export(tree: Tree, rules: Rules) -> dict[str, np.ndarray]:
    """The tensors of a tree under the names of the source: the inverse of `assign`.

    Raises ZooError that lists every path that no rule uses.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in functional.flatten(tree).items()}
    tensors: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for rule in rules:
        for path in leaves:
            fields = _match(rule.paths[0], path)
            if fields is None or path in used:
                continue
            paths = [template.format(**fields) for template in rule.paths]
            used |= set(paths)
            parts = [leaves[p] for p in paths]
            if rule.stacked:
                for layer, layer_parts in enumerate(zip(*parts, strict=True)):
                    tensors[rule.source.format(layer=layer, **fields)] = rule.transform.save(layer_parts)
            else:
                tensors[rule.source.format(**fields)] = rule.transform.save(parts)
    if unused := sorted(set(leaves) - used):
        raise ZooError(f"this format has no place for {', '.join(unused)}")
    return tensors


def import_resnet(params: Tree, stats: Tree, tensors: Mapping[str, np.ndarray]) -> tuple[Tree, Tree]:
    """(params, stats) of a `ResNet` with the weights of torchvision, or of akamaster's CIFAR-10 networks."""
    tensors = {name.removeprefix("module."): x for name, x in tensors.items()}  # left by nn.DataParallel
    rules = TORCHVISION_RESNET if "fc.weight" in tensors else CIFAR_RESNET
    tree = assign({"params": params, "stats": stats}, tensors, rules, ignore=r"num_batches_tracked$")
    return tree["params"], tree["stats"]


def _norm(source: str, target: str) -> Rules:
    return (
        Rule(f"{source}.weight", f"params/{target}/scale"),
        Rule(f"{source}.bias", f"params/{target}/bias"),
        Rule(f"{source}.running_mean", f"stats/{target}/mean"),
        Rule(f"{source}.running_var", f"stats/{target}/var"),
    )


_RESNET = (
    Rule("conv1.weight", "params/conv1/kernel", CONV),
    *_norm("bn1", "bn1"),
    Rule("layer{stage}.{block}.conv{i}.weight", "params/stage{stage}/{block}/conv{i}/kernel", CONV),
    *_norm("layer{stage}.{block}.bn{i}", "stage{stage}/{block}/bn{i}"),
)

CIFAR_RESNET = (  # github.com/akamaster/pytorch_resnet_cifar10
    *_RESNET,
    Rule("linear.weight", "params/classifier/kernel", DENSE),
    Rule("linear.bias", "params/classifier/bias"),
)

TORCHVISION_RESNET = (
    *_RESNET,
    Rule("layer{stage}.{block}.downsample.0.weight", "params/stage{stage}/{block}/shortcut_conv/kernel", CONV),
    *_norm("layer{stage}.{block}.downsample.1", "stage{stage}/{block}/shortcut_bn"),
    Rule("fc.weight", "params/classifier/kernel", DENSE),
    Rule("fc.bias", "params/classifier/bias"),
)

# GPT2LMHeadModel of the transformers library; its projections are [in, out], and its head is the embedding.
_QKV = ("params/blocks/q", "params/blocks/k", "params/blocks/v")
GPT2 = (
    Rule("transformer.wte.weight", "params/token_embed"),
    Rule("transformer.wpe.weight", "params/position_embed"),
    Rule("transformer.h.{layer}.ln_1.weight", "params/blocks/attn_norm_scale"),
    Rule("transformer.h.{layer}.ln_1.bias", "params/blocks/attn_norm_bias"),
    Rule("transformer.h.{layer}.attn.c_attn.weight", _QKV, heads(1, parts=3)),
    Rule("transformer.h.{layer}.attn.c_attn.bias", tuple(f"{path}_bias" for path in _QKV), heads(0, parts=3)),
    Rule("transformer.h.{layer}.attn.c_proj.weight", "params/blocks/out", heads(0)),
    Rule("transformer.h.{layer}.attn.c_proj.bias", "params/blocks/out_bias"),
    Rule("transformer.h.{layer}.ln_2.weight", "params/blocks/mlp_norm_scale"),
    Rule("transformer.h.{layer}.ln_2.bias", "params/blocks/mlp_norm_bias"),
    Rule("transformer.h.{layer}.mlp.c_fc.weight", "params/blocks/up"),
    Rule("transformer.h.{layer}.mlp.c_fc.bias", "params/blocks/up_bias"),
    Rule("transformer.h.{layer}.mlp.c_proj.weight", "params/blocks/down"),
    Rule("transformer.h.{layer}.mlp.c_proj.bias", "params/blocks/down_bias"),
    Rule("transformer.ln_f.weight", "params/final_norm_scale"),
    Rule("transformer.ln_f.bias", "params/final_norm_bias"),
)


def _slot_name(path: str, layer: int | None) -> str:
    return path if layer is None else f"{path} of layer {layer}"


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"{(\w+)}", template)
    return re.compile("".join(rf"(?P<{p}>\d+)" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()
