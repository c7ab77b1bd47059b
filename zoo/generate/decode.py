"""Text from a decoder with a cache: prompts are read at once, and the loop over new tokens runs on the device."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data.text import Codec
from zoo.data.tokenizer import Stream
from zoo.errors import ZooError
from zoo.generate.sampling import Sampling, choose
from zoo.models import functional
from zoo.models.attention import Cache
from zoo.models.decoder import Decoder

LEAST_BUCKET = 16  # prompts and texts are padded, so that few programs are compiled


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt."""

    text: str
    """Up to the stop string, which is left out."""
    ids: list[int]
    logprobs: list[float]
    """Of each token by the model's own distribution, before temperature and filters; nats."""
    reason: str
    """Why it ends: "length", "end" (an end token) or "stop" (a stop string)."""


@dataclass
class _Row:
    """A text that is being written, as the host sees it."""

    prompt: list[int]
    stream: Stream
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    reason: str = ""


class State(NamedTuple):
    """What the loop on the device carries."""

    cache: Cache
    tokens_bn: jax.Array
    """New tokens, int32 [B, room]."""
    logprobs_bn: jax.Array
    done_b: jax.Array
    """Rows that have met an end token, bool [B]."""
    seen_bv: jax.Array | None
    """Tokens of prompt and text, for the repetition penalty."""
    written: jax.Array
    """New tokens of each row, int32 []."""


class Draw(NamedTuple):
    """What decides the tokens besides the model."""

    keys_b: jax.Array
    before: int
    """Tokens that earlier segments wrote: the number of a token fixes its randomness."""
    ends: np.ndarray
    values: dict[str, jax.Array]
    """Of `Sampling`."""


@dataclass(frozen=True)
class Request:
    """What is asked of a generator for all of its prompts."""

    length: int
    """Most new tokens."""
    n: int = 1
    """Samples of each prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    """Strings that end a text, and are left out of it; they may lie across tokens."""
    seed: int | Sequence[int] = 0
    """One for all prompts, or one for each."""
    shift: bool = False
    """Forget the older half of what was read when the context is full, instead of refusing."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.n < 1 or any(not text for text in self.stop):
            raise ZooError("length and the number of samples must be at least 1, and stop strings not empty")


