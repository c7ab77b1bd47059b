import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.models.decoder import MATRICES, Decoder, DecoderConfig
from zoo.models.functional import abstract, flatten, merge
from zoo.models.lora import LoraConfig, init, merged, originals, share, unmerged

SMALL = DecoderConfig(vocab_size=11, context=8, layers=2, d_model=8, heads=2, kv_heads=1, d_ff=12, dtype="float32")
ALL = LoraConfig(rank=3, alpha=12.0, targets=(r"blocks/[qkv]$", r"blocks/out$", r"blocks/(up|down)$"))
NAMES = {"blocks/q", "blocks/k", "blocks/v", "blocks/out", "blocks/up", "blocks/down"}
TOKENS = jnp.array([[1, 5, 0, 10, 3, 3]])

MERGED = jax.jit(merged, static_argnums=2)


def random(shapes, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, scale, x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def base():
    """(parameters to logits, parameters)."""
    graphdef, shapes, stats = abstract(lambda rngs: Decoder(SMALL, rngs))
    return jax.jit(lambda params: merge(graphdef, params, stats)(TOKENS)), random(shapes, 0, 0.2)


def trained(params, seed=1):
    """Adapters whose B is not zero, as after training."""
    return random(jax.eval_shape(lambda key: init(key, params, ALL, MATRICES), jax.random.key(0)), seed)


def assert_bits(found, expected):
    assert flatten(found).keys() == flatten(expected).keys()
    for name, leaf in flatten(expected).items():
        assert np.asarray(flatten(found)[name]).tobytes() == np.asarray(leaf).tobytes(), name


def test_shapes(base):
    adapters = jax.eval_shape(lambda key: init(key, base[1], ALL, MATRICES), jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in flatten(adapters).items()}
    assert {name.rpartition("/")[0] for name in shapes} == NAMES
    assert (shapes["blocks/q/a"], shapes["blocks/q/b"]) == ((2, 8, 3), (2, 3, 2, 4))
    assert (shapes["blocks/v/a"], shapes["blocks/v/b"]) == ((2, 8, 3), (2, 3, 1, 4))
    assert (shapes["blocks/out/a"], shapes["blocks/out/b"]) == ((2, 2, 4, 3), (2, 3, 8))
    assert (shapes["blocks/down/a"], shapes["blocks/down/b"]) == ((2, 12, 3), (2, 3, 8))


def test_new_adapters_change_nothing(base):
    forward, params = base
    adapters = jax.jit(lambda key: init(key, params, ALL, MATRICES))(jax.random.key(0))
    assert_bits(MERGED(params, adapters, ALL), params)
    assert_bits({"logits": forward(MERGED(params, adapters, ALL))}, {"logits": forward(params)})


def test_an_adapter_starts_the_same_whatever_else_is_adapted():
    params = {"blocks": {"q": jnp.zeros((1, 400, 2, 8)), "up": jnp.zeros((1, 400, 16))}}
    key = jax.random.key(3)
    both = init(key, params, LoraConfig(16, targets=("q$", "up$")), MATRICES)["blocks"]
    alone = init(key, params, LoraConfig(16, targets=("up$",)), MATRICES)["blocks"]
    assert_bits(both["up"], alone["up"])
    assert not np.allclose(both["q"]["a"], both["up"]["a"])
    np.testing.assert_allclose(jnp.std(alone["up"]["a"]), 400**-0.5, rtol=0.05)
    np.testing.assert_array_equal(alone["up"]["b"], np.zeros((1, 16, 16), np.float32))


def test_merged_is_the_sum_of_both_paths(base):
    """x W' = x W + alpha/rank (x A) B, by numpy in float64 and layer by layer; alpha/rank is 4."""
    params = base[1]
    adapters = trained(params)
    found = flatten(MERGED(params, adapters, ALL))
    plain, thin = flatten(params), {k: np.float64(v) for k, v in flatten(adapters).items()}
    reduced = {name: 2 if name == "blocks/out" else 1 for name in NAMES}
    rng = np.random.default_rng(0)
    for name, axes in reduced.items():
        for layer in range(SMALL.layers):
            w = np.float64(plain[name][layer])
            x = rng.normal(size=(5, *w.shape[:axes]))
            low = np.tensordot(x, thin[f"{name}/a"][layer], axes)
            expected = np.tensordot(x, w, axes) + 4 * np.tensordot(low, thin[f"{name}/b"][layer], 1)
            actual = np.tensordot(x, np.float64(found[name][layer]), axes)
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    for name in plain.keys() - NAMES:
        np.testing.assert_array_equal(found[name], plain[name], err_msg=name)


def test_gradients_are_those_of_the_adapters_alone(base):
    forward, params = base
    adapters = trained(params, seed=5)
    loss = lambda params, adapters: jnp.sum(jnp.square(forward(merged(params, adapters, ALL))))
    frozen, thin = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, adapters)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(frozen))
    for name, leaf in flatten(thin).items():
        assert np.any(leaf), name
    # dL/dA = s dL/dW B^T for the matrix that is used.
    dense = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(forward(p)))))(MERGED(params, adapters, ALL))
    expected = 4 * np.einsum("lfd,lrd->lfr", dense["blocks"]["down"], adapters["blocks"]["down"]["b"])
    np.testing.assert_allclose(thin["blocks"]["down"]["a"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_unmerging_is_exact_where_subtracting_is_not(base):
    params = base[1]
    adapters = trained(params)
    kept = originals(params, adapters)
    assert flatten(kept).keys() == NAMES
    there = MERGED(params, adapters, ALL)
    assert_bits(unmerged(there, kept), params)
    opposite = LoraConfig(ALL.rank, -ALL.alpha, ALL.targets)
    back = MERGED(there, adapters, opposite)
    assert np.any(back["blocks"]["q"] != params["blocks"]["q"])


def test_share_is_that_of_the_paper():
    """Table 4: rank 8 of queries and values of GPT-3 is 37.7 million parameters of 175,255.8 million."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    square = shape(96, 12288, 96, 128)
    params = {"blocks": {"q": square, "v": square, "rest": shape(175_255_800_000 - 2 * square.size)}}
    adapters = jax.eval_shape(lambda key: init(key, params, LoraConfig(), MATRICES), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(adapters)) == 37_748_736
    assert share(params, adapters) == pytest.approx(37.7 / 175_255.8, rel=2e-3)


def test_on_a_mesh(base):
    """Sharded matrices and replicated adapters give what one device gives."""
    params = base[1]
    adapters = trained(params)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    specs = {"blocks/q": P(None, "fsdp"), "blocks/out": P(None, None, None, "fsdp"), "blocks/up": P(None, "fsdp")}
    place = lambda path, leaf: jax.device_put(
        leaf, NamedSharding(mesh, specs.get(jax.tree_util.keystr(path, simple=True, separator="/"), P()))
    )
    sharded = jax.tree_util.tree_map_with_path(place, params)
    found = MERGED(sharded, jax.device_put(adapters, NamedSharding(mesh, P())), ALL)
    expected = flatten(MERGED(params, adapters, ALL))
    for name, leaf in flatten(found).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(targets=("blocks/dwn$",)), "did you mean blocks/down"),
        (LoraConfig(targets=("final_norm_scale",)), "known: blocks/down, blocks/k, blocks/out"),
        (LoraConfig(targets=("blocks/(",)), "no regular expression"),
        (LoraConfig(targets=()), "0 targets"),
        (LoraConfig(rank=0), "rank 0"),
    ],
)
def test_bad_configs(base, config, message):
    with pytest.raises(ZooError, match=message):
        init(jax.random.key(0), base[1], config, MATRICES)


def test_what_does_not_fit_is_refused(base):
    params = base[1]
    adapters = trained(params)
    with pytest.raises(ZooError, match=r"do not fit .* at rank 4"):
        merged(params, adapters, LoraConfig(4, targets=ALL.targets))
    with pytest.raises(ZooError, match="unknown parameter 'blocks/q'"):
        merged({"blocks": {"p": params["blocks"]["q"]}}, {"blocks": {"q": adapters["blocks"]["q"]}}, ALL)
    with pytest.raises(ZooError, match="pairs of a and b"):
        merged(params, {"blocks": {"q": {"a": adapters["blocks"]["q"]["a"]}}}, ALL)
    with pytest.raises(ZooError, match="blocks/q is"):
        unmerged(params, {"blocks": {"q": jnp.zeros((1, 8, 2, 4))}})
    with pytest.raises(ZooError, match="order batch, reduction, output"):
        init(jax.random.key(0), params, LoraConfig(targets=("blocks/up",)), [("blocks/up", ((2,), (1,)))])
