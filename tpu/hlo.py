"""What a compiled TPU program will cost, read from its text: the compiler's estimates where it gives them.

The schedule is a list of operations, some of them loops. A fusion, copy or convolution carries `estimated_cycles`.
Sorts, scatters and what else carries none is put at its bytes over the speed of HBM, a collective at its bytes over
that of its links. Pallas kernels are counted in the step's jaxpr (kernels.py) and found here by name and shapes.
Asynchronous copies run beside the rest: they are listed, and take no time of their own.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tpu.chips import Chip
from tpu.kernels import Kernel
from tpu.links import Place, links, members, sent

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"} | {
    "opt-barrier", "add-dependency", "domain", "send-done", "recv", "recv-done"
}  # fmt: skip
ASYNC = ("copy-start", "copy-done", "async-start", "async-update", "async-done", "slice-start", "slice-done")
DONE = tuple(f"{name}-done" for name in COLLECTIVES)
WIDTHS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0}
SHAPE = re.compile(r"\b(pred|token|bf16|c64|c128|[fsu]\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")


@dataclass
class Op:
    """One instruction of a computation."""

    name: str
    opcode: str
    shape: str
    """Text of the result's type."""
    operands: list[str]
    inside: str
    """Text of the operands; of a constant, its value."""
    rest: str
    """Attributes and backend config, as text."""

    @property
    def cycles(self) -> int | None:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def scope(self) -> str:
        """The path of functions that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, *names: str) -> list[str]:
        """The computations that attributes of these names hold."""
        found: list[str] = []
        for name in names:
            for match in re.finditer(rf"\b{name}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.rest):
                found += [match[1]] if match[1] else re.findall(r"%([\w.\-]+)", match[2])
        return found


@dataclass
class Cost:
    """An operation's share of a step: how often it runs, and the seconds of all its runs."""

    op: Op
    times: int
    seconds: float
    kind: str
    """estimate (the compiler's), bytes (over HBM), collective, kernel (Pallas) or overlapped."""
    bytes: int
    """That one run moves, over HBM or, of a collective, over links."""
    source: str
    kernel: Kernel | None = None
    """What is known of a Pallas kernel."""
    beside: bool = False
    """Whether a collective runs beside the work of a fusion that it is a part of. It counts in full all the same."""


@dataclass
class Schedule:
    """The costs of a program and what could not be read."""

    costs: list[Cost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)

    def by(self, kind: str) -> list[Cost]:
        return [cost for cost in self.costs if cost.kind == kind]

    def collectives(self) -> dict[str, dict[str, float]]:
        """By kind: how many run in a step, the bytes and seconds of them all, and those that run beside other work."""
        none = {"count": 0, "bytes": 0, "seconds": 0.0, "beside": 0.0}
        found: dict[str, dict[str, float]] = defaultdict(none.copy)
        for cost in self.by("collective"):
            row = found[collective_kind(cost.op.opcode) or f"{between_slices(cost.op)} between slices"]
            row["count"] += cost.times
            row["bytes"] += cost.times * cost.bytes
            row["seconds"] += cost.seconds
            row["beside"] += cost.seconds * cost.beside
        return dict(found)

    def kernels(self) -> dict[str, dict[str, float]]:
        """Of the Pallas kernels by name: how many run in a step, and the FLOPs, bytes and seconds of them all."""
        found: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "flops": 0, "bytes": 0, "seconds": 0.0})
        for cost in self.by("kernel"):
            row = found[cost.kernel.name if cost.kernel else cost.op.name]
            row["count"] += cost.times
            row["flops"] += cost.times * (cost.kernel.flops if cost.kernel else 0)
            row["bytes"] += cost.times * cost.bytes
            row["seconds"] += cost.seconds
        return dict(found)


def collective_kind(opcode: str) -> str | None:
    """The collective that an opcode starts, such as all-gather of all-gather-start; None for any other opcode."""
    name = opcode.removesuffix("-start")
    return name if name in COLLECTIVES else None


def shape_bytes(text: str, fast: bool = False) -> int:
    """Bytes of every array of a type's text that lies in HBM; with `fast` of those elsewhere too."""
    total = 0
    for kind, sizes, layout in SHAPE.findall(text):
        if not fast and re.search(r"S\([1-9]\d*\)", layout):  # a memory space other than HBM
            continue
        digits = re.search(r"\d+", kind)
        width = WIDTHS[kind] if kind in WIDTHS else int(digits[0]) if digits else 0
        total += math.prod(int(size) for size in sizes.split(",") if size) * width // 8
    return total