class Generator:
    """Writes with a model and its codec. Programs are compiled for each size of batch, prompt and text, and kept.

    The text of a prompt depends on the seed and on which of the prompt's samples it is, not on the other prompts.
    """

    def __init__(self, model: Decoder, codec: Codec, ends: Sequence[int] | None = None):
        """`ends` are the tokens that end a text; by default those that the codec names."""
        self.codec, self.config = codec, model.config
        self.ends = tuple(getattr(codec, "ends", ()) if ends is None else ends)
        self._graphdef, params, stats = functional.split(model)
        params, stats = jax.tree.map(jnp.asarray, (params, stats))
        self._few = next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu"
        merged = functools.partial(functional.merge, self._graphdef)
        # Or every token would take the layers' slices out of the stacked weights, cast them and lay them out anew:
        # five sixths of a step of Llama 3.2 1B on a TPU.
        layers = jax.jit(lambda *weights: merged(*weights).layers(self._few))(params, stats)
        table_vd = merged(params, stats).table()  # not compiled: a table that is of the dtype already is not copied
        self._weights = params, stats, layers, table_vd

    def complete(self, prompts: Sequence[str | Sequence[int]], length: int, **options: Any) -> list[list[Completion]]:
        """The completions of each prompt, a text or its ids; `options` are the fields of `Request`.

        Raises ZooError when a prompt and the new text do not fit the model's context.
        """
        request = Request(length, **options)
        rows = self._rows(prompts, request.n)
        for _ in self._write(rows, request, every=32 if request.stop else length):
            pass
        for row in rows:
            row.text += "" if row.reason == "stop" else row.stream.end()
        done = [Completion(row.text, row.ids, row.logprobs, row.reason or "length") for row in rows]
        return [done[i : i + request.n] for i in range(0, len(done), request.n)]

    def stream(self, prompt: str | Sequence[int], length: int, every: int = 4, **options: Any) -> Iterator[str]:
        """The text of one completion in pieces, each valid Unicode, after every few tokens."""
        request = Request(length, **options | {"n": 1})
        (row,), shown = self._rows([prompt], 1), 0
        for _ in self._write([row], request, every):
            safe = len(row.text) if row.reason else len(row.text) - _held(row.text, request.stop)
            if safe > shown:
                yield row.text[shown:safe]
                shown = safe
        if tail := row.text[shown:] + ("" if row.reason == "stop" else row.stream.end()):
            yield tail

    def _rows(self, prompts: Sequence[str | Sequence[int]], n: int) -> list[_Row]:
        rows = []
        for number, prompt in enumerate(prompts):
            ids = [int(i) for i in (self.codec.encode(prompt) if isinstance(prompt, str) else prompt)]
            if not ids:
                raise ZooError(f"prompt {number} is empty; give it at least one token to start from")
            if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
                raise ZooError(f"prompt {number} has ids outside the vocabulary of {self.config.vocab_size}")
            rows += [_Row(ids, Stream(self.codec, ids, skip_special=True)) for _ in range(n)]
        return rows

    def _write(self, rows: list[_Row], request: Request, every: int) -> Iterator[None]:
        """Fills the rows, and yields after every few tokens of them."""
        context, longest, written = self.config.context, max(len(row.prompt) for row in rows), 0
        if longest + request.length > context and not (request.shift and context > 1):
            raise ZooError(
                f"a prompt of {longest} tokens and {request.length} new ones do not fit the context of {context};"
                f" ask for at most {max(0, context - longest)} new tokens, or shorten the prompt"
            )
        seeds = np.broadcast_to(np.asarray(request.seed), len(rows) // request.n).tolist()
        keys = map(jax.random.key, seeds)
        keys_b = jnp.stack([jax.random.fold_in(key, i) for key in keys for i in range(request.n)])
        ends = np.asarray(self.ends or (-1,), np.int32)
        while written < request.length and not all(row.reason for row in rows):
            inputs = [row.prompt + row.ids for row in rows]
            if longest + request.length > context:  # what fills the context goes on from its last half
                inputs = [ids if len(ids) < context else ids[-(context // 2) :] for ids in inputs]
            take = min(request.length - written, context - max(map(len, inputs)))
            draw = Draw(keys_b, written, ends, request.sampling.values())
            yield from self._segment(rows, inputs, take, draw, request, every)
            written += take

    def _segment(
        self, rows: list[_Row], inputs: list[list[int]], take: int, draw: Draw, request: Request, every: int
    ) -> Iterator[None]:
        """Reads the inputs, and writes `take` tokens after them."""
        repeats = request.n if draw.before == 0 else 1  # at first the samples of a prompt share what is read
        read = max(map(len, inputs))
        width = max(read, min(_bucket(read), self.config.context))
        tokens_bt = np.zeros((len(inputs) // repeats, width), np.int32)
        start_b = np.zeros(len(tokens_bt), np.int32)
        for i, ids in enumerate(inputs[::repeats]):
            tokens_bt[i, width - len(ids) :] = ids
            start_b[i] = width - len(ids)
        done_b = np.asarray([bool(row.reason) for row in rows])
        used = request.sampling.used
        state = _begin(self._graphdef, used, repeats, _bucket(take, 4), self._weights, tokens_bt, start_b, done_b, draw)
        for until in [*range(every, take, every), take]:
            state = _advance(self._graphdef, used, self._few, self._weights, state, until, draw)
            tokens_bn, logprobs_bn, ended_b, count = jax.device_get(
                (state.tokens_bn, state.logprobs_bn, state.done_b, state.written)
            )
            for i, row in enumerate(rows):
                fresh = slice(len(row.ids) - draw.before, int(count))
                self._extend(row, tokens_bn[i, fresh].tolist(), logprobs_bn[i, fresh].tolist(), request.stop)
            yield
            if all(row.reason for row in rows):
                return
            if request.stop:  # the device does not know the strings
                state = state._replace(done_b=jnp.asarray([bool(row.reason) for row in rows] | ended_b))

    def _extend(self, row: _Row, ids: list[int], logprobs: list[float], stop: Sequence[str]) -> None:
        """Adds tokens to a row up to the one that ends it."""
        for token, logprob in zip(ids, logprobs, strict=True):
            if row.reason:
                return
            row.ids.append(token)
            row.logprobs.append(logprob)
            if token in self.ends:
                row.reason = "end"
                return
            before = len(row.text)
            row.text += row.stream.push([token])
            found = [row.text.find(text, max(0, before - len(text) + 1)) for text in stop]
            if any(at >= 0 for at in found):
                row.text = row.text[: min(at for at in found if at >= 0)]
                row.reason = "stop"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _begin(
    graphdef: Any,
    used: frozenset[str],
    repeats: int,
    room: int,
    weights: Any,
    tokens_bt: jax.Array,
    start_b: jax.Array,
    done_b: jax.Array,
    draw: Draw,
) -> State:
    """Reads the prompts and chooses the first new token of each row."""
    params, stats, *_ = weights
    model = functional.merge(graphdef, params, stats)
    batch, width = tokens_bt.shape
    h_btd, cache = model.prefill(tokens_bt, start_b, width + room)
    logits_bv = model.logits(h_btd[:, -1:])[:, 0]
    seen_bv = None
    if "repetition_penalty" in used:
        real_bt = jnp.arange(width)[None] >= start_b[:, None]
        seen_bv = jnp.zeros(logits_bv.shape, bool).at[jnp.arange(batch)[:, None], tokens_bt].max(real_bt)
    if repeats > 1:
        logits_bv, cache, seen_bv = jax.tree.map(
            lambda x: jnp.repeat(x, repeats, axis=0) if x.ndim else x, (logits_bv, cache, seen_bv)
        )
    shape = batch * repeats, room
    state = State(
        cache, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), done_b, seen_bv, jnp.zeros((), jnp.int32)
    )
    return _put(state, logits_bv, used, draw)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _advance(
    graphdef: Any, used: frozenset[str], few: bool, weights: Any, state: State, until: jax.Array, draw: Draw
) -> State:
    """Writes on until rows have `until` tokens, or all are done."""
    params, stats, layers, table_vd = weights
    model = functional.merge(graphdef, params, stats)

    def body(state: State) -> State:
        last_b1 = jax.lax.dynamic_slice_in_dim(state.tokens_bn, state.written - 1, 1, axis=1)
        h_b1d, cache = model.step(last_b1[:, 0], state.cache, layers, few)
        logits_b1v = model.logits(h_b1d, few, table_vd=table_vd)
        return _put(state._replace(cache=cache), logits_b1v[:, 0], used, draw)

    return jax.lax.while_loop(lambda state: (state.written < until) & ~jnp.all(state.done_b), body, state)


def _put(state: State, logits_bv: jax.Array, used: frozenset[str], draw: Draw) -> State:
    """Chooses a token for each row and adds it."""
    position = state.written + draw.before
    keys_b = jax.vmap(lambda key: jax.random.fold_in(key, position))(draw.keys_b)
    tokens_b, logprobs_b = choose(logits_bv, keys_b, used, draw.values, state.seen_bv)
    seen_bv = state.seen_bv
    if seen_bv is not None:
        seen_bv = seen_bv.at[jnp.arange(len(tokens_b)), tokens_b].set(True)
    return state._replace(
        tokens_bn=jax.lax.dynamic_update_slice_in_dim(state.tokens_bn, tokens_b[:, None], state.written, axis=1),
        logprobs_bn=jax.lax.dynamic_update_slice_in_dim(state.logprobs_bn, logprobs_b[:, None], state.written, axis=1),
        done_b=state.done_b | jnp.any(tokens_b[:, None] == draw.ends[None], axis=1),
        seen_bv=seen_bv,
        written=state.written + 1,
    )


def _bucket(size: int, parts: int = 1) -> int:
    """The least that holds `size` among the powers of two and `parts` - 1 steps between two of them."""
    power = max(LEAST_BUCKET, 1 << (size - 1).bit_length())
    step = power // 2 // parts
    return power if power == LEAST_BUCKET else -(-size // step) * step


def _held(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop string."""
    most = max(map(len, stop), default=1) - 1
    return next((k for k in range(min(most, len(text)), 0, -1) if any(s.startswith(text[-k:]) for s in stop)), 0)
