"""`zoo list` and `zoo sample`. Thin: it parses, calls the library and prints."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from zoo.errors import ZooError, unknown


@dataclass(frozen=True)
class List:
    """List the models: name, parameters, and the file that holds them."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell pattern, such as "gpt*"."""

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from zoo.models import functional
        from zoo.weights.registry import abstract, config_of, family_of, names

        found = names(self.pattern)
        if not found:
            raise unknown("model", self.pattern, names())
        table = Table("name", "parameters", "file", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name in found:
            _, params, _ = abstract(config_of(name))
            table.add_row(name, f"{functional.count(params):,}", f"zoo/models/{family_of(name)}.py")
        Console(soft_wrap=True).print(table)


@dataclass(frozen=True)
class Sample:
    """Let a trained decoder write."""

    source: tyro.conf.Positional[str]
    """Run folder, or a folder that zoo.save wrote with a codec.json beside it."""
    prompt: str = "\n"
    """What it continues."""
    length: int = 400
    """Tokens to write."""
    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int = 0
    """Choose among the k likeliest tokens; 0 among all."""
    seed: int = 0
    """Fixes the choice."""

    def run(self) -> None:
        import jax
        import jax.numpy as jnp

        from zoo.generate.text import sample_tokens
        from zoo.models import functional
        from zoo.models.decoder import Decoder
        from zoo.weights.files import load, load_codec

        model, codec = load(self.source), load_codec(self.source)
        if not isinstance(model, Decoder):
            raise ZooError(f"{self.source} holds a {type(model).__name__}, which does not write; give a decoder's run")
        if not self.prompt or self.length < 1:
            raise ZooError("--prompt needs at least one character, and --length at least 1")
        prompt = jnp.asarray(codec.encode(self.prompt), jnp.int32)[None]
        graphdef, params, stats = functional.split(model)

        @jax.jit
        def write(params: functional.Tree, stats: functional.Tree) -> jax.Array:
            model = functional.merge(graphdef, params, stats)
            key, context = jax.random.key(self.seed), model.config.context
            return sample_tokens(model, prompt, self.length, context, key, self.temperature, self.top_k)

        print(codec.decode(jax.device_get(write(params, stats)[0])))


Command = Annotated[List, tyro.conf.subcommand("list")] | Annotated[Sample, tyro.conf.subcommand("sample")]


def main(argv: list[str] | None = None) -> None:
    """The `zoo` command. Exits with code 2 and one message for what the user can mend."""
    try:
        tyro.cli(Command, prog="zoo", description="A JAX/Flax model zoo.", args=argv).run()  # type: ignore[arg-type]
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
