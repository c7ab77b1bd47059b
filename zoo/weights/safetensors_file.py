"""The safetensors format, a tensor at a time: the header tells all shapes before any number is read.

The file is eight bytes with the length of the header, the header in JSON ("name": {"dtype", "shape",
"data_offsets"}), and the numbers (github.com/huggingface/safetensors). Files are taken as untrusted.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from zoo.errors import ZooError
from zoo.weights.rules import Shape, Source

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MAX_AXES = 32

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_sources(path: epath.Path) -> dict[str, Source]:
    """The tensors of a file, which are views of it once they are read.

    Raises ZooError for a file that is missing, truncated, or whose header does not describe its bytes.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError(f"a file of {size:,} bytes has a header of {length:,}")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not a dict")
        header.pop("__metadata__", None)
        return _sources(path, header, 8 + length, size)
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path} is not a safetensors file, or is damaged ({error}); get it again") from error


def write_sources(path: epath.Path, sources: Mapping[str, Source], metadata: Mapping[str, str]) -> None:
    """Writes tensors in their dtypes, reading one at a time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, source in sources.items():
        begin, end = end, end + nbytes(source)
        header[name] = {"dtype": NAMES[source.dtype], "shape": list(source.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers are aligned, as the library writes them
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for source in sources.values():
            array = np.ascontiguousarray(source.read(), source.dtype)
            file.write(array.reshape(-1).view(np.uint8).data)


def nbytes(source: Source) -> int:
    """Bytes of a tensor in a file."""
    return math.prod(source.shape) * source.dtype.itemsize


def file_source(path: epath.Path, dtype: np.dtype[Any], shape: Shape, offset: int) -> Source:
    """A tensor that lies in a file, as a view of it; from a remote file, as a copy."""

    def read() -> np.ndarray:
        count = math.prod(shape)
        if count and Path(path).exists():
            return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)
        with path.open("rb") as file:
            file.seek(offset)
            return np.frombuffer(file.read(count * dtype.itemsize), dtype).reshape(shape)

    return Source(shape, dtype, read)


def _sources(path: epath.Path, header: dict[str, Any], start: int, size: int) -> dict[str, Source]:
    found, spans = {}, []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise ValueError(f"{name[:80]} has no dtype, shape and data_offsets")
        if kind not in DTYPES:
            raise ValueError(f"{name[:80]} has the unknown dtype {kind[:80]}")
        if len(shape) > MAX_AXES or any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"{name[:80]} has a shape that is not of at most {MAX_AXES} natural numbers")
        if end - begin != math.prod(shape) * DTYPES[kind].itemsize:
            raise ValueError(f"{name[:80]} is {kind} {shape}, which is not the {end - begin:,} bytes that it has")
        spans.append((begin, end))
        found[name] = file_source(path, DTYPES[kind], tuple(shape), start + begin)
    at = 0
    for begin, end in sorted(spans):  # as the format has it: no gap, no overlap, nothing behind
        if begin != at:
            raise ValueError(f"its tensors leave a gap, or overlap, at byte {start + at:,}")
        at = end
    if start + at != size:
        raise ValueError(f"its tensors end at byte {start + at:,}, the file at {size:,}")
    return found
