"""Weights by repository name, from the cache that the Hub's own library keeps."""

import functools

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from tests.models.tiny import TINY
from zoo.models.decoder import Decoder
from zoo.models.functional import flatten, split
from zoo.weights.hub import fetched
from zoo.weights.transformers import save_hf

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one repository in it, org/tiny, and no network."""
    model = Decoder(TINY, nnx.Rngs(0))
    repository = tmp_path / "models--org--tiny"
    save_hf(model, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    offline = functools.partial(huggingface_hub.snapshot_download, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    return model


@pytest.mark.parametrize("name", ["hf:org/tiny", "hf:org/tiny@main", f"hf:org/tiny@{REVISION}"])
def test_a_cached_repository_loads(cache, name):
    found, expected = (flatten(split(model)[1]) for model in (zoo.load(name), cache))
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["hf:org/none", "hf:org/tiny@v2", "hf:a/b/c", "hf:"])
def test_what_is_not_there_is_said(cache, name):
    with pytest.raises(zoo.ZooError, match=r"hf:.* cannot be fetched \(.+\); check the name and the network"):
        zoo.load(name)


def test_a_repository_without_safetensors(cache, tmp_path):
    (tmp_path / "models--org--tiny" / "snapshots" / REVISION / "model.safetensors").unlink()
    with pytest.raises(zoo.ZooError, match="has no safetensors"):
        zoo.load("hf:org/tiny")


def test_other_sources_pass_through(tmp_path):
    assert fetched(tmp_path) is tmp_path
    assert fetched("runs/gpt") == "runs/gpt"
