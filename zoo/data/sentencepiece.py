"""SentencePiece's byte-pair tokens, as llama2.c writes them to a file."""

import functools
import heapq
import re
import struct
from typing import Any

import numpy as np

from zoo.data.text import REPLACEMENT
from zoo.data.tokenizer import pick, without_surrogates
from zoo.errors import ZooError


class SentencePiece:
    """Byte-pair tokens merged by score, as SentencePiece's BPE and llama2.c's `tokenizer.bin` have them.

    Ids 0, 1, 2 are unknown, BOS and EOS. A text is encoded as if a space went before it, then characters (those that
    are no token: bytes, `<0x41>`) are merged, the pair of the best score first, of equals the leftmost.
    """

    chat_template = ""
    unk, bos, eos, pad = 0, 1, 2, None
    start, ends = (1,), (1, 2)  # llama2.c ends a text at BOS, which stories are separated by
    strips = True

    def __init__(self, tokens: list[bytes], scores: list[float]):
        self._tokens, self._scores = tokens, scores
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens)))}
        self.specials: dict[str, int] = {}  # control tokens have no text of their own here
        missing = [b for b in range(256) if b"<0x%02X>" % b not in self._ids]
        if len(tokens) != len(scores) or len(tokens) < 3 or missing or b" " not in self._ids:
            raise ZooError(
                "a SentencePiece vocabulary needs a score per token, a space, and the bytes <0x00> to <0xFF>"
            )
        self._bytes = [self._ids[b"<0x%02X>" % b] for b in range(256)]
        byte = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
        found = [byte.fullmatch(token) for token in tokens]
        self._pieces = [bytes([int(m[1], 16)]) if m else t for m, t in zip(found, tokens, strict=True)]
        self._pieces[:3] = [REPLACEMENT.encode(), b"", b""]
        # Where no token has a space after something else, words merge apart from each other.
        self._words = None if any(re.search(rb"[^ ] ", t) for t in tokens[3:]) else re.compile(r" +[^ ]*|[^ ]+")
        self._dtype = np.min_scalar_type(len(tokens) - 1)
        self._merged = functools.lru_cache(maxsize=2**15)(self._merge)

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, special: bool = False, prefix: bool = True) -> np.ndarray:
        """Token ids [n], without BOS; `prefix` puts the space before the text. No text becomes a control token."""
        text = " " * (prefix and bool(text)) + without_surrogates(text)
        words = [text] if self._words is None else self._words.findall(text)
        return np.asarray([i for word in words for i in self._merged(word)], self._dtype)

    def encode_parts(self, parts: list[str], mark: str = "") -> list[np.ndarray]:
        """As `Subwords.encode_parts`; only the first part gets the space."""
        return [self.encode(part.replace(mark, "") if mark else part, prefix=not i) for i, part in enumerate(parts)]

    def decode(self, ids: Any, skip_special: bool = False) -> str:
        """Text of ids, without the space that encoding put before it. BOS and EOS have no text."""
        return self.to_bytes(ids).decode("utf-8", "replace").removeprefix(" ")

    def to_bytes(self, ids: Any, skip_special: bool = False) -> bytes:
        return b"".join(pick(self._pieces, i) for i in np.ravel(ids).tolist())

    def to_json(self) -> dict[str, Any]:
        tokens = [token.decode("latin-1") for token in self._tokens]  # one character a byte
        return {"codec": "sentencepiece", "tokens": tokens, "scores": self._scores}

    def _merge(self, word: str) -> list[int]:
        ids = []
        for character in word:
            raw = character.encode()
            ids += [self._ids[raw]] if raw in self._ids else [self._bytes[b] for b in raw]
        left, right = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
        heap: list[tuple[float, int, int, int]] = []  # (-score, position, the two ids)

        def offer(at: int) -> None:
            if at >= 0 and right[at] < len(ids):
                pair = ids[at], ids[right[at]]
                merged = self._ids.get(self._tokens[pair[0]] + self._tokens[pair[1]])
                if merged is not None:
                    heapq.heappush(heap, (-self._scores[merged], at, *pair))

        for at in range(len(ids) - 1):
            offer(at)
        while heap:
            _, at, *pair = heapq.heappop(heap)
            after = right[at]
            if ids[at] < 0 or after >= len(ids) or [ids[at], ids[after]] != pair:
                continue  # one of the two has been merged since
            ids[at], ids[after] = self._ids[self._tokens[pair[0]] + self._tokens[pair[1]]], -1
            right[at] = right[after]
            if right[at] < len(ids):
                left[right[at]] = at
            offer(left[at])
            offer(at)
        return [i for i in ids if i >= 0]


def parse_llama2c(data: bytes) -> SentencePiece:
    """llama2.c's tokenizer.bin: int32 longest length, then per token float32 score, int32 length and bytes."""
    tokens: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        if not 0 <= length <= len(data) - at - 8 or not np.isfinite(score):
            raise ZooError(f"token {len(tokens)} at byte {at} is cut off or malformed; fetch the file again")
        tokens.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return SentencePiece(tokens, scores)
