"""`zoo list`: what there is. Thin: it parses, calls the library and prints."""

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
        from zoo.weights.registry import build, config_of, family_of, names

        found = names(self.pattern)
        if not found:
            raise unknown("model", self.pattern, names())
        table = Table("name", "parameters", "file", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name in found:
            config = config_of(name)
            _, params, _ = functional.abstract(lambda rngs, config=config: build(config, rngs))
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
        from zoo.generate.text import write

        print(write(self.source, self.prompt, self.length, self.temperature, self.top_k, self.seed))


Command = Annotated[List, tyro.conf.subcommand("list")] | Annotated[Sample, tyro.conf.subcommand("sample")]


def main(argv: list[str] | None = None) -> None:
    """The `zoo` command. Exits with code 2 and one message for what the user can mend."""
    try:
        tyro.cli(Command, prog="zoo", description="A JAX/Flax model zoo.", args=argv).run()  # type: ignore[arg-type]
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
