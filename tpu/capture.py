"""A recipe's own step, taken from the recipe: its `main` runs up to `fit`, on the devices of a topology."""

import contextlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

import zoo
from tpu.chips import as_on_tpu
from tpu.kernels import Kernel, subjaxprs, tally
from zoo.data.images import Images
from zoo.data.text import Bytes, Text, TextConfig
from zoo.errors import ZooError
from zoo.models.decoder import VARIANTS
from zoo.train.config import TrainConfig
from zoo.train.launch import parse
from zoo.train.mesh import BATCH, check_batch, make_mesh, replicated
from zoo.train.run import Run
from zoo.train.state import State, abstract_state, make_init, make_step

# Images that a plan needs the shape of, and not the pixels: (height, width, channels, classes, training images)
KNOWN = {"tfds:cifar10": (32, 32, 3, 10, 50_000), "tfds:imagenet2012": (224, 224, 3, 1000, 1_281_167)}
# Tokenizers that a plan needs the size of, and not the words
SIZES = {"data/gpt2": 50257, "data/llama3": 128256}
AGAIN = {"checkpoint", "remat", "remat2"}  # what jaxprs of one version of jax or another call `jax.checkpoint`


@dataclass
class Step:
    """What `fit` would compile: a traced step and the shapes that it takes."""

    traced: Any
    state: State
    inputs: Any
    """Of a batch and, with many steps a dispatch, of the data that lies on the device."""
    kernels: tuple[Kernel, ...]
    """The Pallas kernels in it."""
    flops: float
    """Of one step, over all devices: what the model needs."""
    executed_flops: float
    """With what is computed again to save memory, and what kernels do for masked entries."""
    config: TrainConfig
    mesh: Mesh


class Captured(Exception):
    """The recipe has come to `fit`, and its step is traced."""

    def __init__(self, step: Step):
        super().__init__()
        self.step = step


def capture(script: Path, arguments: list[str], devices: list[Any]) -> Step:
    """The step of `SCRIPT [PRESET] [--flags]` on the devices. Raises ZooError for what the recipe finds wrong."""
    recipe, config = configured(script, arguments)
    recipe.fit = take
    recipe.make_mesh = lambda sizes: make_mesh(sizes, devices)
    for name, instead in (("load_images", images_instead), ("load_text", text_instead)):
        if hasattr(recipe, name):
            setattr(recipe, name, either(instead, getattr(recipe, name)))
    if hasattr(recipe, "load_codec"):  # it starts from a decoder
        recipe.load_codec = either(codec_instead, recipe.load_codec)
    try:
        with as_on_tpu(), mock.patch.object(zoo, "load", either(decoder_instead, zoo.load)):
            recipe.main(config, Run(config, "plan"))
    except Captured as captured:
        return captured.step
    raise ZooError(f"{script} ended without a call of fit(); its step is not known")


def configured(script: Path, arguments: list[str]) -> tuple[Any, Any]:
    """A recipe's module, and its config for `[PRESET] [--flags]`. Raises ZooError for what the recipe finds wrong."""
    recipe: Any = load_script(script)
    return recipe, parse([*arguments, "--run", "planned"], script.stem, recipe.PRESETS, recipe.__doc__)[1]


def load_script(path: Path) -> Any:
    """A recipe as a module of its own. Raises ZooError where there is none."""
    if not path.is_file():
        raise ZooError(f"there is no {path}; give a recipe, such as experiments/cnn.py")
    name = f"planned_{path.stem}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their own module up
    loader.exec_module(module)
    if not hasattr(module, "PRESETS") or not hasattr(module, "main"):
        raise ZooError(f"{path} is no recipe: it has no PRESETS and main")
    return module


def either(instead: Callable[[Any], Any], read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Data that stands in where there is some, or what is read."""
    return lambda config: instead(config) or read(config)


def decoder_instead(source: str) -> Any:
    """New weights for the name of a published decoder, of which a plan needs the shapes; None for others."""
    return zoo.create(source) if source in VARIANTS else None


def codec_instead(source: str) -> Bytes | None:
    """Bytes for the tokenizer of such a decoder."""
    return Bytes() if source in VARIANTS else None


def text_instead(config: TextConfig) -> Text | None:
    """Tokens without a text, of a tokenizer whose size is known; None for others, which are read."""
    if config.tokenizer not in SIZES:
        return None
    codec = Bytes()
    codec.vocab_size = SIZES[config.tokenizer]
    tokens = np.broadcast_to(np.zeros((), np.min_scalar_type(codec.vocab_size - 1)), 2**20)
    return Text(tokens, tokens, codec, bytes_per_token=4.0, name="planned")


def images_instead(config: Any) -> tuple[Images, Images] | None:
    """Images without pixels, of a data set whose shape is known; None for others, which are read."""
    if config.source not in KNOWN:
        return None
    height, width, channels, classes, count = KNOWN[config.source]
    size = (config.size, config.size) if config.size else (height, width)
    names = tuple(str(i) for i in range(classes))
    parts = [
        Images(
            np.broadcast_to(np.uint8(0), (n, *size, channels)), np.arange(n, dtype=np.int32) % classes, names, "planned"
        )
        for n in (count, count // 5)
    ]
    return parts[0], parts[1]


def take(config: TrainConfig, run: Run, **options: Any) -> None:
    """In place of `fit`: traces what `fit` would, and raises it as `Captured`."""
    mesh, batches, given = options["mesh"], options["batches"], options.get("given", ())
    check_batch(config.batch, config.accumulate, mesh)
    stride = config.steps_per_dispatch
    batches = batches.resident(stride) if stride > 1 else batches
    make = make_init(options["init"], options["tx"], config.seed, bool(config.ema))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # eager operations must not land on these devices
        state = abstract_state(make, options.get("rules", ()), mesh, given)
        inputs = [shapes_of(batches.rows(0), NamedSharding(mesh, BATCH))]
        if stride > 1:
            inputs.append([shapes_of(batches.arrays, replicated(mesh))])

        def trace() -> Any:
            step = make_step(options["update"], config.seed, state, mesh, resident=stride > 1)
            return step.trace(state, *inputs[:1], *(inputs[1] if stride > 1 else []))

        traced = trace()
        needed = traced.jaxpr
        if AGAIN & {equation.primitive.name for equation in equations(needed)}:
            with keeping_all():
                needed = trace().jaxpr
    counted, kept = tally(traced.jaxpr), tally(needed)
    counts = kept.needed / stride, counted.flops / stride
    raise Captured(Step(traced, state, inputs, counted.kernels, *counts, config, mesh))


@contextlib.contextmanager
def keeping_all() -> Iterator[None]:
    """While it lasts nothing is computed again to save memory: `jax.checkpoint` is the identity."""
    before = jax.checkpoint
    jax.checkpoint = lambda fn, **_: fn
    try:
        yield
    finally:
        jax.checkpoint = before


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, and of those that they hold."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in subjaxprs(equation):
            yield from equations(inner)


def shapes_of(arrays: Any, sharding: NamedSharding) -> Any:
    """Shapes of host arrays as they would lie on the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)
