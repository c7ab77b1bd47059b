"""Dialogues and preferences as token rows: read from JSON lines, rendered by a chat template, masked, packed."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.data.template import CHATML, MARKS, TURNS, Message, render
from zoo.data.text import Codec
from zoo.errors import ZooError, unknown

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_LINE = 2**24  # bytes
_SHOWN = 20  # bad lines that an error names

Messages = list[Message]
Arrays = dict[str, Any]  # arrays [N, ...], or dicts of such


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Tokens int32 [n], and `mask` float32 [n]: 1 where the assistant wrote, the token that ends its turn too."""

    tokens: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """A source in memory: arrays of N rows (or dicts of such), and notes on what a person should know of them."""

    arrays: Arrays
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(_leaves(self.arrays)))

    def __getitem__(self, indices: np.ndarray) -> Arrays:
        return _pick(self.arrays, indices)


def template_of(codec: Codec) -> str:
    """The chat template of a codec: its own, else ChatML for subwords, TURNS for characters and bytes."""
    subwords = hasattr(codec, "names")
    return getattr(codec, "chat_template", "") or (CHATML if subwords else TURNS)


def encode_prompt(
    messages: Sequence[Message], codec: Codec, template: str = "", names: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Token ids int32 [n] after which the assistant's next answer comes.

    Control tokens come from the template only: what messages hold stays text. `names` as in `render`.
    """
    make, mark = _renderer(messages, codec, template or template_of(codec), names)
    return _encode([make(len(messages), True)], codec, mark)[0]


def encode_dialogue(
    messages: Sequence[Message],
    codec: Codec,
    template: str = "",
    names: Mapping[str, Any] | None = None,
    learn_from: int = 0,
) -> Dialogue:
    """A dialogue with the mask of what the assistant wrote, in messages `learn_from` and later.

    An answer is what the dialogue up to it has beyond the prompt before it, so any template will do whose text only
    grows as messages are added; ZooError for one that rewrites earlier turns. No token lies across the border of a
    prompt and its answer, as none does when the model writes. `names` as in `render`.
    """
    make, mark = _renderer(messages, codec, template or template_of(codec), names)
    whole = make(len(messages), False)
    controls = tuple(getattr(codec, "specials", ()))
    parts: list[tuple[str, bool]] = []
    at = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < learn_from:
            continue
        prompt, answered = make(i, True), make(i + 1, False)
        if len(prompt) < at or not answered.startswith(prompt) or not whole.startswith(answered):
            raise ZooError(
                f"the chat template changes what came before when message {i + 1} is added, so that what the assistant "
                "wrote cannot be told apart; give the dialogue only up to that answer, or another template"
            )
        answer = answered[len(prompt) :]
        if answer.rstrip().endswith(controls or ("\0",)):  # white space after the end of a turn is never written
            answer = answer.rstrip()
        parts += [(whole[at : len(prompt)], False), (answer, True)]
        at = len(prompt) + len(answer)
    parts.append((whole[at:], False))
    ids = _encode([text for text, _ in parts], codec, mark)
    mask = [np.full(len(part), learned, np.float32) for part, (_, learned) in zip(ids, parts, strict=True)]
    return Dialogue(np.concatenate(ids), np.concatenate(mask))


def end_ids(codec: Codec, template: str = "") -> tuple[int, ...]:
    """The tokens that end an answer: the first that the template puts after one, and those that the codec names."""
    template = template or template_of(codec)
    messages = [{"role": "user", "content": "Q9"}, {"role": "assistant", "content": "A9"}]
    make, _ = _renderer(messages, codec, template, None)
    after = make(2, False).partition("A9")[2]
    ends = tuple(getattr(codec, "ends", ()))
    if not after:
        return ends
    first = int(_encode(["", after], codec, "")[1][0])
    return (first, *(i for i in ends if i != first))


def pack(dialogues: Sequence[Dialogue], context: int, pad: int = 0) -> Rows:
    """Puts dialogues into rows of `context` predictions, several in a row: the longest first, each where it fits first.

    {"tokens" int32 [N, T + 1], "documents" int32 [N, T] (1, 2 ... within a row, 0 on padding), "positions" int32
    [N, T] (from 0 in each document), "mask" float32 [N, T], the weight of predicting tokens[:, 1:]}. Nothing is
    predicted across the border of two dialogues. One that is too long is cut after its last whole answer that fits,
    so that every answer that is learned has its end; where none fits it is dropped. The notes count both.
    """
    if context < 1:
        raise ZooError(f"context is {context}: it must be at least 1")
    width = context + 1
    fitting, cut = [], 0
    for dialogue in dialogues:
        tokens, mask = dialogue.tokens, dialogue.mask
        if len(tokens) > width:
            ends = np.flatnonzero((mask > 0) & (np.append(mask[1:], 0) == 0))
            length = int(ends[ends < width].max(initial=-1)) + 1
            tokens, mask, cut = tokens[:length], mask[:length], cut + (length > 0)
        if len(tokens) > 1:
            fitting.append((tokens, mask))
    dropped = len(dialogues) - len(fitting)
    if not fitting:
        raise ZooError(f"none of {len(dialogues)} dialogues fits a context of {context} tokens; give a longer one")
    notes = [f"{cut} dialogues longer than {width} tokens cut after a whole answer"] if cut else []
    notes += [f"{dropped} dialogues dropped: no answer within {width} tokens"] if dropped else []

    room = np.full(len(fitting), width)  # of all the rows that there could be
    count = 0
    places = []
    for i in sorted(range(len(fitting)), key=lambda i: -len(fitting[i][0])):
        row = int(np.argmax(room[: count + 1] >= len(fitting[i][0])))
        places.append((row, width - int(room[row]), i))
        room[row] -= len(fitting[i][0])
        count = max(count, row + 1)

    tokens_nt = np.full((count, width), pad, np.int32)
    documents_nt, positions_nt = np.zeros((2, count, width), np.int32)
    mask_nt = np.zeros((count, width), np.float32)
    for row, start, i in places:
        tokens, mask = fitting[i]
        at = slice(start, start + len(tokens))
        tokens_nt[row, at] = tokens
        documents_nt[row, at] = documents_nt[row].max() + 1
        positions_nt[row, at] = np.arange(len(tokens))
        mask_nt[row, start + 1 : start + len(tokens)] = mask[1:]
    arrays = {"tokens": tokens_nt, "documents": documents_nt[:, :-1], "positions": positions_nt[:, :-1]}
    return Rows(arrays | {"mask": mask_nt[:, 1:]}, tuple(notes))


def encode_preferences(
    pairs: Sequence[Mapping[str, Messages]], codec: Codec, context: int, template: str = "", pad: int = 0
) -> Rows:
    """Pairs of answers: {"chosen", "rejected": {"tokens" int32 [N, T + 1], "mask" float32 [N, T]}}.

    The mask is the weight of predicting tokens[:, 1:]: 1 on the answer to compare, 0 on prompt and padding. A pair of
    which one side is too long is dropped, and counted in the notes: cut answers could not be compared.
    """
    if context < 1:
        raise ZooError(f"context is {context}: it must be at least 1")
    kept: list[list[Dialogue]] = []
    for pair in pairs:
        prompt = pair["prompt"]
        both = [prompt + pair[side] for side in ("chosen", "rejected")]
        encoded = [encode_dialogue(messages, codec, template, learn_from=len(prompt)) for messages in both]
        if all(len(dialogue.tokens) <= context + 1 for dialogue in encoded):
            kept.append(encoded)
    if not kept:
        raise ZooError(f"none of {len(pairs)} pairs fits a context of {context} tokens; give a longer one")
    arrays: Arrays = {}
    for k, side in enumerate(("chosen", "rejected")):
        tokens_nt = np.full((len(kept), context + 1), pad, np.int32)
        mask_nt = np.zeros((len(kept), context + 1), np.float32)
        for row, dialogue in enumerate(encoded[k] for encoded in kept):
            tokens_nt[row, : len(dialogue.tokens)] = dialogue.tokens
            mask_nt[row, : len(dialogue.mask)] = dialogue.mask
        arrays[side] = {"tokens": tokens_nt, "mask": mask_nt[:, 1:]}
    dropped = len(pairs) - len(kept)
    return Rows(arrays, (f"{dropped} pairs dropped: longer than {context + 1} tokens",) if dropped else ())


def read_dialogues(path: str | pathlib.Path, skip_broken: bool = False) -> tuple[list[Messages], tuple[str, ...]]:
    """Dialogues of a file with a JSON object a line, {"messages": [{"role", "content"}, ...]}, and notes.

    Raises ZooError with the numbers of all bad lines, or leaves them out and counts them in the notes.
    """

    def parse(data: Any) -> Messages:
        messages = _messages(data.get("messages") if isinstance(data, dict) else None, "messages")
        if not any(message["role"] == "assistant" for message in messages):
            raise ZooError("no message is the assistant's, so there is nothing to learn")
        return messages

    return _read_lines(pathlib.Path(path).expanduser(), parse, skip_broken)


def read_preferences(
    path: str | pathlib.Path, skip_broken: bool = False
) -> tuple[list[dict[str, Messages]], tuple[str, ...]]:
    """Pairs of a file with a JSON object a line, {"prompt", "chosen", "rejected"}, each text or messages, and notes.

    All three come back as messages: a prompt of text is the user's, an answer of text the assistant's.
    """

    def parse(data: Any) -> dict[str, Messages]:
        if not isinstance(data, dict):
            raise ZooError("not an object with prompt, chosen and rejected")
        pair = {}
        for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            value = data.get(key)
            pair[key] = _messages([{"role": role, "content": value}] if isinstance(value, str) else value, key)
        for key in ("chosen", "rejected"):
            if pair[key][-1]["role"] != "assistant":
                raise ZooError(f"{key} does not end with an answer of the assistant")
        if pair["chosen"] == pair["rejected"]:
            raise ZooError("chosen and rejected are the same")
        return pair

    return _read_lines(pathlib.Path(path).expanduser(), parse, skip_broken)


def _read_lines(
    path: pathlib.Path, parse: Callable[[Any], Any], skip_broken: bool
) -> tuple[list[Any], tuple[str, ...]]:
    found, bad = [], []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MOST_LINE:
                raise ZooError(f"longer than {MOST_LINE >> 20} MiB")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            found.append(parse(json.loads(text)))
        except (ValueError, RecursionError) as error:  # ZooError, and those of json and UTF-8, are ValueErrors
            bad.append(f"line {number}: {str(error) or type(error).__name__}")
    if bad and not skip_broken:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        listed = "\n".join(f"  {line}" for line in bad[:_SHOWN] + more)
        count = f"{len(bad)} of {len(found) + len(bad)} lines cannot be used (skip_broken leaves them out)"
        raise ZooError(f"{path}: {count}:\n{listed}")
    if not found:
        raise ZooError(f"{path} has no line that can be used; it needs a JSON object on every line")
    return found, (f"{len(bad)} of {len(found) + len(bad)} lines left out, first {bad[0]}",) if bad else ()


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only the beginning."""
    try:
        with path.open("rb") as file:
            while line := file.readline(MOST_LINE + 1):
                rest = line
                while len(rest) > MOST_LINE and not rest.endswith(b"\n"):
                    rest = file.readline(MOST_LINE + 1)
                yield line
    except OSError as error:
        raise ZooError(f"cannot read {path}: {error.strerror}") from None


def _messages(value: Any, key: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise ZooError(f"{key!r} is not a list of messages")
    for i, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise ZooError(f"message {i} of {key!r} is not an object with role and content")
        if message.get("role") not in ROLES:
            raise ZooError(f"message {i} of {key!r}: {unknown('role', str(message.get('role')), ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ZooError(f"message {i} of {key!r} has no text as its content")
    return value


def _renderer(
    messages: Sequence[Message], codec: Codec, template: str, names: Mapping[str, Any] | None
) -> tuple[Callable[[int, bool], str], str]:
    """Renders the first n messages, with a prompt or without. And the character in them that keeps their text from
    being control tokens; empty where there could be none."""
    specials = tuple(getattr(codec, "specials", ()))
    messages = _messages(list(messages), "messages") if messages else []
    for message in messages:
        for text in _texts(message):
            for mark in MARKS.get(template, ()):
                if mark in text and mark not in specials:
                    raise ZooError(f"a message holds {mark!r}, with which this template marks turns; take it out")
    texts = [text for message in messages for text in _texts(message)]
    breaker = ""
    if any(_could_be(text, specials) for text in texts):
        used = {character for text in (*texts, template) for character in text}
        breaker = next(chr(point) for point in range(0xE000, 0xF8FF) if chr(point) not in used)
        messages = [_break(message, specials, breaker) for message in messages]
    given = {**getattr(codec, "names", {}), **(names or {})}

    def make(count: int, prompt: bool) -> str:
        return render(messages[:count], template, prompt, given)

    return make, breaker


@functools.lru_cache(maxsize=8)
def _parts_of(specials: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...], tuple[str, ...]]:
    """A pattern of the control tokens, all that they can begin with, and all that they can end with."""
    begins = {token[:n] for token in specials for n in range(1, len(token))}
    ends = {token[-n:] for token in specials for n in range(1, len(token))}
    return re.compile("|".join(map(re.escape, specials)) or r"(?!)"), tuple(begins), tuple(ends)


def _could_be(text: str, specials: tuple[str, ...]) -> bool:
    """Whether a text holds a control token, or could be one together with what a template puts before or after it."""
    pattern, begins, ends = _parts_of(specials)
    core = text.strip()
    return core.endswith(begins) or core.startswith(ends) or pattern.search(text) is not None


def _break(value: Any, specials: tuple[str, ...], breaker: str) -> Any:
    """Puts `breaker` into every control token in the texts of a value, and at the ends that could become one."""
    if isinstance(value, dict):
        return {key: _break(item, specials, breaker) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_break(item, specials, breaker) for item in value]
    if not isinstance(value, str) or not _could_be(value, specials):
        return value
    for token in sorted(specials, key=len, reverse=True):
        if len(token) == 1 and token in value:
            raise ZooError(f"a message holds {token!r}, a control token of one character; take it out")
        value = value.replace(token, token[0] + breaker + token[1:])
    core = value.strip()
    start = value.index(core)
    return value[:start] + breaker + core + breaker + value[start + len(core) :]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _encode(parts: list[str], codec: Codec, mark: str) -> list[np.ndarray]:
    encode_parts = getattr(codec, "encode_parts", None)
    ids = encode_parts(parts, mark) if encode_parts else [codec.encode(part) for part in parts]
    return [part.astype(np.int32) for part in ids]


def _leaves(arrays: Arrays) -> Iterator[np.ndarray]:
    for value in arrays.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _pick(arrays: Arrays, indices: np.ndarray) -> Arrays:
    return {key: _pick(x, indices) if isinstance(x, dict) else x[indices] for key, x in arrays.items()}
