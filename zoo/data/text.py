"""Text: codecs between strings and token ids, and the sources of text."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import tyro

from zoo.errors import ZooError, unknown

REPLACEMENT = "\ufffd"  # what Unicode shows for what cannot be decoded


class Codec(Protocol):
    """Strings to token ids and back. `to_json` is plain JSON that `codec_from_json` reads again."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """Token ids [n] in the smallest unsigned dtype that holds the vocabulary."""

    def decode(self, ids: Any) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


class Characters:
    """One token a character; `alphabet` is the sorted characters that are known."""

    def __init__(self, alphabet: str):
        self.alphabet = "".join(sorted(set(alphabet)))
        self._points = _points(self.alphabet)
        self._dtype = np.min_scalar_type(max(len(self.alphabet) - 1, 0))

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str) -> np.ndarray:
        """Raises ZooError, with character and position, for a character that is not in the alphabet."""
        points = _points(text)
        ids = np.searchsorted(self._points, points)
        known = np.isin(points, self._points)
        if not known.all():
            at = int(np.argmin(known))
            raise ZooError(
                f"character {text[at]!r} at position {at} is not among the {self.vocab_size} that this codec knows; "
                "leave it out, or train with the bytes codec, which knows every text"
            )
        return ids.astype(self._dtype)

    def decode(self, ids: Any) -> str:
        """Ids beyond the alphabet, which a padded vocabulary can give, become U+FFFD."""
        return "".join(self.alphabet[i] if 0 <= i < self.vocab_size else REPLACEMENT for i in np.ravel(ids).tolist())

    def to_json(self) -> dict[str, Any]:
        return {"codec": "chars", "alphabet": self.alphabet}


class Bytes:
    """One token a byte of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)

    def decode(self, ids: Any) -> str:
        """What is not UTF-8 becomes U+FFFD; so do ids beyond 255, as the byte 255 is in no UTF-8."""
        return self.to_bytes(ids).decode("utf-8", "replace")

    def to_bytes(self, ids: Any) -> bytes:
        ids = np.ravel(ids)
        return np.where((ids >= 0) & (ids < 256), ids, 255).astype(np.uint8).tobytes()

    def to_json(self) -> dict[str, Any]:
        return {"codec": "bytes"}


def codec_from_json(data: dict[str, Any]) -> Codec:
    """The codec that `to_json` described. Raises ZooError for what is none."""
    kind = data.get("codec") if isinstance(data, dict) else None
    if kind == "bytes":
        return Bytes()
    if kind == "chars":
        if not isinstance(data.get("alphabet"), str):
            raise ZooError("a chars codec needs its alphabet, one string of all characters")
        return Characters(data["alphabet"])
    if kind in ("subwords", "sentencepiece"):
        from zoo.data.tokenizer import subwords_from_json

        return subwords_from_json(data)
    raise unknown("codec", str(kind), ("bytes", "chars", "sentencepiece", "subwords"))


@dataclasses.dataclass(frozen=True)
class TextConfig:
    source: Annotated[str, tyro.conf.arg(aliases=["--data"])] = "pydoc"
    """pydoc (Python's own reference), text:PATH (a UTF-8 file, or a folder of .txt and .md), or dialogues (statements
    about the world that chat.py talks of)."""
    codec: Literal["chars", "bytes", "bpe"] = "chars"
    """What a token is: a character of the text, a byte of its UTF-8, or a subword learned from the training part."""
    holdout: float = 0.1
    """Share of the text, its end, that is kept for evaluation."""
    vocab_size: int = 1024
    """Subwords that bpe learns at most."""
    tokenizer: str = ""
    """A tokenizer to use instead of `codec`: a folder or file with tokenizer.json, or GPT-2's vocab and merges."""


@dataclasses.dataclass(frozen=True)
class Text:
    """Token streams [n] of the training and the held-out part, and what made them."""

    train: np.ndarray
    test: np.ndarray
    codec: Codec
    bytes_per_token: float
    """Of the held-out part: nats per token / (bytes_per_token · ln 2) = bits per byte."""
    name: str


def load_text(config: TextConfig) -> Text:
    """Reads, splits and encodes. The first 1 - holdout of the characters train, the rest is held out."""
    if not 0 < config.holdout < 1:
        raise ZooError(f"holdout is {config.holdout}: it is a share of the text, between 0 and 1")
    text, name = _read(config.source)
    cut = int(len(text) * (1 - config.holdout))
    if cut < 1 or len(text) - cut < 2:
        raise ZooError(
            f"{name} has {len(text)} characters, too few to train on some and hold {config.holdout:g} of them out; "
            "give more text or another --data.holdout"
        )
    codec = _codec(config, text, cut)
    train, test = codec.encode(text[:cut]), codec.encode(text[cut:])
    return Text(train, test, codec, len(text[cut:].encode()) / len(test), name)


def _codec(config: TextConfig, text: str, cut: int) -> Codec:
    if config.tokenizer:
        from zoo.data.tokenizer_files import load_tokenizer

        return load_tokenizer(config.tokenizer)
    if config.codec == "bpe":
        from zoo.data.tokenizer import train_bpe

        learned = text[:cut]
        if config.source == "dialogues":  # the words of questions and of who speaks, too
            from zoo.data.dialogues import load_dialogues

            messages = [message for row in load_dialogues()[0] for message in row["messages"]]
            learned += "\n".join(f"{message['role']}\n{message['content']}" for message in messages)
        return train_bpe(learned, config.vocab_size, single_digits=config.source == "dialogues")
    if config.codec == "chars" and config.source == "dialogues":
        from zoo.data.dialogues import CHARACTERS

        return Characters(CHARACTERS)  # with the marks around turns, which come later
    return Bytes() if config.codec == "bytes" else Characters(text)


def _read(source: str) -> tuple[str, str]:
    """The text of a source and a short name for it."""
    kind, _, path = source.partition(":")
    if source == "pydoc":
        from pydoc_data.topics import topics

        return "\n".join(topics[topic] for topic in sorted(topics)), "pydoc"
    if source == "dialogues":
        from zoo.data.dialogues import dialogue_corpus

        return dialogue_corpus(lines=40_000), "dialogues"
    if kind != "text":
        raise unknown("text source", source, ("pydoc", "text:PATH", "dialogues"))
    if not path:
        raise ZooError("text: needs a path, as in text:book.txt")
    root = pathlib.Path(path).expanduser()
    if root.is_dir():
        files = sorted(file for file in root.rglob("*") if file.suffix in (".txt", ".md") and file.is_file())
        if not files:
            raise ZooError(f"{root} holds no .txt or .md file")
    elif root.is_file():
        files = [root]
    else:
        raise ZooError(f"there is no file or folder {root}; text:PATH is relative to {pathlib.Path.cwd()}")
    text = "\n".join(_read_file(file) for file in files)
    if not text.strip():
        raise ZooError(f"{root} is empty: there is no text to learn from")
    return text, root.stem


def _read_file(file: pathlib.Path) -> str:
    try:
        return file.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ZooError(
            f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            "convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from None
    except OSError as error:
        raise ZooError(f"cannot read {file}: {error.strerror}") from None


def _points(text: str) -> np.ndarray:
    """The code points of a string, uint32 [n]; lone surrogates pass, to be named as unknown characters."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
