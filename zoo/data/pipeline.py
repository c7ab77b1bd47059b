"""Step-indexed batches: a batch is a pure function of (seed, step).

There is no iterator state. The step number is the checkpoint of the data, and any number of
processes sees the same global batch, of which each asks only for its own rows.
"""

import abc
import functools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import numpy as np

from zoo.errors import ZooError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access over examples: `source[indices]` gives arrays whose first axis is `len(indices)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> Batch: ...


class Batches(abc.ABC):
    """What training and evaluation read: global batches of `batch` rows, `examples` of them in an epoch."""

    stride = 1
    """Steps that one of the `rows` is for."""

    def __init__(self, examples: int, batch: int, seed: int = 0):
        if batch < 1:
            raise ZooError(f"batch is {batch}: it must be at least 1")
        if seed < 0:
            raise ZooError(f"seed is {seed}: it must be 0 or more")
        self.examples = examples
        self.batch = batch
        self.seed = seed

    @abc.abstractmethod
    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        """The given rows of the global batch of `step`; all of them by default."""

    def stream(
        self, start: int, stop: int, place: Callable[["Batches", int], Any], depth: int = 2
    ) -> Generator[Any, None, None]:
        """Yields `place(self, step)` for steps start..stop-1, by strides, made up to `depth` steps ahead in a thread.

        An exception of `place` is raised here at its own step. Closing the generator ends the thread.
        """
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        free = threading.Semaphore(depth)
        closing = threading.Event()

        def work() -> None:
            for step in range(start, stop, self.stride):
                free.acquire()
                if closing.is_set():
                    return
                try:
                    done.put((place(self, step), None))
                except BaseException as error:
                    done.put((None, error))
                    return

        thread = threading.Thread(target=work, name="zoo-data", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop, self.stride):
                placed, error = done.get()
                if error is not None:
                    raise error
                free.release()
                yield placed
        finally:
            closing.set()
            free.release()
            thread.join()

    def _positions(self, step: int, rows: slice) -> np.ndarray:
        return np.arange(step * self.batch, (step + 1) * self.batch)[rows]


class _Endless(Batches):
    """Batches that go from epoch to epoch, each with its own order of the examples."""

    def __init__(self, examples: int, batch: int, seed: int):
        super().__init__(examples, batch, seed)
        # Steps in order touch two neighbouring epochs at most, so none is ever shuffled twice.
        self._cached_epoch = functools.lru_cache(maxsize=2)(self._epoch)

    @abc.abstractmethod
    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of an epoch: what to read, int64 [examples]."""

    def _pick(self, step: int, rows: slice) -> np.ndarray:
        epochs, ranks = np.divmod(self._positions(step, rows), self.examples)
        picked = np.empty_like(ranks)
        for epoch in np.unique(epochs):
            picked[epochs == epoch] = self._cached_epoch(int(epoch))[ranks[epochs == epoch]]
        return picked


class Shuffled(_Endless):
    """Endless shuffled batches: every epoch is a fresh permutation, and a batch may span two epochs."""

    def __init__(self, source: Source, batch: int, seed: int = 0):
        if batch > len(source):
            raise ZooError(f"a batch of {batch} is larger than the training set of {len(source)}; lower --batch")
        super().__init__(len(source), batch, seed)
        self.source = source

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        return self.source[self._pick(step, rows)]

    def _epoch(self, epoch: int) -> np.ndarray:
        return _order(_bits(self.seed, epoch), self.examples)

    def resident(self, steps: int) -> "Resident":
        """The same batches, for data that lies on the device: see `Resident`."""
        return Resident(self, steps)


class Resident(Batches):
    """`Shuffled` batches of many steps at a time, as indices into `arrays`: {"index": int32 [batch, steps]}."""

    def __init__(self, batches: Shuffled, steps: int):
        super().__init__(batches.examples, batches.batch, batches.seed)
        self.stride, self._batches = steps, batches

    @property
    def arrays(self) -> Batch:
        """Every example of the source."""
        return self._batches.source[np.arange(self.examples)]

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        picks = [self._batches._pick(step + i, rows) for i in range(self.stride)]
        return {"index": np.stack(picks, axis=1).astype(np.int32)}


class Windows(_Endless):
    """Endless shuffled windows of a token stream: `tokens` int32 [batch, context + 1].

    An epoch cuts the stream into windows that predict `context` tokens each and do not overlap. The
    first starts at a random phase below `context`, so an epoch sees almost every token once and the
    next one cuts elsewhere. `tokens` [n] is any integer array, a memory map too.
    """

    def __init__(self, tokens: np.ndarray, context: int, batch: int, seed: int = 0):
        if context < 1:
            raise ZooError(f"context is {context}: it must be at least 1")
        if len(tokens) < context + 1:
            raise ZooError(
                f"a context of {context} tokens needs at least {context + 1} tokens of training text, "
                f"but there are {len(tokens)}; lower the context or give more text"
            )
        # The same number of windows whatever the phase, so that the epoch of a step is a division.
        windows = max(1, len(tokens) // context - 1)
        super().__init__(windows, batch, seed)
        self.tokens = tokens
        self.context = context
        self._phases = min(context, len(tokens) - windows * context)

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        starts = self._pick(step, rows)
        return {"tokens": self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int32)}

    def _epoch(self, epoch: int) -> np.ndarray:
        bits = _bits(self.seed, epoch)
        phase = int(bits.random_raw()) % self._phases
        return phase + self.context * _order(bits, self.examples)


class InOrder(Batches):
    """Every example once, in order, in batches of one shape; `len` batches, iterable again and again.

    Adds `weight` float32 [batch]: 1 for an example, 0 for the padding of the last batch (copies of
    the last example). Where the source gives a weight itself, that is kept and zeroed on padding.
    """

    def __init__(self, source: Source, batch: int):
        super().__init__(len(source), batch)
        if not len(source):
            raise ZooError("there is no example to evaluate on; give more data or a larger holdout")
        self.source = source

    def __len__(self) -> int:
        return -(-self.examples // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        return (self.rows(step) for step in range(len(self)))

    def rows(self, step: int, rows: slice = slice(None)) -> Batch:
        positions = self._positions(step, rows)
        batch = dict(self.source[np.minimum(positions, self.examples - 1)])
        real = (positions < self.examples).astype(np.float32)
        weight = batch.get("weight")
        batch["weight"] = real if weight is None else weight * real.reshape(-1, *[1] * (weight.ndim - 1))
        return batch


class _Cut:
    """A token stream as a source of the windows that predict each of its tokens but the first once."""

    def __init__(self, tokens: np.ndarray, context: int):
        self.tokens = tokens
        self.context = context

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        at = indices[:, None] * self.context + np.arange(self.context + 1)
        tokens = self.tokens[np.minimum(at, len(self.tokens) - 1)].astype(np.int32)
        return {"tokens": tokens, "weight": (at[:, 1:] < len(self.tokens)).astype(np.float32)}


def in_order(source: Source, batch: int) -> InOrder:
    """Evaluation batches of one shape over every example once; see `InOrder` for the `weight` they carry."""
    return InOrder(source, batch)


def windows_in_order(tokens: np.ndarray, context: int, batch: int) -> InOrder:
    """Evaluation windows: every next-token prediction of `tokens` [n] exactly once.

    Batches hold `tokens` int32 [batch, context + 1] and `weight` float32 [batch, context], 1 where the
    target `tokens[:, 1:]` is real. The weights sum to n - 1 over all batches.
    """
    if context < 1:
        raise ZooError(f"context is {context}: it must be at least 1")
    if len(tokens) < 2:
        raise ZooError(f"the held-out text has {len(tokens)} tokens and no next token to predict; give more text")
    return InOrder(_Cut(tokens, context), batch)


def _bits(seed: int, epoch: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence((seed, epoch)))


def _order(bits: np.random.Philox, size: int) -> np.ndarray:
    # NumPy promises that raw bits stay the same from version to version; `Generator.permutation` may change.
    return np.argsort(bits.random_raw(size), kind="stable")
