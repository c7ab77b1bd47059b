"""Weights on disk: a folder of `model.safetensors` and `config.json`. Nothing ever unpickles."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from zoo.data.text import Codec, codec_from_json
from zoo.errors import ZooError, unknown
from zoo.models import functional
from zoo.weights.registry import MODELS, abstract, variants


def save(model: Any, folder: str | os.PathLike[str]) -> None:
    """Writes a model to a folder (local or gs://): every parameter and statistic, and the config that builds it."""
    target = epath.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _, params, stats = functional.split(model)
    tensors = functional.flatten({"params": params, "stats": stats})
    config = {"model": type(model).__name__, "config": dataclasses.asdict(model.config)}
    contents = {
        "model.safetensors": save_tensors({name: np.asarray(jax.device_get(x)) for name, x in tensors.items()}),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():  # a reader never sees half a file
        part = target / f"{name}.part"
        part.write_bytes(content)
        part.replace(target / name)


def load(source: str | os.PathLike[str]) -> nnx.Module:
    """The model of a run folder, of a folder that `save` wrote, or of its `model.safetensors`.

    Raises ZooError, listing all that is wrong, when the files and the config do not fit each other.
    """
    folder = _find(source)
    config = load_config(folder)
    weights = folder / "model.safetensors"
    try:
        tensors = load_tensors(weights.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise ZooError(f"{weights} cannot be read ({error}); save the model again") from error
    graphdef, params, stats = abstract(config)
    wanted = functional.flatten({"params": params, "stats": stats})
    problems = [f"  {name}: not in the file" for name in wanted if name not in tensors]
    problems += [f"  {name}: not in the model" for name in tensors if name not in wanted]
    problems += [
        f"  {name}: {tensors[name].dtype}{list(tensors[name].shape)} in the file, {x.dtype}{list(x.shape)} in the model"
        for name, x in wanted.items()
        if name in tensors and (tensors[name].shape != x.shape or tensors[name].dtype != x.dtype)
    ]
    if problems:
        raise ZooError(f"{weights} does not fit the model of its config.json:\n" + "\n".join(problems))
    tree = functional.unflatten({name: jax.numpy.asarray(tensors[name]) for name in wanted})
    return functional.merge(graphdef, tree.get("params", {}), tree.get("stats", {}))


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
    """The text codec of a saved decoder: `codec.json` beside its weights."""
    path = _find(source) / "codec.json"
    try:
        return codec_from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ZooError(f"{path} is not a text codec ({error}); only runs of experiments/gpt.py have one") from error


def _find(source: str | os.PathLike[str]) -> epath.Path:
    path = epath.Path(source)
    if path.name == "model.safetensors":
        path = path.parent
    for folder in (path / "model", path):
        if (folder / "model.safetensors").exists():
            return folder
    if (path / "checkpoints").exists():
        raise ZooError(
            f"{path} is a run that has not finished: it has checkpoints but no model/; run its command again"
        )
    if Path(source).exists():
        raise ZooError(f"{path} has no model.safetensors; give a run folder, or a folder that zoo.save wrote")
    if str(source) in variants():
        raise ZooError(f"there are no pretrained weights of {source} here; zoo.create({str(source)!r}) makes a new one")
    raise unknown("model or folder", str(source), variants())
