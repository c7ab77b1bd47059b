"""The reading of compiled programs, on a small one whose every figure is worked by hand."""

import dataclasses

import pytest

from tpu.chips import Chip
from tpu.hlo import schedule, shape_bytes
from tpu.kernels import Kernel

CHIP = Chip(hbm=16, bandwidth=800, link=50, network=5, clock=2.0, ring=16)
TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/repo/zoo/models/some.py"
2 "/venv/lib/python3.11/site-packages/flax/nnx/linear.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=17 end_line=17 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=99 end_line=99 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%fused (p: bf16[64,1024]) -> bf16[64,1024] {
  %p = bf16[64,1024]{1,0} parameter(0)
  %inside = bf16[64,1024]{1,0} negate(%p), backend_config={"window_config":{"estimated_cycles":"77"}}
  %gather.1 = bf16[128,1024]{1,0} all-gather(%p), channel_id=9, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %done = bf16[64,1024]{1,0} negate(%inside)
}

%condition (c: (s32[], bf16[64,1024])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[64,1024]{1,0}) parameter(0)
  %five = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %five), direction=LT
}

%body (b: (s32[], bf16[64,1024])) -> (s32[], bf16[64,1024]) {
  %b = (s32[]{:T(128)}, bf16[64,1024]{1,0}) parameter(0)
  %x = bf16[64,1024]{1,0} get-tuple-element(%b), index=1
  %work = bf16[64,1024]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mul" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %again = bf16[64,1024]{1,0} fusion(%work), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"500"}
  %sorted = (bf16[64,1024]{1,0:T(8,128)(2,1)S(1)}, s32[64,1024]{1,0}) sort(%again, %again), dimensions={1}
  ROOT %out = (s32[]{:T(128)}, bf16[64,1024]{1,0}) tuple(%i2, %again)
}

