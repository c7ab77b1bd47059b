"""Subword tokenizers over the `tokenizers` library, a new one from a text, and text from a stream of ids.

Control tokens, such as <|im_end|>, count only where the caller says so: text of strangers cannot hold any.
"""

import codecs
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from zoo.data.text import REPLACEMENT, Codec
from zoo.errors import ZooError

MOST_TOKENS = 2**20
CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES = ("bos", "eos", "pad", "unk")
# Control tokens that end a text or a turn in published tokenizers, beside the one that these call eos.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")
_CHUNK = 2**20  # characters that are encoded at a time, so that a long text does not fill the memory


class Subwords:
    """Subword tokens over the `tokenizers` library. `spec` is a tokenizer.json as a dict.

    `specials` maps the text of each control token to its id; bos, eos, pad and unk are ids or None; `start` are
    the ids that the tokenizer itself puts before a text (Llama's BOS, nothing for GPT-2); `ends` those that end one.
    """

    def __init__(self, spec: dict[str, Any], roles: Mapping[str, str | None] | None = None, chat_template: str = ""):
        """`roles` names the bos, eos, pad and unk tokens. Raises ZooError for a tokenizer that cannot be."""
        added = _check(spec)
        self._tokenizer = _build(spec)
        self._lock = threading.Lock()  # whether control tokens are seen is a setting of the shared tokenizer
        self.chat_template = chat_template
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        if sorted(vocab.values()) != list(range(len(vocab))) or any(vocab.get(t) != i for t, i in added.items()):
            raise ZooError("the ids of this tokenizer do not count up from 0, or are not those that it gives itself")
        self._roles = {role: token for role, token in (roles or {}).items() if token is not None}
        for role, token in self._roles.items():
            if token not in vocab:
                raise ZooError(f"the {role} token {token!r} is not in the vocabulary of {len(vocab)} tokens")
        self._tokenizer.add_special_tokens(sorted(set(self._roles.values())))
        tokens = self._tokenizer.get_added_tokens_decoder()
        controls = {token.content for token in tokens.values() if token.special} | set(self._roles.values())
        self.specials = {token: vocab[token] for token in sorted(controls, key=vocab.__getitem__)}
        self.bos, self.eos, self.pad, self.unk = (vocab.get(self._roles.get(role, "")) for role in ROLES)
        self.ends = () if self.eos is None else (self.eos,)
        self.ends += tuple(i for token, i in self.specials.items() if token in _ENDS and i not in self.ends)
        self._byte_level, self.strips = _decoding(spec)
        to_bytes = _byte_level_bytes if self._byte_level else _metaspace_bytes
        plain = {i: token.content.encode("utf-8", "replace") for i, token in tokens.items()}
        self._pieces = [plain.get(i) or to_bytes(token) for token, i in sorted(vocab.items(), key=lambda item: item[1])]
        self._dtype = np.min_scalar_type(len(vocab) - 1)
        # A vocabulary can hold a control token's text as an ordinary piece too, so that plain text would give it.
        self._banned = np.zeros(len(vocab), bool)
        self._banned[[i for i in self.specials.values() if i != self.unk]] = True
        with_start, without = (self._tokenizer.encode("a", add_special_tokens=on).ids for on in (True, False))
        self.start = tuple(with_start[: with_start.index(without[0])]) if without else ()

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Token ids [n]. Only with `special` does the text of a control token become that token.

        Without it "<|im_end|>" is ten characters as any others, so text of strangers cannot end a turn.
        """
        chunks = _chunks(without_surrogates(text)) if self._byte_level and not special else [without_surrogates(text)]
        ids = np.concatenate([np.asarray(self._encode(chunk, special).ids, self._dtype) for chunk in chunks])
        if not special and self._banned[ids].any():
            found = self._pieces[int(ids[self._banned[ids].argmax()])].decode("utf-8", "replace")
            raise ZooError(
                f"the text holds the control token {found!r} in a way that cannot be told from it; take it out"
            )
        return ids

    def encode_parts(self, parts: list[str], mark: str = "") -> list[np.ndarray]:
        """Ids of each part of a text in which control tokens count, with no token across the border of two parts.

        A `mark` is a character that was put into control tokens to make them plain text; it is taken out.
        """
        if mark and any(mark in part for part in parts):
            return [self._encode_marked(part, mark) for part in parts]
        text = "".join(parts)
        if text != without_surrogates(text):
            return self.encode_parts([without_surrogates(part) for part in parts])
        found = self._encode(text, special=True)
        ids, ends = np.asarray(found.ids, self._dtype), np.asarray([end for _, end in found.offsets], int)
        starts = np.asarray([start for start, _ in found.offsets], int)
        borders = np.cumsum([len(part) for part in parts])[:-1]
        for i, border in enumerate(borders, start=1):
            if np.any((starts < border) & (border < ends)):  # a token lies across: cut the text itself
                return self.encode_parts(parts[:i]) + self.encode_parts(parts[i:])
        return np.split(ids, np.searchsorted(starts, borders))

    def decode(self, ids: Any, skip_special: bool = False) -> str:
        """Text of ids. Ids beyond the vocabulary and bytes that are no UTF-8 become U+FFFD."""
        text = self.to_bytes(ids, skip_special).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips else text

    def to_bytes(self, ids: Any, skip_special: bool = False) -> bytes:
        """The UTF-8 of tokens, which may begin or end within a character."""
        skipped = set(self.specials.values()) if skip_special else ()
        return b"".join(pick(self._pieces, i) for i in np.ravel(ids).tolist() if i not in skipped)

    def to_json(self) -> dict[str, Any]:
        spec = json.loads(self._tokenizer.to_str())
        return {"codec": "subwords", "tokenizer": spec, "roles": self._roles, "chat_template": self.chat_template}

    @property
    def names(self) -> dict[str, str]:
        """What chat templates call the control tokens: bos_token, eos_token, pad_token, unk_token."""
        return {f"{role}_token": token for role, token in self._roles.items()}

    def files(self) -> dict[str, str]:
        """Contents of tokenizer.json and tokenizer_config.json, as Hugging Face's libraries read them."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= self.names
        if self.chat_template:
            config["chat_template"] = self.chat_template
        return {"tokenizer.json": self._tokenizer.to_str(), "tokenizer_config.json": json.dumps(config, indent=2)}

    def _encode(self, text: str, special: bool) -> Any:
        with self._lock:
            self._tokenizer.encode_special_tokens = not special
            return self._tokenizer.encode(text, add_special_tokens=False)

    def _encode_marked(self, text: str, mark: str) -> np.ndarray:
        found = []
        tokens = self._tokenizer.get_added_tokens_decoder()
        pattern = "|".join(  # the longest first, with the white space that a token takes along
            r"\s*" * token.lstrip + f"(?P<t{i}>{re.escape(token.content)})" + r"\s*" * token.rstrip
            for i, token in sorted(tokens.items(), key=lambda item: -len(item[1].content))
            if token.special
        )
        at = 0
        for match in re.finditer(pattern, text) if pattern else ():
            found += [self.encode(text[at : match.start()].replace(mark, "")), [int(str(match.lastgroup)[1:])]]
            at = match.end()
        return np.concatenate([*found, self.encode(text[at:].replace(mark, ""))]).astype(self._dtype)


