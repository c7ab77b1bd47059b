"""`zoo list`, `zoo sample` and `zoo chat`. Thin: it parses, calls the library and prints."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from zoo.errors import ZooError, unknown
from zoo.generate.sampling import Sampling

WARM, GREEDY = Sampling(temperature=0.8), Sampling(temperature=0.0)


@dataclass(frozen=True)
class List:
    """List the models: name, parameters, the file that holds them, and which come with trained weights."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell pattern, such as "gpt*"."""

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from zoo.models import functional
        from zoo.weights.files import load_config
        from zoo.weights.registry import abstract, config_of, file_of, names, pretrained

        found = [(name, config_of(name), "") for name in names(self.pattern)]
        found += [(name, load_config(path), "bundled") for name, path in pretrained(self.pattern).items()]
        if not found:
            raise unknown("model", self.pattern, [*names(), *pretrained()])
        table = Table("name", "parameters", "file", "weights", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, config, weights in found:
            table.add_row(name, f"{functional.count(abstract(config)[1]):,}", file_of(config), weights)
        Console(soft_wrap=True).print(table)


@dataclass(frozen=True)
class Sample:
    """Let a trained decoder write."""

    source: tyro.conf.Positional[str]
    """Run folder, folder of zoo.save or of the transformers library, .gguf file, or .bin file of llama2.c."""
    prompt: str = "\n"
    """What it continues."""
    length: int = 400
    """Tokens to write, at most. What does not fit the context goes on from its last half."""
    n: int = 1
    """Texts to write."""
    stop: tuple[str, ...] = ()
    """Strings that end a text."""
    seed: int = 0
    """Fixes the choice."""
    tokenizer: str = ""
    """Tokenizer file or folder, where the weights come without one."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = WARM

    def run(self) -> None:
        from zoo.generate.decode import Generator

        generator = Generator(*_decoder(self.source, self.tokenizer))
        options: dict[str, Any] = {"sampling": self.sampling, "stop": self.stop, "seed": self.seed, "shift": True}
        if self.n == 1:
            _say(self.prompt)
            for piece in generator.stream(self.prompt, self.length, **options):
                _say(piece)
            _say("\n")
            return
        (texts,) = generator.complete([self.prompt], self.length, n=self.n, **options)
        for i, completion in enumerate(texts):
            _say(f"--- {i + 1} of {self.n}, ended by {completion.reason}\n{self.prompt}{completion.text}\n")


@dataclass(frozen=True)
class Chat:
    """Talk with a decoder that was fine-tuned for it. An empty line, or Ctrl-D, ends the talk."""

    source: tyro.conf.Positional[str]
    """As for sample."""
    system: str = ""
    """What is said before all else."""
    length: int = 256
    """Tokens of an answer, at most."""
    seed: int = 0
    """Fixes the answers."""
    tokenizer: str = ""
    """As for sample."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = GREEDY

    def run(self) -> None:
        from zoo.generate.chat import Chat as Talk

        talk = Talk(*_decoder(self.source, self.tokenizer), self.system, self.length)
        asking = sys.stdin.isatty()
        while True:
            if asking:
                _say("you: ")
            line = sys.stdin.readline()
            if not line.strip():
                return
            _say(f"{self.source}: " if asking else "")
            try:
                for piece in talk.reply(line.strip(), sampling=self.sampling, seed=self.seed):
                    _say(piece)
            except ZooError as error:
                if not asking:
                    raise
                _say(str(error))
            _say("\n")


def _decoder(source: str, tokenizer: str) -> tuple[Any, Any]:
    from zoo.models.decoder import Decoder
    from zoo.train.launch import start_jax
    from zoo.weights.files import load, load_codec

    start_jax()
    model = load(source)
    if not isinstance(model, Decoder):
        raise ZooError(f"{source} holds a {type(model).__name__}, which does not write; give a decoder's run")
    return model, load_codec(tokenizer or source)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
)


def main(argv: list[str] | None = None) -> None:
    """The `zoo` command. Exits with code 2 and one message for what the user can mend."""
    try:
        tyro.cli(Command, prog="zoo", description="A JAX/Flax model zoo.", args=argv).run()  # type: ignore[arg-type]
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
