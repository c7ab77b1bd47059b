"""The names of the models: what there is, and how one is made."""

import dataclasses
import fnmatch
from typing import Any

from etils import epath
from flax import nnx

from zoo.errors import ZooError, unknown
from zoo.models import cnn, decoder, functional, gan, tokenizer, vae

FAMILIES = {"cnn": cnn, "decoder": decoder, "gan": gan, "tokenizer": tokenizer, "vae": vae}
MODELS = {
    "CNN": (cnn.CNNConfig, cnn.CNN),
    "ResNet": (cnn.ResNetConfig, cnn.ResNet),
    "Decoder": (decoder.DecoderConfig, decoder.Decoder),
    "GAN": (gan.GANConfig, gan.GAN),
    "Tokenizer": (tokenizer.TokenizerConfig, tokenizer.Tokenizer),
    "VAE": (vae.VAEConfig, vae.VAE),
}


def variants() -> dict[str, Any]:
    """Every named config, by name."""
    return {name: config for family in FAMILIES.values() for name, config in family.VARIANTS.items()}


def pretrained(pattern: str = "*") -> dict[str, epath.Path]:
    """The folders of weights that come with the package, by the name that `load` takes; those that match a pattern."""
    found = (epath.Path(__file__).parent / "pretrained").glob("*/model.safetensors")
    return {path.parent.name: path.parent for path in sorted(found) if fnmatch.fnmatch(path.parent.name, pattern)}


def names(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern such as "gpt*", sorted."""
    return sorted(fnmatch.filter(variants(), pattern))


def config_of(name: str, **overrides: Any) -> Any:
    """The config of a name, with some of its fields changed. Raises ZooError for an unknown name or field."""
    known = variants()
    if name not in known:
        raise unknown("model", name, known)
    return replace(known[name], overrides)


def replace(config: Any, overrides: dict[str, Any]) -> Any:
    """A config with some fields changed. Raises ZooError for an unknown field."""
    fields = [field.name for field in dataclasses.fields(config)]
    for key in overrides:
        if key not in fields:
            raise unknown(f"field of {type(config).__name__}", key, fields)
    return dataclasses.replace(config, **overrides)


def build(config: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The model of a config, with new weights."""
    for kind, model in MODELS.values():
        if type(config) is kind:
            return model(config, rngs=rngs)
    raise ZooError(f"{type(config).__name__} is not the config of a model; those are {', '.join(MODELS)}")


def abstract(config: Any) -> tuple[nnx.GraphDef, functional.Tree, functional.Tree]:
    """(graphdef, params, stats) of the model of a config, with shapes in place of arrays."""
    return functional.abstract(lambda rngs: build(config, rngs))


def create(name: str, *, seed: int = 0, **overrides: Any) -> nnx.Module:
    """A new model by name: `create("gpt2", vocab_size=50304)`. The weights follow from the seed."""
    return build(config_of(name, **overrides), nnx.Rngs(seed))


def file_of(config: Any) -> str:
    """The file that holds the model of a config, such as zoo/models/cnn.py."""
    return f"{type(config).__module__.replace('.', '/')}.py"