ENTRY %main (a: bf16[64,1024]) -> f32[] {
  %a = bf16[64,1024]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[64,1024]{1,0}) tuple(%zero, %a)
  %early = (bf16[64,1024]{1,0:S(1)}, bf16[64,1024]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %loop = (s32[]{:T(128)}, /*index=1*/bf16[64,1024]{1,0}) while(%start), condition=%condition, body=%body
  %part = f32[]{:T(128)} multiply(%zero, %zero)
  ROOT %all = f32[1024]{0} all-reduce(%part), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""
SIZE = 64 * 1024 * 2


def test_a_schedule_by_hand():
    found = schedule(TEXT, CHIP)
    by = {cost.op.name: cost for cost in found.costs}
    # A fusion counts by its own estimate, five times, and what is inside of it does not count again
    assert (by["work"].times, by["work"].kind, by["work"].seconds) == (5, "estimate", pytest.approx(5 * 1000 / 2e9))
    assert by["again"].seconds == pytest.approx(5 * 500 / 2e9)
    assert "inside" not in by
    # A sort: two operands and the result that lies in HBM, not the one in fast memory
    assert (by["sorted"].kind, by["sorted"].bytes) == ("bytes", 2 * SIZE + 64 * 1024 * 4)
    assert by["sorted"].seconds == pytest.approx(5 * (2 * SIZE + 64 * 1024 * 4) / 800e9)
    # The collective of one channel once, though two fusions hold it; half of its result comes over a link
    assert (by["gather.1"].times, by["gather.1"].bytes) == (5, SIZE)
    assert by["all"].bytes == 2 * 4096 * 3 // 4
    gathering = pytest.approx(5 * SIZE / 100e9)
    assert found.collectives() == {
        "all-gather": {"count": 5, "bytes": 5 * SIZE, "seconds": gathering, "beside": gathering},
        "all-reduce": {"count": 1, "bytes": 6144, "seconds": pytest.approx(6144 / 100e9), "beside": 0},
    }
    # An asynchronous copy is told, and takes no time of its own
    assert (by["early"].kind, by["early"].seconds) == ("overlapped", 0)
    assert found.seconds == pytest.approx(sum(cost.seconds for cost in by.values()))
    assert found.costs[0].seconds == max(cost.seconds for cost in found.costs)
    assert not found.notes
    # The line of our own that called the library, or the operation's name
    assert by["work"].source == "/repo/zoo/models/some.py:17"
    assert by["sorted"].source == ""


def test_an_all_reduce_that_keeps_a_part_is_a_reduce_scatter():
    text = TEXT.replace("fused", "all-reduce-scatter.2").replace("all-gather(%p)", "all-reduce(%p)")
    # Each device sends half of the whole array, in groups of two, and not all of it
    assert schedule(text, CHIP).collectives()["reduce-scatter"] == {
        "count": 5,
        "bytes": 5 * 128 * 1024 * 2 // 2,
        "seconds": pytest.approx(5 * 128 * 1024 / 100e9),
        "beside": 0,
    }


def test_a_loop_of_unknown_length_is_told():
    found = schedule(TEXT.replace("constant(5)", "custom-call()"), CHIP)
    assert found.notes == ["loop: a loop of unknown length is counted once"]
    assert next(cost for cost in found.costs if cost.op.name == "work").times == 1


def test_a_limit_in_the_loops_tuple():
    text = TEXT.replace("%five = s32[]{:T(128)} constant(5)", "%five = s32[]{:T(128)} get-tuple-element(%c), index=2")
    text = text.replace("tuple(%zero, %a)", "tuple(%zero, %a, %limit)").replace(
        "  %start", "  %limit = s32[]{:T(128)} constant(7)\n  %start"
    )
    assert next(cost for cost in schedule(text, CHIP).costs if cost.op.name == "work").times == 7


def test_branches_count_by_the_dearest():
    text = TEXT.replace(
        "while(%start), condition=%condition, body=%body",
        "conditional(%zero, %start, %start), branch_computations={%condition, %body}",
    )
    assert next(cost for cost in schedule(text, CHIP).costs if cost.op.name == "work").times == 1


KERNEL = Kernel("attend_rows", ((64, 128), (8,)), flops=700, needed=350, work=1400, bytes=96)
CALL = """  %attend_rows.7 = (bf16[64,128]{1,0:T(8,128)}, f32[8]{0}) custom-call(%again), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 512
}}, metadata={op_name="jit(f)/attend_rows/pallas_call" stack_frame_id=2}, backend_config={"custom_call_config":{}}
  %last = bf16[64,1024]{1,0} fusion(%again), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"50"}
"""
WITH_KERNEL = TEXT.replace("  %sorted", CALL + "  %sorted")


def test_a_kernel_counts_as_in_the_jaxpr():
    """Its attributes go over several lines, and what follows it is not lost."""
    found = schedule(WITH_KERNEL, CHIP, [KERNEL, dataclasses.replace(KERNEL, name="other")], peak=1e6)
    by = {cost.op.name: cost for cost in found.costs}
    assert by.keys() == {cost.op.name for cost in schedule(TEXT, CHIP).costs} | {"attend_rows.7", "last"}
    cost = by["attend_rows.7"]
    assert (cost.kind, cost.times, cost.bytes, cost.kernel) == ("kernel", 5, 96, KERNEL)
    assert cost.seconds == pytest.approx(5 * 1400 / (0.7 * 1e6))
    assert cost.source == "/repo/zoo/models/some.py:17"
    assert found.kernels() == {
        "attend_rows": {"count": 5, "flops": 3500, "bytes": 480, "seconds": pytest.approx(5 * 1400 / (0.7 * 1e6))}
    }
    assert not found.notes


def test_of_kernels_alike_the_dearest_and_of_none_the_bytes():
    found = schedule(WITH_KERNEL, CHIP, [KERNEL, dataclasses.replace(KERNEL, work=2800)], peak=1e6)
    assert found.kernels()["attend_rows"]["seconds"] == pytest.approx(5 * 2800 / (0.7 * 1e6))
    assert found.notes == ["attend_rows.7: one of 2 kernels of that name and shape, counted as the dearest"]
    for stranger in (
        dataclasses.replace(KERNEL, results=((64, 128), (9,))),
        dataclasses.replace(KERNEL, name="attend"),
    ):
        found = schedule(WITH_KERNEL, CHIP, [stranger], peak=1e6)
        size = SIZE + 64 * 128 * 2 + 8 * 4
        assert found.kernels()["attend_rows.7"]["seconds"] == pytest.approx(5 * size / 800e9)
        assert found.notes == ["attend_rows.7: a kernel that is not in the step's jaxpr counts by its bytes alone"]


@pytest.mark.parametrize(("slices", "moved"), [("1,2", 4096), ("1:4", 6144)])
def test_what_goes_to_other_slices_goes_over_the_network(slices, moved):
    target = f'_xla_megascale_target="{{{slices}}}x{{0:3}}",_xla_megascale_transfer_type="ALL_REDUCE"'
    text = f"""  %sent = (f32[8,128]{{1,0:T(8,128)}}, u32[], token[]) send(%part), frontend_attributes={{{target}}}
  %came = (f32[8,128]{{1,0:T(8,128)}}, u32[], token[]) recv(%after), channel_id=50, is_host_transfer=true
"""
    found = schedule(TEXT.replace("  ROOT %all", text + "  ROOT %all"), CHIP)
    row = found.collectives()["all-reduce between slices"]
    assert row == {"count": 1, "bytes": moved, "seconds": pytest.approx(moved / 5e9), "beside": 0}
    assert "came" not in {cost.op.name for cost in found.costs}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("pred[3,5]{1,0}", 15),
        ("(bf16[2,8]{1,0:T(8,128)}, /*index=1*/s32[4]{0:S(1)})", 32),
        ("f8e4m3fn[16]", 16),
        ("s4[16]{0}", 8),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert shape_bytes(shape) == size
