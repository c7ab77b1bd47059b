"""The `zoo` command: its words and their flags. Thin: it parses, calls the library and prints."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from zoo.errors import ZooError, unknown
from zoo.generate.sampling import Sampling
from zoo.scenes import RANK

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
    """Let a trained decoder write, or a GAN or VAE make pictures."""

    source: tyro.conf.Positional[str]
    """Name (`zoo list`), run folder, folder of zoo.save or of the transformers library, .gguf file, or .bin file of
    llama2.c."""
    prompt: str = "\n"
    """What it continues."""
    length: int = 400
    """Tokens to write, at most. What does not fit the context goes on from its last half."""
    n: int | None = None
    """Texts to write, 1 if not given; or pictures, 64."""
    stop: tuple[str, ...] = ()
    """Strings that end a text."""
    seed: int = 0
    """Fixes the choice."""
    tokenizer: str = ""
    """Tokenizer file or folder, where the weights come without one."""
    out: Path = Path("samples.png")
    """File of the pictures."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = WARM

    def run(self) -> None:
        from zoo.generate.decode import Generator
        from zoo.models.gan import GAN
        from zoo.models.vae import VAE

        model = _model(self.source)
        if isinstance(model, GAN | VAE):
            self.draw(model)
            return
        generator = Generator(*_writer(model, self.source, self.tokenizer))
        options: dict[str, Any] = {"sampling": self.sampling, "stop": self.stop, "seed": self.seed, "shift": True}
        if self.n in (None, 1):
            _say(self.prompt)
            for piece in generator.stream(self.prompt, self.length, **options):
                _say(piece)
            _say("\n")
            return
        (texts,) = generator.complete([self.prompt], self.length, n=self.n, **options)
        for i, completion in enumerate(texts):
            _say(f"--- {i + 1} of {self.n}, ended by {completion.reason}\n{self.prompt}{completion.text}\n")

    def draw(self, model: Any) -> None:
        """The pictures in rows of eight, or in a square where they are more than 64; those of few pixels enlarged."""
        from PIL import Image

        from zoo.generate.latents import sample_pictures
        from zoo.generate.pictures import picture_grid
        from zoo.tour import check_file

        check_file(self.out)
        pictures = sample_pictures(model, 64 if self.n is None else self.n, self.seed)
        columns = min(len(pictures), max(8, math.isqrt(len(pictures))))
        Image.fromarray(picture_grid(pictures, columns, max(1, 64 // pictures.shape[1]))).save(self.out)
        _say(f"{self.out}\n")


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

        talk = Talk(*_writer(_model(self.source), self.source, self.tokenizer), self.system, self.length)
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


@dataclass(frozen=True)
class Draw:
    """Draw pictures of a sentence: "a small red star to the left of a large green square"."""

    text: tyro.conf.Positional[str]
    """What to draw; of scenes of one to four things."""
    model: str = "scenes"
    """Run folder of scenes.py, or the name of one that comes with the package."""
    n: int = 1
    """Pictures to draw."""
    size: int = 64
    """Pixels a side."""
    seed: int = 0
    """Fixes the choice."""
    rank: int = RANK
    """Draw so many for each that is kept, those that the model itself reads best."""
    out: Path = Path("drawing.png")
    """File of the picture; with more than one, a number is put before its ending."""

    def run(self) -> None:
        import zoo
        from zoo.tour import check_file
        from zoo.train.launch import start_jax

        check_file(self.out)
        start_jax()
        options: dict[str, Any] = {"model": self.model, "n": self.n, "seed": self.seed, "rank": self.rank}
        for i, image in enumerate(zoo.draw(self.text, width=self.size, height=self.size, **options)):
            file = self.out if self.n == 1 else self.out.with_stem(f"{self.out.stem}-{i + 1}")
            image.save(file)
            _say(f"{file}\n")


@dataclass(frozen=True)
class Tour:
    """Draw a sentence, describe the drawing, answer questions about it, and say where the chain held.

    Exits with code 1 where it broke.
    """

    text: tyro.conf.Positional[str] = "a blue circle with some spots"
    """What to draw."""
    model: str = "scenes"
    """As for draw."""
    seed: int = 0
    """Fixes the drawing and the questions."""
    out: Path = Path("tour.png")
    """File of the picture."""

    def run(self) -> None:
        from rich.console import Console

        from zoo.tour import check_file, tour
        from zoo.train.launch import start_jax

        check_file(self.out)
        start_jax()
        if not tour(self.text, self.model, self.seed, self.out, Console(soft_wrap=True, highlight=False)):
            sys.exit(1)


@dataclass(frozen=True)
class Doctor:
    """Tell what this machine trains on, and the commands that mend what is wrong with it.

    Exits with code 1 where training would stop, or could not be saved.
    """

    def run(self) -> None:
        from zoo.doctor import main

        sys.exit(main())


def _model(source: str) -> Any:
    from zoo.train.launch import start_jax
    from zoo.weights.files import load

    start_jax()
    return load(source)


def _writer(model: Any, source: str, tokenizer: str) -> tuple[Any, Any]:
    """A decoder with its codec."""
    from zoo.models.decoder import Decoder
    from zoo.weights.files import load_codec

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
    | Annotated[Draw, tyro.conf.subcommand("draw")]
    | Annotated[Tour, tyro.conf.subcommand("tour")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(argv: list[str] | None = None) -> None:
    """The `zoo` command. Exits with code 2 and one message for what the user can mend."""
    try:
        tyro.cli(Command, prog="zoo", description="A JAX/Flax model zoo.", args=argv).run()  # type: ignore[arg-type]
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