class Stream:
    """Text from ids that come bit by bit: only whole characters come out, and all together they are `decode(all)`.

    `after` are ids that went before, as a prompt's; their text does not come out.
    """

    def __init__(self, codec: Codec, after: Any = (), skip_special: bool = False):
        self._codec: Any = codec
        self._skip = {"skip_special": True} if skip_special and hasattr(codec, "specials") else {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = getattr(codec, "strips", False)
        self.push(after)

    def push(self, ids: Any) -> str:
        """The text that these ids complete, perhaps none; ids [n] or one id."""
        if not hasattr(self._codec, "to_bytes"):  # Characters: each id is a text of its own
            return self._codec.decode(ids)
        return self._begin(self._utf8.decode(self._codec.to_bytes(ids, **self._skip)))

    def end(self) -> str:
        """What is left: U+FFFD where the last character has not come to its end."""
        return self._begin(self._utf8.decode(b"", final=True))

    def _begin(self, text: str) -> str:
        if text and self._strips:
            self._strips = False
            return text.removeprefix(" ")
        return text


def train_bpe(
    text: str, vocab_size: int, specials: tuple[str, ...] = CHAT_SPECIALS, single_digits: bool = False
) -> Subwords:
    """A new byte-level BPE tokenizer (GPT-2's way of cutting words) of at most `vocab_size` tokens.

    It holds the control tokens first, of which the first is eos and pad, then the 256 bytes, then merges: fewer
    than asked for where the text has no more pairs. The same text gives the same tokenizer. With `single_digits`
    each digit is a token, wherever it stands, so that numbers can be reckoned with.
    """
    import tokenizers

    if vocab_size < 256 + len(specials):
        raise ZooError(f"a vocabulary of {vocab_size} is too small: {256 + len(specials)} are bytes and control tokens")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    words: Any = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if single_digits:
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        words = tokenizers.pre_tokenizers.Sequence([digits, words])
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=sorted(_CHARACTER_OF_BYTE),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_chunks(without_surrogates(text)), trainer)
    return Subwords(json.loads(tokenizer.to_str()), dict.fromkeys(("eos", "pad"), specials[0]) if specials else {})


