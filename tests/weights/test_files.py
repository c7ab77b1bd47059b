import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.models import functional
from zoo.weights.files import load_codec
from zoo.weights.registry import MODELS, config_of, variants

TINY = {"vocab_size": 16, "context": 8, "layers": 2, "d_model": 8, "heads": 2}


@pytest.fixture(scope="module")
def decoder():
    return zoo.create("gpt-modern", seed=3, **TINY)


@pytest.fixture
def folder(decoder, tmp_path):
    zoo.save(decoder, tmp_path / "model")
    return tmp_path / "model"


def test_saved_decoder_comes_back_bit_for_bit(decoder, folder):
    for source in (folder, folder / "model.safetensors", folder.parent):  # a run folder holds model/
        loaded = zoo.load(source)
        assert loaded.config == decoder.config
        jax.tree.map(np.testing.assert_array_equal, functional.split(loaded)[1:], functional.split(decoder)[1:])


def test_statistics_and_lists_of_blocks_come_back(tmp_path):
    """More than ten blocks in a list: their names must not be sorted as text."""
    model = zoo.create("resnet8", blocks=(12,), width=2)
    model.stage1[11].bn1.mean[...] = jnp.array([5.0, 6.0])
    zoo.save(model, tmp_path / "m")
    loaded = zoo.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.stage1[11].bn1.mean[...], [5.0, 6.0])
    x = jnp.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_as_many_bytes_come_back_as_wide(decoder, folder, tmp_path, dtype):
    zoo.save(decoder, tmp_path / "half", dtype)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    for found, wide in zip(
        *(jax.tree.leaves(functional.split(x)[1:]) for x in (zoo.load(tmp_path / "half"), decoder)), strict=True
    ):
        assert found.dtype == wide.dtype
        np.testing.assert_array_equal(found, wide.astype(dtype).astype(wide.dtype))
    with pytest.raises(zoo.ZooError, match="did you mean bfloat16"):
        zoo.save(decoder, tmp_path / "other", "bfloat61")
    assert not (tmp_path / "other").exists()


def test_files_are_plain(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "Decoder"
    assert config["config"]["d_model"] == 8
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_every_misfit_is_listed_at_once(folder):
    edit(folder, lambda c: c["config"].update(layers=3, tied=False))
    with pytest.raises(zoo.ZooError) as error:
        zoo.load(folder)
    message = str(error.value)
    assert "params/blocks/q: float32[2, 8, 2, 4] in the file, float32[3, 8, 2, 4] in the model" in message
    assert "params/head: not in the file" in message
    edit(folder, lambda c: c["config"].update(layers=2, tied=True, positions="rotary", qk_norm=False))
    with pytest.raises(zoo.ZooError, match=r"params/blocks/q_norm_scale: not in the model"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not the config"), ("[]", "not the config"), ('{"model": "Decodr", "config": {}}', "did you mean Decoder")],
)
def test_damaged_config(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(zoo.ZooError, match=message):
        zoo.load(folder)


def test_config_of_another_version(folder):
    edit(folder, lambda c: c["config"].update(wings=2))
    with pytest.raises(zoo.ZooError, match="wings"):
        zoo.load(folder)


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
def test_truncated_weights(folder, cut):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(zoo.ZooError, match=r"model\.safetensors is not a safetensors file, or is damaged"):
        zoo.load(folder)


def test_what_cannot_be_found(tmp_path):
    with pytest.raises(zoo.ZooError, match="did you mean gpt2"):
        zoo.load("gtp2")
    with pytest.raises(zoo.ZooError, match="no pretrained weights of gpt2"):
        zoo.load("gpt2")
    with pytest.raises(zoo.ZooError, match=r"has no model\.safetensors"):
        zoo.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(zoo.ZooError, match="has not finished"):
        zoo.load(tmp_path)


def test_codec_beside_the_weights(folder):
    with pytest.raises(zoo.ZooError, match="codec"):
        load_codec(folder)
    (folder / "codec.json").write_text('{"codec": "chars", "alphabet": "abc"}')
    assert load_codec(folder).decode([2, 0]) == "ca"


def test_names_and_configs():
    assert "resnet20" in zoo.names("res*")
    assert zoo.names("gpt2") == ["gpt2"]
    assert zoo.names("nothing*") == []
    assert zoo.names() == sorted(variants())
    assert {type(config) for config in variants().values()} == {kind for kind, _ in MODELS.values()}
    assert config_of("gpt2", layers=3).layers == 3
    with pytest.raises(zoo.ZooError, match="did you mean resnet20"):
        zoo.create("resnet-20")
    with pytest.raises(zoo.ZooError, match="did you mean layers"):
        zoo.create("gpt2", layer=3)


def test_the_seed_fixes_the_weights(decoder):
    same, other = zoo.create("gpt-modern", seed=3, **TINY), zoo.create("gpt-modern", seed=4, **TINY)
    np.testing.assert_array_equal(same.token_embed[...], decoder.token_embed[...])
    assert not np.array_equal(other.token_embed[...], decoder.token_embed[...])
