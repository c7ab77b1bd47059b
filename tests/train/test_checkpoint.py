import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.train.checkpoint import Checkpoints
from zoo.train.mesh import MeshConfig, make_mesh
from zoo.train.state import abstract_state, create_state, make_init

# Of a damaged checkpoint, threads of the reader go on to fail after the first error has been raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def init(key):
    return {"a": {"kernel": jax.random.normal(key, (256, 64)), "bias": jnp.zeros((8,))}}, {"mean": jnp.ones((3,))}


def abstract_on(sizes, name="adamw"):
    make = make_init(init, make_optimizer(OptimConfig(name=name), 10), 0, ema=True)
    return make, abstract_state(make, (), make_mesh(MeshConfig(*sizes)))


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def saved(folder, steps, keep=2, sizes=(1, 8, 1), scores=None):
    make, abstract = abstract_on(sizes)
    state = create_state(make, abstract)
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            marked = state | {"step": state["step"] + step}
            checkpoints.save(step, marked, scores[step] if scores else None)
    return marked, abstract


@pytest.mark.parametrize(("before", "after"), [((1, 8, 1), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)), ((2, 2, 2), (8, 1, 1))])
def test_restores_onto_another_mesh(tmp_path, before, after):
    state, _ = saved(tmp_path / "c", [3], sizes=before)
    _, abstract = abstract_on(after)
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(abstract)
    equal(restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, abstract)


def test_keeps_the_newest_and_the_best(tmp_path):
    saved(tmp_path / "c", [1, 2, 3, 4, 5], scores={1: 0.9, 2: 0.2, 3: 0.5, 4: None, 5: 0.7})
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]


def test_nothing_saved(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(abstract_on((1, 1, 1))[1]) is None


def damage(folder, how):
    """Cuts, empties or removes every file of array data of a checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            if how == "removed":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if how == "cut" else 0])


@pytest.mark.parametrize("how", ["cut", "emptied", "removed"])
def test_damaged_newest_falls_back_and_says_so(tmp_path, how):
    state, abstract = saved(tmp_path / "c", [1, 2])
    damage(tmp_path / "c" / "2", how)
    said = []
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(abstract, said.append)
        equal(restored, state | {"step": state["step"] - 1})
        assert len(said) == 1
        assert "/2 cannot be read" in said[0]
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state)  # its step can be reached and saved again
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
    assert (tmp_path / "unreadable" / "2").is_dir(), "set aside, not deleted"


def test_all_damaged(tmp_path):
    _, abstract = saved(tmp_path / "c", [1, 2])
    for step in ("1", "2"):
        damage(tmp_path / "c" / step, "cut")
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(ZooError, match=r"none of the checkpoints .* 1, 2"):
        checkpoints.restore(abstract, lambda _: None)


def test_mismatch_lists_every_difference(tmp_path):
    _, abstract = saved(tmp_path / "c", [1])
    other = dict(abstract)
    other["params"] = {
        "a": {"kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)},
        "new": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(ZooError) as error:
        checkpoints.restore(other)
    message = str(error.value)
    assert "params/a/kernel: (256, 64) saved, (8, 5) wanted" in message
    assert "params/a/bias: only in the checkpoint" in message
    assert "params/new: not in the checkpoint" in message


def test_another_optimizer_is_a_mismatch(tmp_path):
    saved(tmp_path / "c", [1])
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(ZooError, match="of another model or optimizer"):
        checkpoints.restore(abstract_on((1, 1, 1), "sgd")[1])