def parse(text: str) -> tuple[dict[str, list[Op]], str]:
    """The computations of a program by name, and the name of its entry."""
    computations: dict[str, list[Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("}") and not line.startswith("}}"):
            current = None
        elif current is not None:
            op = parse_op(line)
            if op:
                current.append(op)
            elif current:  # the attributes of a kernel go over several lines
                current[-1].rest += line
    return computations, entry


def parse_op(line: str) -> Op | None:
    """One line of a computation."""
    found = re.match(r"^\s+(?:ROOT )?%([\w.\-]+) = ", line)
    if not found:
        return None
    body = line[found.end() :]
    shape_end = closing(body, 0) + 1 if body.startswith("(") else body.index(" ")
    opened = body.index("(", shape_end)
    closed = closing(body, opened)
    operands = re.findall(r"%([\w.\-]+)", body[opened:closed])
    inside = body[opened + 1 : closed]
    return Op(found[1], body[shape_end:opened].strip(), body[:shape_end], operands, inside, body[closed + 1 :])


def closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"no end of {text[start : start + 40]!r}")


def schedule(
    text: str, chip: Chip, kernels: Sequence[Kernel] = (), peak: float = 0.0, places: Sequence[Place] = ()
) -> Schedule:
    """What every operation of a compiled program costs on a device of `peak` FLOP/s.

    `kernels` are those of its step, `places` the coordinates of its devices.
    """
    computations, entry = parse(text)
    sources, found, channels = source_lines(text), Schedule(), set()

    def add(op: Op, times: int, seconds: float, kind: str, size: int) -> None:
        frame = re.search(r"stack_frame_id=(\d+)", op.rest)
        source = sources.get(int(frame[1]), "") if frame else ""
        found.costs.append(Cost(op, times, times * seconds, kind, size, source or op.scope))

    def hidden(name: str, times: int) -> None:
        """Collectives inside of fusions, which run beside the fusion's own work."""
        for op in computations.get(name, []):
            if collective_kind(op.opcode):
                collective(op, times, within=name)
            for inner in op.called("calls"):
                hidden(inner, times)

    def collective(op: Op, times: int, within: str = "") -> None:
        channel = re.search(r"channel_id=(\d+)", op.rest)
        if channel:  # the parts of one that is spread over several fusions share its channel
            if channel[1] in channels:
                return
            channels.add(channel[1])
        group, kind = members(op.rest), collective_kind(op.opcode) or ""
        size, scatters = sent(kind, result_bytes(op), len(group) or 2), within.startswith("all-reduce-scatter")
        if scatters:  # an all-reduce in a fusion that keeps a part of it is how a TPU's program says reduce-scatter
            op, size = replace(op, opcode="reduce-scatter"), size // 2
        ways = 1 if kind == "collective-permute" else links(group, places, chip)
        add(op, times, size / (ways * chip.link * 1e9), "collective", size)
        found.costs[-1].beside = bool(within) and not scatters

    def pallas(op: Op, times: int, moved: int) -> None:
        same = {kernel.seconds(peak, chip.bandwidth * 1e9): kernel for kernel in kernels if is_kernel(op, kernel)}
        seconds = max(same, default=moved / (chip.bandwidth * 1e9))
        kernel = same.get(seconds)
        add(op, times, seconds, "kernel", kernel.bytes if kernel else moved)
        found.costs[-1].kernel = kernel
        if kernel is None:
            found.notes.append(f"{op.name}: a kernel that is not in the step's jaxpr counts by its bytes alone")
        elif len(same) > 1:
            found.notes.append(f"{op.name}: one of {len(same)} kernels of that name and shape, counted as the dearest")

    def walk(name: str, times: int) -> None:
        ops = {op.name: op for op in computations[name]}
        for op in ops.values():
            if op.opcode in FREE or op.opcode in DONE:
                continue
            moved = shape_bytes(op.shape) + sum(shape_bytes(ops[x].shape) for x in op.operands if x in ops)
            if op.opcode == "while":
                trips = trip_count(op, ops, computations)
                if trips is None:
                    found.notes.append(f"{op.name}: a loop of unknown length is counted once")
                walk(op.called("body")[0], times * (trips or 1))
            elif op.opcode == "conditional":
                branches = op.called("branch_computations", "true_computation", "false_computation")
                walk(max(branches, key=weight), times)
            elif op.opcode == "call":
                walk(op.called("to_apply")[0], times)
            elif collective_kind(op.opcode):
                collective(op, times)
            elif op.opcode == "send":
                size = network_bytes(op)
                add(op, times, size / (chip.network * 1e9), "collective", size)
            elif op.opcode in ASYNC:
                for inner in op.called("calls"):
                    hidden(inner, times)
                if not op.opcode.endswith("-done"):
                    add(op, times, 0.0, "overlapped", moved)
            else:
                for inner in op.called("calls"):
                    hidden(inner, times)
                if op.cycles is not None:
                    add(op, times, op.cycles / (chip.clock * 1e9), "estimate", moved)
                elif 'custom_call_target="tpu_custom_call"' in op.rest:
                    pallas(op, times, moved)
                else:
                    add(op, times, moved / (chip.bandwidth * 1e9), "bytes", moved)

    def weight(name: str) -> int:
        return sum(op.cycles or 0 for op in computations[name])

    walk(entry, 1)
    found.costs.sort(key=lambda cost: -cost.seconds)
    return found


def is_kernel(op: Op, kernel: Kernel) -> bool:
    """Whether a custom call may be this kernel: it has the name, and results of these shapes."""
    shapes = tuple(tuple(int(n) for n in sizes.split(",") if n) for _, sizes, _ in SHAPE.findall(op.shape))
    words = re.findall(r"\w+", f"{op.name} {op.scope}")
    return shapes == kernel.results and kernel.name in words


def trip_count(op: Op, ops: dict[str, Op], computations: dict[str, list[Op]]) -> int | None:
    """How often a loop runs, where its counter starts at zero and is compared with a constant; else None."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', op.rest)
    if known:
        return int(known[1])
    condition = {inner.name: inner for inner in computations[op.called("condition")[0]]}
    compare = next((x for x in condition.values() if x.opcode == "compare" and "direction=LT" in x.rest), None)
    if compare is None:
        fused = [name for x in condition.values() for name in x.called("calls")]
        for name in fused:
            inner = {x.name: x for x in computations[name]}
            if any(x.opcode == "compare" and "direction=LT" in x.rest for x in inner.values()):
                limits = [constant(x) for x in (*inner.values(), *condition.values())]
                limits = [x for x in limits if x is not None]
                return limits[0] if len(limits) == 1 else None
        return None
    limit = constant(condition[compare.operands[1]]) if compare.operands[1] in condition else None
    if limit is None and compare.operands[1] in condition:  # kept in the loop's tuple
        index = re.search(r"index=(\d+)", condition[compare.operands[1]].rest)
        start = ops.get(op.operands[0])
        if index and start is not None and start.opcode == "tuple" and int(index[1]) < len(start.operands):
            limit = constant(ops[start.operands[int(index[1])]]) if start.operands[int(index[1])] in ops else None
    return limit


def constant(op: Op) -> int | None:
    """The value of an integer constant."""
    return int(op.inside) if op.opcode == "constant" and op.inside.isdigit() else None


def result_bytes(op: Op) -> int:
    """Of the arrays that a collective gives; of one that only begins, of the largest that it names."""
    arrays = [shape_bytes(f"{kind}[{sizes}]", fast=True) for kind, sizes, _ in SHAPE.findall(op.shape)]
    return max(arrays, default=0) if op.opcode.endswith("-start") else sum(arrays)


def between_slices(op: Op) -> str:
    """What the sending to other slices is a part of: all-reduce, or another kind."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.rest)
    return found[1].lower().replace("_", "-") if found else op.opcode


def network_bytes(op: Op) -> int:
    """Bytes that one device sends to other slices; those of an all-reduce by the ring algorithm."""
    size = shape_bytes(op.shape.split("}")[0], fast=True)
    listed = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', op.rest)
    if between_slices(op) != "all-reduce" or not listed:
        return size
    ranges = [[int(end) for end in part.split(":")] for part in listed[1].split(",")]
    return sent("all-reduce", size, sum(ends[-1] - ends[0] + 1 for ends in ranges))


def source_lines(text: str) -> dict[int, str]:
    """For every stack frame "file:line", of the innermost caller that is not in an installed package."""
    tables: dict[str, dict[int, str]] = {}
    current: dict[int, str] | None = None
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            current = tables[line] = {}
        elif current is not None and re.match(r"^\d+ ", line):
            index, _, row = line.partition(" ")
            current[int(index)] = row
        elif line.startswith(("%", "ENTRY")):
            break

    def number(row: str, key: str) -> int:
        found = re.search(rf"{key}=(\d+)", row)
        return int(found[1]) if found else 0

    def place(frame: int) -> str:
        seen: set[int] = set()
        first = ""
        while frame in tables.get("StackFrames", {}) and frame not in seen:
            seen.add(frame)
            row = tables["StackFrames"][frame]
            location = tables["FileLocations"][number(row, "file_location_id")]
            file = tables["FileNames"][number(location, "file_name_id")].strip('"')
            where = f"{file}:{number(location, ' line')}"
            first = first or where
            if "site-packages" not in file and "dist-packages" not in file:
                return where
            frame = number(row, "parent_frame_id")
        return first

    return {frame: place(frame) for frame in tables.get("StackFrames", {})}
