"""Step-indexed batches: a pure function of (seed, step), every example once, whatever the partition of rows."""

import itertools
import pathlib
import queue
import subprocess
import sys
import threading

import numpy as np
import pytest

from zoo.data import pipeline
from zoo.data.pipeline import Shuffled, Windows, in_order, windows_in_order
from zoo.errors import ZooError


class Numbers:
    """n examples, each holding its own index."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, indices):
        return {"x": np.arange(self.n)[indices], "half": np.arange(self.n, dtype=np.float32)[indices, None] / 2}


MAKERS = {
    "shuffled": lambda seed=0: Shuffled(Numbers(23), 8, seed),
    "windows": lambda seed=0: Windows(np.arange(200, dtype=np.uint8), 7, 8, seed),
    "in_order": lambda: in_order(Numbers(23), 8),
    "windows_in_order": lambda: windows_in_order(np.arange(120), 7, 8),
}


@pytest.mark.parametrize("name", MAKERS)
def test_any_partition_of_rows_gives_the_global_batch(name):
    batches = MAKERS[name]()
    for step in range(3):
        whole = batches.rows(step)
        for cuts in ([0, 8], [0, 4, 8], [0, 1, 7, 8], [0, 2, 4, 6, 8]):
            parts = [batches.rows(step, slice(a, b)) for a, b in itertools.pairwise(cuts)]
            for key, value in whole.items():
                assert len(value) == 8
                np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
                np.testing.assert_array_equal(batches.rows(step, slice(1, None, 3))[key], value[1::3])


@pytest.mark.parametrize("name", ["shuffled", "windows"])
def test_a_batch_depends_on_seed_and_step_alone(name):
    forward = [MAKERS[name]().rows(step) for step in range(12)]
    backward = MAKERS[name]()
    for step in reversed(range(12)):
        again = backward.rows(step)
        for key, value in forward[step].items():
            np.testing.assert_array_equal(again[key], value)
    other = MAKERS[name](seed=1).rows(0)
    assert any((other[key] != value).any() for key, value in forward[0].items())


def test_shuffled_sees_every_example_once_an_epoch_across_borders():
    batches = MAKERS["shuffled"]()
    assert (batches.examples, batches.batch, batches.seed) == (23, 8, 0)
    seen = np.concatenate([batches.rows(step)["x"] for step in range(23)]).reshape(8, 23)  # 8 epochs in 23 steps
    np.testing.assert_array_equal(np.sort(seen, 1), np.tile(np.arange(23), (8, 1)))
    assert len({tuple(epoch) for epoch in seen}) == 8


def test_the_order_never_changes_between_versions():
    # Written down once: old runs must resume with the data they had.
    assert Shuffled(Numbers(8), 8, seed=3).rows(0)["x"].tolist() == [0, 1, 2, 7, 5, 6, 4, 3]


def test_steps_in_order_shuffle_each_epoch_once(monkeypatch):
    shuffles = []
    order = pipeline._order
    monkeypatch.setattr(pipeline, "_order", lambda bits, size: shuffles.append(size) or order(bits, size))
    batches = MAKERS["shuffled"]()
    for step in range(23):
        batches.rows(step)
    assert len(shuffles) == 8


def test_windows_of_an_epoch_do_not_overlap_and_cover_almost_all():
    length, context = 200, 7
    batches = Windows(np.arange(length, dtype=np.uint8), context, 9)
    phases = set()
    steps = batches.examples  # nine epochs
    tokens = np.concatenate([batches.rows(step)["tokens"] for step in range(steps)])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)  # each window is consecutive
    for epoch in tokens.reshape(9, batches.examples, context + 1):
        targets = np.sort(epoch[:, 1:].ravel())
        phase = targets[0] - 1
        np.testing.assert_array_equal(targets, np.arange(phase + 1, phase + 1 + len(targets)))
        assert 0 <= phase < context
        assert len(targets) > length - 3 * context
        phases.add(int(phase))
    assert len(phases) > 2


def test_windows_fit_in_every_length():
    for length in range(6, 22):
        batches = Windows(np.arange(length), 5, 4)
        tokens = np.concatenate([batches.rows(step)["tokens"] for step in range(40)])
        np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)
        assert tokens.min() == 0  # every phase comes up
        assert tokens.max() <= length - 1


def test_windows_of_a_memory_map(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 60000, 5000).astype(np.uint16)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", np.uint16, "r")
    for step in (0, 3, 40):
        a, b = (Windows(t, 64, 4).rows(step)["tokens"] for t in (tokens, mapped))
        np.testing.assert_array_equal(a, b)
        assert type(b) is np.ndarray


def test_in_order_covers_all_once_and_pads_with_zero_weight():
    batches = in_order(Numbers(23), 8)
    assert len(batches) == 3
    for _ in range(2):  # iterable again
        got = list(batches)
        assert [len(b["x"]) for b in got] == [8, 8, 8]
        x, weight = (np.concatenate([b[key] for b in got]) for key in ("x", "weight"))
        np.testing.assert_array_equal(x[weight == 1], np.arange(23))
        assert weight.dtype == np.float32
        assert weight.tolist() == [1.0] * 23 + [0.0]
    assert len(in_order(Numbers(16), 8)) == 2


@pytest.mark.parametrize("length", [2, 5, 7, 8, 9, 15, 57, 58])
def test_windows_in_order_predict_every_token_once(length):
    tokens = np.random.default_rng(length).integers(0, 50, length).astype(np.uint8)
    batches = windows_in_order(tokens, context=7, batch=3)
    total = weights = 0.0
    for batch in batches:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        assert inputs.shape == batch["weight"].shape == (3, 7)
        total += float((batch["weight"] * (inputs * 1.5 - targets**2)).sum())
        weights += float(batch["weight"].sum())
    t = tokens.astype(np.int64)
    assert weights == length - 1
    assert total == (t[:-1] * 1.5 - t[1:] ** 2).sum()
    np.testing.assert_array_equal(batches.rows(0)["tokens"][0, : min(8, length)], tokens[:8])


def test_stream_yields_placed_batches_in_order():
    batches = MAKERS["shuffled"]()
    got = list(batches.stream(5, 9, lambda b, step: (step, b.rows(step)["x"])))
    assert [step for step, _ in got] == [5, 6, 7, 8]
    for step, x in got:
        np.testing.assert_array_equal(x, batches.rows(step)["x"])
    assert not _data_threads()


def test_stream_raises_at_the_step_that_failed():
    def place(batches, step):
        if step == 3:
            raise ZooError("record 3 is broken")
        return step

    stream = MAKERS["shuffled"]().stream(0, 10, place)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZooError, match="record 3"):
        next(stream)
    assert not _data_threads()


@pytest.mark.parametrize(("taken", "depth"), [(1, 2), (4, 2), (3, 1), (2, 5)])
def test_a_stream_runs_ahead_by_its_depth_and_ends_when_closed(monkeypatch, taken, depth):
    placed = []
    standstills = queue.SimpleQueue()

    class Room(threading.Semaphore):
        """Tells how many batches there are when the thread finds no room and waits."""

        def acquire(self):
            if not super().acquire(blocking=False):
                standstills.put(len(placed))
                super().acquire()

    monkeypatch.setattr(pipeline.threading, "Semaphore", Room)
    stream = MAKERS["shuffled"]().stream(0, 10**9, lambda b, step: placed.append(step) or step, depth)
    assert [next(stream) for _ in range(taken)] == list(range(taken))
    most = 0
    while most < taken + depth:
        most = standstills.get(timeout=60)
    assert most == taken + depth
    stream.close()
    assert not _data_threads()
    assert placed == list(range(taken + depth))


def test_a_stream_that_is_never_read_starts_nothing():
    stream = MAKERS["shuffled"]().stream(0, 10, lambda b, step: pytest.fail("nobody asked"))
    stream.close()
    assert not _data_threads()


def test_mistakes_are_named():
    with pytest.raises(ZooError, match=r"batch of 9 is larger than the training set of 8.*--batch"):
        Shuffled(Numbers(8), 9)
    with pytest.raises(ZooError, match=r"context of 64 tokens needs at least 65.*there are 64.*lower the context"):
        Windows(np.arange(64), 64, 1)
    with pytest.raises(ZooError, match="batch is 0"):
        Shuffled(Numbers(8), 0)
    with pytest.raises(ZooError, match="seed is -1"):
        Shuffled(Numbers(8), 2, -1)
    with pytest.raises(ZooError, match="context is 0"):
        Windows(np.arange(9), 0, 1)
    with pytest.raises(ZooError, match="context is 0"):
        windows_in_order(np.arange(9), 0, 1)
    with pytest.raises(ZooError, match="1 tokens and no next token"):
        windows_in_order(np.arange(1), 4, 1)
    with pytest.raises(ZooError, match="no example to evaluate on"):
        in_order(Numbers(0), 4)


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, zoo.data, zoo.data.images, zoo.data.text; from zoo.data import load_images, Shuffled; "
        "heavy = {'jax', 'grain', 'sklearn', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules); "
        "assert not heavy, heavy; assert all(getattr(zoo.data, name) for name in zoo.data.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


def _data_threads():
    return [thread for thread in threading.enumerate() if thread.name == "zoo-data"]
