"""The search for the largest batch, over memories that are known in advance."""

import dataclasses
import types

import pytest

from tests.tpu.made import BASE
from tpu import search
from tpu.estimate import GIB
from tpu.search import flag_of, largest
from zoo.train.config import TrainConfig


def find(size, start, unit=8, room=1000, most=2**16, told=True):
    """What `largest` finds where a batch takes `size(batch)`, and the batches that it tries."""
    tried = []

    def attempt(batch):
        tried.append(batch)
        return size(batch) <= room, size(batch) if told else 0

    return largest(attempt, start, unit, room, most), tried


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("start", [8, 64, 100, 4096])
@pytest.mark.parametrize(
    "size",
    [lambda n: 100 + 3 * n, lambda n: 900 + n, lambda n: n * n // 90, lambda n: 10 * n**0.5 if n < 200 else 2000],
)
def test_the_largest_batch_that_fits(size, start, told):
    expected = max(n for n in range(0, 1000, 8) if n == 0 or size(n) <= 1000)
    found, tried = find(size, start, told=told)
    assert found == expected
    assert len(tried) == len(set(tried))
    assert all(n % 8 == 0 and n > 0 for n in tried)


def test_a_line_needs_few_compiles():
    found, tried = find(lambda n: 100 + 3 * n, 64)  # 300 would fill it
    assert (found, tried) == (296, [64, 128, 256, 512, 296, 304])


def test_a_large_batch_is_not_found_to_the_last_example():
    found, tried = find(lambda n: n // 5, 1024)  # 5,000 to 5,004 would fill it
    assert 5000 * 63 / 64 < found <= 5000
    assert len(tried) <= 6


def test_none_fits_or_all_do():
    assert find(lambda n: 5000, 64) == (0, [64, 32, 16, 8])
    assert find(lambda n: 1, 64, most=300) == (256, [64, 128, 256])


def test_the_unit_is_kept():
    assert find(lambda n: 3 * n, 50, unit=24) == (312, [48, 96, 192, 384, 312, 336])


@dataclasses.dataclass(frozen=True)
class Inner:
    remat: str = "none"


@dataclasses.dataclass(frozen=True)
class Deep(TrainConfig):
    big_model: Inner = dataclasses.field(default_factory=Inner)


def test_the_flag_of_a_field_wherever_it_lies():
    assert flag_of(Deep(), "remat") == "--big-model.remat"
    assert flag_of(Deep(), "batch") == "--batch"
    assert flag_of(TrainConfig(), "remat") == ""


def test_a_search_over_policies(monkeypatch, capsys):
    """Two policies: one takes 2 GiB for each 8 examples, the other half of it and half as long again."""

    def plan(script, arguments, topology, slices):
        assert (arguments[0], arguments[-4], arguments[-2], topology, slices) == ("tiny", "--remat", "--batch", "T", 2)
        policy, batch = arguments[-3], int(arguments[-1])
        size = batch * GIB // (4 if policy == "none" else 8)
        seconds = batch * (1e-3 if policy == "none" else 1.5e-3) + 0.01
        fits = size <= BASE.hbm
        fields = {"batch": batch, "peak_bytes": size, "step_seconds": seconds, "examples_per_second": batch / seconds}
        return dataclasses.replace(BASE, fits=fits, recipe=" ".join(arguments), **fields), None

    @dataclasses.dataclass(frozen=True)
    class Config(TrainConfig, Inner):
        pass

    class Chip:
        hbm = 16

    monkeypatch.setattr(search, "plan", plan)
    monkeypatch.setattr(search, "REMAT", {"none": None, "full": None})
    monkeypatch.setattr(search, "configured", lambda script, arguments: (None, Config(batch=32)))
    monkeypatch.setattr(search, "devices_of", lambda topology, slices: (Chip, []))
    monkeypatch.setattr(search, "make_mesh", lambda config, devices: types.SimpleNamespace(shape=BASE.mesh))
    tried = search.search("recipe.py", ["tiny"], "T", 2)
    assert [p.batch for p in tried if p.fits] == [32, 64, 32, 64, 128]
    assert [p.batch for p in tried if not p.fits] == [128, 72, 256, 136]
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[0].startswith("--remat none --batch 32: 8.00 of 16.00 GiB, estimated 42.000 ms, 762 examples/s")
    assert "--remat none --batch 128: does not fit, 32.00 of 16.00 GiB" in rows
    assert "--remat none 64 16.00 74.000 865 64 865" in rows
    assert "--remat full 128 16.00 202.000 634 128 634" in rows
    assert rows[-1] == "fastest by the estimate: --remat none, --batch 64"
