"""Collectives over the links of a TPU, by the worked cases of "How to Scale Your Model"."""

import itertools

import pytest

from tpu.chips import CHIPS
from tpu.hlo import parse_op, result_bytes, schedule
from tpu.links import links, members, sent

V5E = CHIPS["v5e"]


def places(*sizes):
    """Coordinates in the order in which devices of such a topology are counted, the first axis fastest."""
    return [place[::-1] for place in itertools.product(*map(range, sizes[::-1]))]


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,1},{2,3}}", [0, 1]),
        ("replica_groups={{0,4,8}}, use_global_device_ids=true", [0, 4, 8]),
        ("replica_groups=[4,2]<=[8], dimensions={0}", [0, 1]),
        ("replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true", [0, 2, 4, 6]),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", [*range(8)]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a','c'}", [0, 2, 4, 6, 1, 3, 5, 7]),
        ("channel_id=3", []),
    ],
)
def test_who_takes_part(groups, first):
    assert members(groups) == first


@pytest.mark.parametrize("size", [2, 8])
def test_bytes_of_a_ring(size):
    op = parse_op("  %x = f32[1024]{0} all-reduce(%y), channel_id=1")
    assert sent("all-reduce", result_bytes(op), size) == 2 * 4096 * (size - 1) // size
    assert sent("reduce-scatter", 4096, size) == 4096 * (size - 1)
    assert sent("all-gather", 4096, size) == 4096 * (size - 1) // size
    assert sent("collective-permute", 4096, size) == 4096


def test_links_that_are_used_at_once():
    pod, board = places(16, 16), places(8, 4)
    row, column = [i for i, x in enumerate(pod) if x[1] == 3], [i for i, x in enumerate(pod) if x[0] == 5]
    assert links(row, pod, V5E) == links(column, pod, V5E) == 2  # a ring, both ways
    assert links(range(256), pod, V5E) == 4  # two rings at once
    assert links(row[:8], pod, V5E) == 1  # a part of a ring is none
    assert links([i for i, x in enumerate(board) if x[0] == 0], board, V5E) == 1  # v5e closes axes of 16 alone
    assert links(range(32), board, V5E) == 2
    assert links(range(16), places(16, 1, 1), V5E) == 2
    v5p = CHIPS["v5p"]
    assert links(range(64), places(4, 4, 4), v5p) == 6
    assert links(range(16), places(2, 2, 4), v5p) == 3  # smaller than a cube
    assert links([], board, V5E) == links([0, 1], [], V5E) == 2


def test_a_gather_along_four_chips_of_8_by_4():
    """The quiz of the book: 34 MB of bfloat16 take 377 us over a ring, and 560 us where the axis is none."""
    board = places(8, 4)
    along = ",".join(str(i) for i, x in enumerate(board) if x[0] == 0)
    text = f"""HloModule m

ENTRY %main (p: bf16[512,8192]) -> bf16[2048,8192] {{
  %p = bf16[512,8192]{{1,0}} parameter(0)
  ROOT %gather = bf16[2048,8192]{{1,0}} all-gather(%p), channel_id=1, replica_groups={{{{{along}}}}}, dimensions={{0}}
}}
"""
    (cost,) = schedule(text, V5E, places=board).costs
    assert cost.seconds == pytest.approx(3 * 512 * 8192 * 2 / 4.5e10)
    assert cost.seconds == pytest.approx(560e-6, rel=0.01)