def subwords_from_json(data: dict[str, Any]) -> Codec:
    """What `to_json` of Subwords or SentencePiece gave. Raises ZooError for what is none."""
    try:
        if data["codec"] == "sentencepiece":
            from zoo.data.sentencepiece import SentencePiece

            tokens = [token.encode("latin-1") for token in data["tokens"]]
            return SentencePiece(tokens, [float(score) for score in data["scores"]])
        roles = {role: data["roles"].get(role) for role in ROLES}
        return Subwords(data["tokenizer"], roles, data["chat_template"])
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise ZooError(f"this codec is not whole ({type(error).__name__}: {error}); save it again") from None


def _check(spec: Any) -> dict[str, int]:
    """The added tokens and ids of a tokenizer.json that is looked over before the library, which panics on some."""
    model = spec.get("model") if isinstance(spec, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = (spec.get("added_tokens") or []) if isinstance(spec, dict) else []
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise ZooError("this is not a tokenizer.json: it has no model with a vocabulary")
    if not all(isinstance(t, dict) and isinstance(t.get("content"), str) and _is_id(t.get("id")) for t in added):
        raise ZooError("an entry of added_tokens has no text or no id")
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    if not all(_is_id(i) for i in ids) or len(set(ids)) != len(ids):
        raise ZooError("the vocabulary gives a token no id, or one id to two tokens")
    both = {*ids, *(token["id"] for token in added)}
    if not both or len(both) > MOST_TOKENS:
        raise ZooError(f"the vocabulary has {len(both)} tokens; at least 1 and at most {MOST_TOKENS:,} can be")
    if max(both) != len(both) - 1:
        hole = next(i for i in range(len(both)) if i not in both)
        raise ZooError(f"the vocabulary has {len(both)} tokens and ids up to {max(both)}, but none of id {hole}")
    return {token["content"]: token["id"] for token in added}


def _build(spec: dict[str, Any]) -> Any:
    import tokenizers

    def untrimmed(part: Any) -> Any:  # so that the offsets of a token cover the space that it begins with
        if isinstance(part, list):
            return [untrimmed(item) for item in part]
        if not isinstance(part, dict):
            return part
        return {key: False if key == "trim_offsets" else untrimmed(value) for key, value in part.items()}

    spec = spec | {"truncation": None, "padding": None, "post_processor": untrimmed(spec.get("post_processor"))}
    if spec["model"].get("dropout"):  # it would draw the merges at random
        spec["model"] = spec["model"] | {"dropout": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ZooError(f"the tokenizers library cannot read it: {str(error)[:200]}") from None


def _decoding(spec: dict[str, Any]) -> tuple[bool, bool]:
    """Whether tokens are in GPT-2's spelling of bytes, and whether a text loses the space it begins with."""
    decoder = spec.get("decoder") or spec.get("pre_tokenizer") or {}
    try:
        parts = decoder.get("decoders") or decoder.get("pretokenizers") or [decoder]
        kinds = {part["type"] for part in parts}
        if "ByteLevel" in kinds:
            return True, False
        if kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
            spaces = [part for part in parts if part["type"] in ("Metaspace", "Strip")]
            return False, any(part.get("start") or part.get("prepend_scheme", "never") != "never" for part in spaces)
    except (AttributeError, TypeError, KeyError):
        kinds = set()
    named = " and ".join(sorted(kinds)) or "nothing"
    raise ZooError(f"it decodes by {named}; byte-level and SentencePiece-like tokenizers can be read")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def pick(pieces: list[bytes], i: int) -> bytes:
    return pieces[i] if 0 <= i < len(pieces) else REPLACEMENT.encode()


def without_surrogates(text: str) -> str:
    """Pairs of surrogates become their character, lone ones U+FFFD, as in UTF-8 there are none."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _chunks(text: str) -> Iterator[str]:
    """Long texts in parts, cut between a letter and a space: no pattern of byte-level BPE has a token across."""
    at = 0
    while len(text) - at > _CHUNK:
        cut = next((m.start() + 1 for m in _CUT.finditer(text, at + _CHUNK)), len(text))
        yield text[at:cut]
        at = cut
    yield text[at:]


_CUT = re.compile(r"[^\W\d_] (?=\S)")


def _spelling() -> Iterable[tuple[str, int]]:
    """GPT-2's printable character for each byte: Latin-1 where that is printable, else from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [(chr(b), b) for b in shown] + [(chr(0x100 + i), b) for i, b in enumerate(hidden)]


_CHARACTER_OF_BYTE = dict(_spelling())


def _byte_level_bytes(token: str) -> bytes:
    found = [_CHARACTER_OF_BYTE.get(character) for character in token]
    return token.encode("utf-8", "replace") if None in found else bytes(b for b in found if b is not None)


def _metaspace_bytes(token: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8", "replace")
