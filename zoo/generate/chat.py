"""A conversation with a decoder, kept within its context."""

from collections.abc import Iterator
from typing import Any

from zoo.data.chat import encode_prompt, end_ids, template_of
from zoo.data.template import MARKS, Message
from zoo.data.text import Codec
from zoo.errors import ZooError
from zoo.generate.decode import Generator
from zoo.models.decoder import Decoder


class Chat:
    """Holds the messages so far; `reply` adds a question and its answer."""

    def __init__(self, model: Decoder, codec: Codec, system: str = "", length: int = 256):
        """`length` is the most tokens of an answer; room for it is always kept. `system` is said before all else."""
        self.codec, self.length = codec, min(length, max(1, model.config.context // 2))
        self.generator = Generator(model, codec, end_ids(codec))
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def reply(self, text: str, **options: Any) -> Iterator[str]:
        """The answer to a message in pieces; `options` are those of `Generator.stream`.

        The oldest questions and answers are forgotten when the conversation fills the context. Raises ZooError when
        the message alone does not fit.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self._fit()
            pieces = []
            for piece in self.generator.stream(ids, self.length, **options):
                pieces.append(piece)
                yield piece
        except ZooError:
            self.messages.pop()
            raise
        answer = "".join(pieces)
        for mark in MARKS.get(template_of(self.codec), ()):  # an untrained model may write them
            answer = answer.replace(mark, "")
        self.messages.append({"role": "assistant", "content": answer.strip()})

    def _fit(self) -> list[int]:
        """The ids of the prompt, after forgetting what is too much."""
        first = 1 if self.messages[0]["role"] == "system" else 0
        room = self.generator.config.context - self.length
        while len(ids := encode_prompt(self.messages, self.codec).tolist()) > room:
            if len(self.messages) - first < 3:
                raise ZooError(
                    f"this message is {len(ids)} tokens long, and {room} is the most that fit beside an answer of"
                    f" {self.length}; say it shorter"
                )
            del self.messages[first : first + 2]
        return ids
