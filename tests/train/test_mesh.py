import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.train.mesh import BATCH, MeshConfig, check_batch, make_mesh, named_leaves, param_spec, place_batch
from zoo.train.state import abstract_state, make_init

CUBE = MeshConfig(2, 2, 2)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, 2, -1), (2, 2, 2)),
        ((1, 1, 1), (1, 1, 1)),
        ((4, 1, 1), (4, 1, 1)),
    ],
)
def test_sizes(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize("sizes", [(3, 1, 1), (16, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1), (-2, 1, 1)])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ZooError, match=r"mesh"):
        make_mesh(MeshConfig(*sizes))


def test_first_matching_rule_wins_and_axes_that_do_not_divide_are_left_out():
    mesh = make_mesh(CUBE)
    rules = (("q$", P(None, "fsdp", "tensor")), (".", P("tensor")))
    assert param_spec("blocks/q", (3, 4, 2, 5), rules, mesh) == P(None, "fsdp", "tensor", None)
    assert param_spec("blocks/q", (3, 4, 3, 5), rules, mesh) == P(None, "fsdp", None, None)
    assert param_spec("head", (6, 5), rules, mesh) == P("tensor", None)
    assert param_spec("head", (6,), (("head", P(("fsdp", "tensor"))),), mesh) == P(None)
    assert param_spec("head", (8,), (("head", P(("fsdp", "tensor"))),), mesh) == P(("fsdp", "tensor"))


def test_without_a_rule_the_largest_divisible_dimension_goes_to_fsdp():
    mesh = make_mesh(CUBE)
    assert param_spec("kernel", (128, 255), (), mesh) == P("fsdp", None)
    assert param_spec("kernel", (3, 3, 128, 256), (), mesh) == P(None, None, None, "fsdp")
    assert param_spec("kernel", (8, 8), (), mesh) == P(), "small parameters stay whole"
    assert param_spec("kernel", (128, 256), (), make_mesh(MeshConfig(8, 1, 1))) == P()


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_optimizer_state_and_average_lie_like_their_parameters(name):
    mesh = make_mesh(CUBE)
    init = lambda key: (
        {"a": {"kernel": jax.random.normal(key, (4, 6))}, "b": jax.numpy.ones(4)},
        {"n": jax.numpy.ones(4), "frozen": {"kernel": jax.numpy.ones((4, 6))}},
    )
    tx = make_optimizer(OptimConfig(name=name), 10)
    state = abstract_state(make_init(init, tx, 0, ema=True), (("kernel", P("fsdp", "tensor")), ("b", P("data"))), mesh)
    specs = {name: leaf.sharding.spec for name, leaf in named_leaves(state).items()}
    moments = [key for key in specs if key.startswith("opt") and key.endswith("kernel")]
    assert moments
    for key in ["params/a/kernel", "ema/a/kernel", "stats/frozen/kernel", *moments]:
        assert specs[key] == P("fsdp", "tensor"), key
    assert specs["ema/b"] == P("data")
    assert specs["stats/n"] == specs["step"] == P()


def test_batch_must_divide():
    mesh = make_mesh(MeshConfig(4, 2, 1))
    check_batch(32, 2, mesh)
    with pytest.raises(ZooError, match=r"--batch 12 .* = 16; try --batch 16"):
        check_batch(12, 2, mesh)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 1)])
def test_placed_batch_is_the_host_batch(sizes):
    class Count:
        batch = 16

        def rows(self, step, rows):
            return {"x": (np.arange(16)[:, None] + 100 * step + np.zeros((1, 3))).astype(np.float32)[rows]}

    mesh = make_mesh(MeshConfig(*sizes))
    placed = place_batch(Count(), 2, mesh)["x"]
    assert placed.sharding.spec == BATCH
    np.testing.assert_array_equal(placed, Count().rows(2, slice(None))["x"])
