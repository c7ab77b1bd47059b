import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from zoo.errors import ZooError
from zoo.models.cnn import VARIANTS, ResNet, ResNetConfig
from zoo.models.functional import abstract, merge
from zoo.weights import imports
from zoo.weights.imports import Rule, assign, export, heads
from zoo.weights.torch_file import read_torch

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from formula import weight  # noqa: E402


def torchvision_shapes(bottleneck, depths, classes):
    """Names and shapes of a torchvision ResNet's state_dict, written out from its layers."""
    shapes = {}

    def norm(name, width):
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate(depths, 1):
        width = 32 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            name = f"layer{stage}.{block}"
            kernels = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)] if bottleneck else None
            for i, (out, into, size) in enumerate(kernels or [(width, inputs, 3), (width, width, 3)], 1):
                shapes[f"{name}.conv{i}.weight"] = (out, into, size, size)
                norm(f"{name}.bn{i}", out)
            if block == 0 and (stage > 1 or inputs != outputs):
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def shapes_of(config):
    return abstract(lambda rngs: ResNet(config, rngs))


@pytest.mark.parametrize(
    ("name", "depths", "entries"), [("resnet18", (2, 2, 2, 2), 122), ("resnet50", (3, 4, 6, 3), 320)]
)
def test_torchvision_names_there_and_back(name, depths, entries):
    shapes = torchvision_shapes(name == "resnet50", depths, 1000)
    assert len(shapes) == entries  # of the state_dict of torchvision's model
    tensors = {key: np.full(shape, i, np.float32) for i, (key, shape) in enumerate(shapes.items())}
    _, params, stats = shapes_of(VARIANTS[name])
    params, stats = imports.import_resnet(params, stats, tensors)
    back = export({"params": params, "stats": stats}, imports.TORCHVISION_RESNET)
    assert set(tensors) - set(back) == {key for key in tensors if key.endswith("num_batches_tracked")}
    assert all(np.array_equal(tensors[key], x) for key, x in back.items())


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_torchvision_networks_equal_the_reference(kind):
    golden = load_file(GOLDEN / "torchvision_logits.safetensors")
    shapes = torchvision_shapes(kind == "bottleneck", (2, 1, 1, 1), 10)
    tensors = {key: weight(key, shape) for key, shape in shapes.items() if shape}
    config = ResNetConfig(
        blocks=(2, 1, 1, 1), width=64, bottleneck=kind == "bottleneck", stem="imagenet", shortcut="conv"
    )
    graphdef, params, stats = shapes_of(config)
    params, stats = imports.import_resnet(params, stats, tensors)
    logits = jax.jit(lambda p, s, x: merge(graphdef, p, s)(x))(params, stats, golden["x"])
    np.testing.assert_allclose(logits, golden[f"{kind}_logits"], rtol=1e-4, atol=1e-3)


def test_assign_lists_all_that_is_wrong():
    rules = (Rule("a", "x"), Rule("b{i}", "y/{i}"), Rule("h.{layer}.w", "w"), Rule("alias", "x"))
    tree = {"x": np.zeros(2), "y": {"0": np.zeros(3), "1": np.zeros(1)}, "w": np.zeros((2, 2))}
    good = {"a": np.ones(2), "b0": np.ones(3), "b1": np.ones(1), "h.0.w": np.ones(2), "h.1.w": 2 * np.ones(2)}
    assigned = assign(tree, {**good, "skip.me": np.ones(5)}, rules, ignore=r"^skip")
    np.testing.assert_array_equal(assigned["w"], [[1, 1], [2, 2]])
    bad = {"a": np.ones(2), "alias": np.ones(2), "b0": np.ones(4), "b7": np.ones(1), "c": np.ones(1)}
    with pytest.raises(ZooError) as error:
        assign(tree, bad | {"h.1.w": np.ones(2), "h.2.w": np.ones(2)}, rules)
    assert str(error.value).split("\n")[1:] == [
        "  alias: x is filled already",
        "  b0: is [4], y/0 is [3]",
        "  b7: the model has no y/7",
        "  c: the model has nothing by this name",
        "  h.2.w: the model has no w of layer 2",
        "  w of layer 0: not filled",
        "  y/1: not filled",
    ]


def test_heads_split_and_join():
    rule = Rule("h.{layer}.qkv", ("q", "k", "v"), heads(1, parts=3))
    x = np.arange(5 * 3 * 2 * 4, dtype=np.float32).reshape(5, 24)
    tree = {name: np.zeros((1, 5, 2, 4), np.float32) for name in "qkv"}
    out = assign(tree, {"h.0.qkv": x}, [rule])
    for part, head, i in np.ndindex(3, 2, 4):
        np.testing.assert_array_equal(out["qkv"[part]][0, :, head, i], x[:, 8 * part + 4 * head + i])
    np.testing.assert_array_equal(export(out, [rule])["h.0.qkv"], x)
    with pytest.raises(ZooError, match=r"h.0.qkv: shape \[24, 5\]"):
        assign(tree, {"h.0.qkv": x.T}, [rule])


def test_values_are_cast_and_paths_without_a_rule_are_named():
    tree = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}
    out = assign(tree, {"a": np.array([1.5, 2], np.float16)}, [Rule("a", "x")])
    assert out["x"].dtype == np.float32
    with pytest.raises(ZooError, match="no place for x"):
        export(out, [Rule("a", "y")])


def test_cifar_weights_there_and_back(assets):
    tensors = read_torch(assets / "resnet20-12fca82f.th")
    _, params, stats = shapes_of(VARIANTS["resnet20"])
    params, stats = imports.import_resnet(params, stats, tensors)
    back = export({"params": params, "stats": stats}, imports.CIFAR_RESNET)
    assert {f"module.{key}" for key in back} == set(tensors)
    assert all(np.array_equal(tensors[f"module.{key}"], x) for key, x in back.items())
