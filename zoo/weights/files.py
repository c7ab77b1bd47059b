"""Weights on disk: a folder of `model.safetensors` and `config.json`. Nothing ever unpickles.

Files of others are known by their names: .gguf, llama2.c's .bin, and folders of the transformers library by the
"model_type" in their config.json.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from safetensors.numpy import save as save_tensors

from zoo.data.text import Codec, codec_from_json
from zoo.data.tokenizer_files import load_tokenizer, tokenizer_from_gguf
from zoo.errors import ZooError, unknown
from zoo.models import functional
from zoo.models.layers import DTYPES
from zoo.weights.fields import read_json
from zoo.weights.gguf import load_gguf
from zoo.weights.gguf import tokenizer_from_gguf as gguf_tokenizer
from zoo.weights.hub import fetched
from zoo.weights.llama2c import load_llama2c
from zoo.weights.registry import MODELS, abstract, pretrained, replace, variants
from zoo.weights.safetensors_file import read_sources
from zoo.weights.transformers import INDEX, WEIGHTS, load_hf


def save(model: Any, folder: str | os.PathLike[str], dtype: str = "") -> None:
    """Writes a model to a folder (local or gs://): every parameter and statistic, and the config that builds it.

    With a `dtype`, bfloat16 or float16, floats are rounded to it: half the bytes. `load` widens them again.
    """
    if dtype and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    target = epath.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _, params, stats = functional.split(model)
    tensors = functional.flatten({"params": params, "stats": stats})
    narrow = lambda x: x.astype(DTYPES[dtype]) if dtype and jnp.issubdtype(x.dtype, jnp.floating) else x
    config = {"model": type(model).__name__, "config": dataclasses.asdict(model.config)}
    contents = {
        "model.safetensors": save_tensors({name: np.asarray(narrow(jax.device_get(x))) for name, x in tensors.items()}),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():  # a reader never sees half a file
        part = target / f"{name}.part"
        part.write_bytes(content)
        part.replace(target / name)


def load(source: str | os.PathLike[str], **overrides: Any) -> nnx.Module:
    """The model of a run folder, of a folder that `save` wrote, or of its `model.safetensors`; by name, one that comes
    with the package ("digits-cnn"); or a published decoder: a folder of the transformers library, "hf:org/name" on the
    Hugging Face Hub, a .gguf file, or a .bin file of llama2.c.

    `overrides` change fields of its config, such as dtype or attention. Raises ZooError, listing all that is wrong,
    when the files and the config do not fit each other.
    """
    source = fetched(source)
    if (path := epath.Path(source)).suffix in (".gguf", ".bin") and path.exists():
        return load_gguf(path, **overrides) if path.suffix == ".gguf" else load_llama2c(path, **overrides)
    folder = _find(source)
    if _is_hf(folder):
        return load_hf(folder, **overrides)
    config = replace(load_config(folder), overrides)
    weights = folder / WEIGHTS
    tensors = read_sources(weights)
    graphdef, params, stats = abstract(config)
    wanted = functional.flatten({"params": params, "stats": stats})
    problems = [f"  {name}: not in the file" for name in wanted if name not in tensors]
    problems += [f"  {name}: not in the model" for name in tensors if name not in wanted]
    problems += [
        f"  {name}: {tensors[name].dtype}{list(tensors[name].shape)} in the file, {x.dtype}{list(x.shape)} in the model"
        for name, x in wanted.items()
        if name in tensors and not (tensors[name].shape == x.shape and widens(tensors[name].dtype, x.dtype))
    ]
    if problems:
        raise ZooError(f"{weights} does not fit the model of its config.json:\n" + "\n".join(problems))
    tree = functional.unflatten({name: jnp.asarray(tensors[name].read().astype(x.dtype)) for name, x in wanted.items()})
    return functional.merge(graphdef, tree.get("params", {}), tree.get("stats", {}))


def widens(narrow: Any, wide: Any) -> bool:
    """Whether all numbers of one dtype are numbers of the other: the same, or a float of fewer bits."""
    floats = jnp.issubdtype(narrow, jnp.floating) and jnp.issubdtype(wide, jnp.floating)
    return narrow == wide or (floats and narrow.itemsize < wide.itemsize)


def part_of(source: str | os.PathLike[str], name: str) -> epath.Path:
    """The folder of a second model that is kept with one, such as the tokenizer of a scene model."""
    folder = _find(fetched(source)) / name
    if not (folder / WEIGHTS).exists():
        raise ZooError(f"{source} comes without its {name}: there is no {folder / WEIGHTS}")
    return folder


def load_config(folder: epath.Path) -> Any:
    """The config of a saved model."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
        kind, fields = content["model"], content["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is not the config of a saved model ({type(error).__name__}: {error})") from error
    if kind not in MODELS:
        raise unknown(f"model in {path}", str(kind), MODELS)
    try:
        return MODELS[kind][0](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError as error:
        raise ZooError(f"{path} does not fit {kind}: {error}; it was written by another version") from error


def load_codec(source: str | os.PathLike[str]) -> Codec:
    """The text codec of a decoder: codec.json or tokenizer files beside its weights, or what its .gguf file holds.

    Also of a tokenizer file or folder by itself. Raises ZooError when there is none.
    """
    source = fetched(source)
    path = Path(source)
    if path.suffix == ".gguf" and path.exists():
        fields = gguf_tokenizer(path)
        if fields.get("model") != "gpt2":
            raise ZooError(f"{path} has a tokenizer of kind {fields.get('model')!r}; give tokenizer files of its own")
        ids = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        fields |= {f"{role}_id": fields.get(f"{name}_token_id") for role, name in ids.items()}
        return tokenizer_from_gguf(fields | {"token_types": fields.get("token_type")})
    if path.suffix == ".bin" and path.exists() and not path.name.startswith("tok"):  # llama2.c: weights
        beside = sorted(path.parent.glob("tok*.bin"))
        if len(beside) != 1:
            raise ZooError(f"{path.parent} holds {len(beside)} files tok*.bin; name the tokenizer of {path.name}")
        return load_tokenizer(beside[0])
    if path.is_file() and path.name not in (WEIGHTS, INDEX):
        return load_tokenizer(path)
    tokenizers = ("tokenizer.json", "vocab.json", "encoder.json")
    if path.is_dir() and any((path / name).exists() for name in tokenizers):
        return load_tokenizer(path)
    folder = _find(source)  # may be gs://
    if (folder / "codec.json").exists():
        return codec_from_json(read_json(folder / "codec.json"))
    return load_tokenizer(str(folder))


def _is_hf(folder: epath.Path) -> bool:
    try:
        return "model_type" in read_json(folder / "config.json") or not (folder / WEIGHTS).exists()
    except ZooError:  # load_config says what is wrong with it
        return False


def _find(source: str | os.PathLike[str]) -> epath.Path:
    path = epath.Path(source)
    if path.name in (WEIGHTS, INDEX):
        path = path.parent
    for folder in (path / "model", path):
        if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
            return folder
    if (path / "checkpoints").exists():
        raise ZooError(
            f"{path} is a run that has not finished: it has checkpoints but no model/; run its command again"
        )
    if Path(source).exists():
        raise ZooError(f"{path} has no model.safetensors; give a run folder, or a folder that zoo.save wrote")
    if str(source) in pretrained():
        return pretrained()[str(source)]
    if str(source) in variants():
        raise ZooError(f"there are no pretrained weights of {source} here; zoo.create({str(source)!r}) makes a new one")
    raise unknown("model or folder", str(source), [*variants(), *pretrained()])
