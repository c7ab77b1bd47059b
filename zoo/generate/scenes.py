"""One decoder and its image tokenizer at work: drawing from sentences, describing, answering and mending pictures.

Pictures are uint8 [N, S, S, 3], S being the side that the tokenizer was made for.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data.damage import touched
from zoo.data.sequences import (
    END,
    Vocabulary,
    answer_prompt,
    caption_prompt,
    clean_prompt,
    describe_prompt,
    draw_prompt,
    longest,
    plan_prompt,
)
from zoo.errors import ZooError
from zoo.generate.decode import Generator
from zoo.generate.pictures import to_pixels
from zoo.generate.sampling import Sampling
from zoo.models import functional
from zoo.models.decoder import Decoder
from zoo.models.tokenizer import Tokenizer

AT_ONCE = 64  # pictures or prompts in one call of a network
# The best of a few for exact drawings, of scenes that no exam has
GUIDANCE, TEMPERATURE = 2.0, 0.25
PLAN_TEMPERATURE = 1.0  # as varied as scenes are: plans are right all the same
# Of descriptions and plans, away from those of any scene: or what never went together in training would never be said
WORD_GUIDANCE = 1.5
READING_TEMPERATURE = 1.5  # of descriptions to choose among
# How much it counts that a picture is drawn from one, beside that it is read so: less where the picture's codes cost
# more nats each, as the codes that are found in a model's own drawings do
STRANGE, DRAWN_WEIGHT, STRANGE_WEIGHT = 2.0, 2.0, 0.1
LONGEST_ANSWER = 8


class SceneModel:
    """A decoder that reads and writes the codes of a tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer):
        """Raises ZooError for two that do not belong together."""
        self.vocabulary = vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.grid)
        c = decoder.config
        if (c.vocab_size, c.grid, c.first_code) != (vocabulary.size, vocabulary.grid, vocabulary.first_code):
            raise ZooError(
                f"the decoder has {c.vocab_size} ids, codes from {c.first_code} and a grid of {c.grid}; with this"
                f" tokenizer they would be {vocabulary.size}, {vocabulary.first_code} and {vocabulary.grid}"
            )
        self.size, self.context = tokenizer.config.image_size, c.context
        codec: Any = vocabulary  # prompts are ids, so that the generator only decodes
        self.generator = Generator(decoder, codec, ends=(END,))
        self._tokenizer, self._decoder = parts_for_jit(tokenizer), parts_for_jit(decoder)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The codes int32 [N, cells] of pictures. Raises ZooError for others than this model's."""
        images = np.asarray(images)
        if images.shape[1:] != (self.size, self.size, 3) or images.dtype != np.uint8:
            raise ZooError(
                f"pictures are {images.dtype}{list(images.shape)}; give uint8 [N, {self.size}, {self.size}, 3]"
            )
        return in_parts(functools.partial(encoded, *self._tokenizer), images).reshape(len(images), -1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The pictures uint8 [N, S, S, 3] of codes int [N, cells]."""
        grids = np.asarray(codes, np.int32).reshape(-1, *self.vocabulary.grid)
        return to_pixels(in_parts(functools.partial(decoded, *self._tokenizer), grids))

    def draw(
        self,
        texts: Sequence[str | None],
        n: int = 1,
        seed: int = 0,
        guidance: float = GUIDANCE,
        temperature: float = TEMPERATURE,
        rank: int = 1,
    ) -> np.ndarray:
        """n pictures of each text, uint8 [texts, n, S, S, 3]; None is any scene.

        Each is planned first, as by `plan`: a description of a scene that the text tells of; guidance and temperature
        are of drawing that. With `rank`, so many are drawn for each that is given back: those of which the model, as it
        reads them, finds the text and the plan likeliest.
        """
        if min(n, rank) < 1 or seed < 0:
            raise ZooError(f"{n} pictures of {rank} drawn for each, seed {seed}: the seed must be at least 0, others 1")
        sampling = Sampling(guidance=guidance, allowed=self._codes, temperature=temperature)
        plans = self._planned(texts, n * rank, seed, PLAN_TEMPERATURE)
        seeds = [int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(n * rank)] * len(texts)
        prompts = [draw_prompt(plan) for plan in plans]
        drawn = self._codes_of(self._ids(prompts, self.vocabulary.cells, sampling, draw_prompt(), seeds=seeds))
        images = self.decode(drawn)
        if rank > 1:
            told = [self.vocabulary.encode(text or "") for text in texts for _ in range(n * rank)]
            readings = [
                self._logps([prompt(self.vocabulary, code) for code in codes], ended(written))
                for codes in (drawn, self.encode(images))  # a picture's codes are others than it was drawn by
                for prompt, written in ((caption_prompt, told), (describe_prompt, plans))
            ]
            nats = np.sum(readings, axis=0).reshape(-1, n * rank)
            best = np.sort(np.argsort(-nats, axis=1, kind="stable")[:, :n], axis=1)
            images = images.reshape(*nats.shape, *images.shape[1:])[np.arange(len(texts))[:, None], best]
        return images.reshape(len(texts), n, *images.shape[-3:])

    def plan(
        self, texts: Sequence[str | None], n: int = 1, seed: int = 0, temperature: float = PLAN_TEMPERATURE
    ) -> list[str]:
        """n descriptions for each text, of scenes that it tells of, all of the first text before those of the next."""
        return self._texts(self._planned(texts, n, seed, temperature))

    def describe(self, images: np.ndarray, rank: int = 1, seed: int = 0) -> list[str]:
        """All that there is in each picture, as a sentence of the grammar.

        With `rank`, so many are tried for each picture, and that one is given which is the likeliest when read from the
        picture and from which the picture is the likeliest drawn: a noisy channel (Yu et al. 2017, arXiv:1611.02554).
        A picture that is unlikely from all of them is chosen for by reading.
        """
        if rank < 1 or seed < 0:
            raise ZooError(f"a description chosen among {rank}, seed {seed}: the seed must be at least 0, rank 1")
        codes = self.encode(images)
        prompts = [describe_prompt(self.vocabulary, each) for each in codes]
        temperature = 0.0 if rank == 1 else READING_TEMPERATURE
        sampling = Sampling(temperature=temperature, allowed=self._words, guidance=WORD_GUIDANCE)
        nothing = plan_prompt(self.vocabulary)
        told = self._ids(prompts, self._longest, sampling, nothing, rank, [seed] * len(prompts))
        if rank > 1:
            seen = np.repeat(codes, rank, axis=0)
            as_read = self._logps([prompt for prompt in prompts for _ in range(rank)], ended(told))
            as_drawn = self._logps([draw_prompt(ids) for ids in told], seen + self.vocabulary.first_code)
            as_read, as_drawn = as_read.reshape(-1, rank), as_drawn.reshape(-1, rank)
            strange = as_drawn.max(axis=1, keepdims=True) < -STRANGE * self.vocabulary.cells
            best = (as_read + np.where(strange, STRANGE_WEIGHT, DRAWN_WEIGHT) * as_drawn).argmax(axis=1)
            told = [told[k * rank + choice] for k, choice in enumerate(best)]
        return self._texts(told)

    def answer(
        self, questions: Sequence[str], images: np.ndarray | None = None, texts: Sequence[str] | None = None
    ) -> list[str]:
        """The answer to each question, about a picture or about a description. Raises ZooError unless one is given."""
        if (images is None) == (texts is None):
            raise ZooError("a question is about a picture or a text: give images or texts")
        seen = self.encode(images) if images is not None else list(texts or ())
        if len(seen) != len(questions):
            raise ZooError(f"{len(questions)} questions about {len(seen)}: give as many of both")
        about = "codes" if images is not None else "text"
        prompts = [
            answer_prompt(self.vocabulary, question, **{about: each})
            for question, each in zip(questions, seen, strict=True)
        ]
        return self._texts(self._ids(prompts, LONGEST_ANSWER, Sampling(temperature=0, allowed=self._words)))

    def clean(self, images: np.ndarray, holes: np.ndarray | None = None) -> np.ndarray:
        """The pictures as they may have been before damage; with `holes`, bool [N, S, S], only those pixels change."""
        lost = np.zeros((len(images), self.size, self.size), bool) if holes is None else np.asarray(holes, bool)
        prompts = self.mending_prompts(self.encode(images), lost)
        sampling = Sampling(temperature=0, allowed=self._codes)
        mended = self.decode(self._codes_of(self._ids(prompts, self.vocabulary.cells, sampling)))
        return mended if holes is None else np.where(lost[..., None], mended, images)

    def mending_prompts(self, codes: np.ndarray, holes: np.ndarray) -> list[list[int]]:
        """What is read before damaged pictures of these codes are drawn whole; `holes` as in `clean`."""
        grid = self.vocabulary.grid
        return [
            clean_prompt(self.vocabulary, code, touched(mask, grid)) for code, mask in zip(codes, holes, strict=True)
        ]

    def likelihood(self, images: np.ndarray, texts: Sequence[str], end: bool = True) -> np.ndarray:
        """log p(text | picture) of each pair, float32 [N], in nats; without `end`, of texts that may go on."""
        prompts = [caption_prompt(self.vocabulary, codes) for codes in self.encode(images)]
        told = [self.vocabulary.encode(text) for text in texts]
        return self._logps(prompts, ended(told) if end else told)

    def _logps(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """log p of what is written after each prompt, float32 [N]."""
        usual = self._most["describe"]  # so that one program is compiled for all that the grammar makes
        length = max(usual, *(len(a) + len(b) for a, b in zip(prompts, written, strict=True)))
        rows = np.zeros((len(prompts), 3, length), np.int32)  # ids, which are given, which are written
        for row, prompt, ids in zip(rows, prompts, written, strict=True):
            start, end = len(prompt), len(prompt) + len(ids)
            row[0, :start], row[0, start:end] = prompt, ids
            row[1, :start], row[2, start:end] = 1, 1
        return in_parts(functools.partial(written_logps, *self._decoder), rows)

    @property
    def _codes(self) -> tuple[int, int]:
        """The ids of codes: the first, and one past the last."""
        return self.vocabulary.first_code, self.vocabulary.hole

    def _planned(self, texts: Sequence[str | None], n: int, seed: int, temperature: float) -> list[list[int]]:
        """The ids of n plans for each text."""
        sampling = Sampling(temperature=temperature, allowed=self._words, guidance=WORD_GUIDANCE)
        prompts = [plan_prompt(self.vocabulary, text) for text in texts]
        return self._ids(prompts, self._longest, sampling, plan_prompt(self.vocabulary), n, [seed] * len(texts))

    @functools.cached_property
    def _most(self) -> dict[str, int]:
        """The most tokens of a sequence of each task."""
        return longest(self.vocabulary)

    @property
    def _longest(self) -> int:
        """Words of the longest description, and its end."""
        return self._most["text"] - 1

    @property
    def _words(self) -> tuple[int, int]:
        """The ids of words and of the end: the first, and one past the last."""
        return END, self.vocabulary.first_code

    def _codes_of(self, ids: list[list[int]]) -> np.ndarray:
        """The codes int [N, cells] that ids name."""
        return np.array(ids).reshape(-1, self.vocabulary.cells) - self.vocabulary.first_code

    def _texts(self, ids: list[list[int]]) -> list[str]:
        return [self.vocabulary.decode(each) for each in ids]

    def _ids(
        self,
        prompts: list[list[int]],
        length: int,
        sampling: Sampling,
        without: list[int] | None = None,
        n: int = 1,
        seeds: Sequence[int] = (),
    ) -> list[list[int]]:
        """What follows each prompt, n times, up to its end; guidance is away from what follows the prompt `without`."""
        found = []
        for part in parts_of(list(zip(prompts, seeds or [0] * len(prompts), strict=True)), max(1, AT_ONCE // n)):
            asked, keys = [prompt for prompt, _ in part], [key for _, key in part]
            if without is not None and sampling.guidance != 1:
                asked, keys = asked + [without] * len(part), keys * 2
            drawn = self.generator.complete(asked, length, n=n, seed=keys, sampling=sampling)
            found += [[i for i in each.ids if i != END] for samples in drawn[: len(part)] for each in samples]
        return found


def parts_for_jit(model: Any) -> tuple[Any, Any]:
    """The graph of a model and its weights, for functions that are compiled once for all models of the same graph."""
    graphdef, *weights = functional.split(model)
    return graphdef, jax.tree.map(jnp.asarray, weights)


@functools.partial(jax.jit, static_argnums=0)
def encoded(graphdef: Any, weights: Any, x_bhwc: jax.Array) -> jax.Array:
    """A tokenizer's codes of pictures uint8."""
    return functional.merge(graphdef, *weights).encode(x_bhwc.astype(jnp.float32) / 255)


@functools.partial(jax.jit, static_argnums=0)
def decoded(graphdef: Any, weights: Any, ids_bhw: jax.Array) -> jax.Array:
    """A tokenizer's pictures of codes."""
    return functional.merge(graphdef, *weights).decode(ids_bhw)


@functools.partial(jax.jit, static_argnums=0)
def written_logps(graphdef: Any, weights: Any, rows_b3t: jax.Array) -> jax.Array:
    """A decoder's log-probability of what is written in each row, float32 [B].

    A row has its ids, and for each whether it is given, and whether it is written.
    """
    ids_bt, given_bt, written_bt = (rows_b3t[:, k] for k in range(3))
    logps_btv = jax.nn.log_softmax(functional.merge(graphdef, *weights)(ids_bt[:, :-1], given=given_bt[:, :-1] > 0))
    logps_bt = jnp.take_along_axis(logps_btv, ids_bt[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(written_bt[:, 1:] > 0, logps_bt, 0.0), axis=1)


def ended(written: Sequence[Sequence[int]]) -> list[list[int]]:
    """Texts with the end after each."""
    return [[*ids, END] for ids in written]


def parts_of(items: Any, most: int) -> list[Any]:
    """The items in runs of `most`, the last one of what is left."""
    return [items[i : i + most] for i in range(0, len(items), most)]


def in_parts(fn: Any, array: np.ndarray) -> np.ndarray:
    """`fn` of AT_ONCE rows at a time, the last ones filled up, so that one program is compiled."""
    most = min(AT_ONCE, 1 << (len(array) - 1).bit_length())
    found = []
    for part in parts_of(array, most):
        short = most - len(part)
        found.append(np.asarray(fn(np.concatenate([part, np.repeat(part[-1:], short, axis=0)])))[: len(part)])
    return np.concatenate(found)
