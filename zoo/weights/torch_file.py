"""Tensors of PyTorch files, without PyTorch and without unpickling.

A PyTorch file is a pickle that describes tensors, and raw storages that hold their numbers: in a zip archive
(since torch 1.6), or one after the other (before). A pickle is a program that may call anything. Here its
instructions are only read, and those few that `torch.save` writes for containers, scalars and tensors are
carried out on plain values; a file that asks for anything else is refused, and nothing of it is run.
"""

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from zoo.errors import ZooError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# What pickletools, zipfile and the reading below raise for a file with wrong bytes.
DAMAGE = (ValueError, TypeError, LookupError, EOFError, RuntimeError, OverflowError, zipfile.BadZipFile)

MAX_DEPTH = 64  # nested containers
MAX_VALUES = 10**6  # values in all containers, counted each time that one is reached

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle names: `size` numbers under a key."""

    key: str
    dtype: np.dtype[Any]
    size: int


@dataclass(frozen=True)
class Tensor:
    """A tensor that the pickle describes; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Global:
    """The name of something that the pickle wants to call."""

    name: str


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor of a PyTorch file, by its dotted name, as read-only arrays in their own dtype.

    Where the file holds a dict with a "state_dict", that alone is read. Other values are left out. Raises
    ZooError for a file that is missing, damaged, or asks for more than containers, scalars and tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"
            file.seek(0)
            content, buffers = _read_zip(file) if zipped else _read_legacy(io.BytesIO(file.read()))
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        return {name: _array(tensor, buffers) for name, tensor in _tensors(content).items()}
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}") from error
    except _Refused as error:
        raise ZooError(
            f"{path} {error}; nothing of it was run: save its state_dict alone, or as safetensors"
        ) from error
    except DAMAGE as error:
        raise ZooError(
            f"{path} is not a PyTorch file, or is damaged ({type(error).__name__}: {error}); get it again"
        ) from error


class _Refused(Exception):
    """The file is well-formed as far as it was read, and wants what is not allowed."""


def _read_zip(file: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    archive, whole = zipfile.ZipFile(file), os.fstat(file.fileno()).st_size
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"the archive has {len(pickles)} entries data.pkl in place of one")
    root = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        # torch.save never compresses, so no entry is larger than the file.
        if entries[name].compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        if entries[name].file_size > whole:
            raise ValueError(f"{name} is larger than the file")
        return archive.read(name)

    if f"{root}byteorder" in entries and read(f"{root}byteorder").strip() != b"little":
        raise _Refused("was written on a big-endian machine, which is not supported")
    content, storages = _interpret(io.BytesIO(read(pickles[0])))
    return content, {storage.key: read(f"{root}data/{storage.key}") for storage in storages.values()}


def _read_legacy(file: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    if _interpret(file)[0] != LEGACY_MAGIC:
        raise ValueError("it starts with neither a zip archive nor the magic number of torch.save")
    version, system = _interpret(file)[0], _interpret(file)[0]
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("has another format version, or was written on a big-endian machine: neither is supported")
    content, storages = _interpret(file)
    keys = _interpret(file)[0]
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or sorted(keys) != sorted(storages):
        raise ValueError("the list of storages is not that of its tensors")
    buffers = {}
    for key in keys:
        size = int.from_bytes(_read_exactly(file, 8), "little")
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} numbers, its tensors expect {storages[key].size}")
        buffers[key] = _read_exactly(file, size * storages[key].dtype.itemsize)
    return content, buffers


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"it ends {size - len(content)} bytes too early")
    return content


def _interpret(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Carries out one pickle on plain values: returns what it describes, and the storages it names by key."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def pop(count: int) -> list[Any]:
        if len(stack) - (marks[-1] if marks else 0) < count:
            raise ValueError("the pickle takes more values than it gave")
        values = stack[-count:]
        del stack[-count:]
        return values

    def top(kind: type) -> Any:
        if not isinstance(stack[-1], kind):
            raise ValueError(f"the pickle fills a {type(stack[-1]).__name__} like a {kind.__name__}")
        return stack[-1]

    arg: Any
    for opcode, arg, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                continue
            case "STOP":
                return pop(1)[0], storages
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(arg)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                values = pop(1)
                top(list).extend(values)
            case "APPENDS":
                values = since_mark()
                top(list).extend(values)
            case "SETITEM":
                values = pop(2)
                _fill(top(dict), [values])
            case "SETITEMS":
                values = since_mark()
                _fill(top(dict), zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL" | "STACK_GLOBAL":
                name = arg.replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(map(str, pop(2)))
                if name not in STORAGES and name not in CALLS:
                    raise _Refused(f"asks for {name}, which is neither a container nor a tensor")
                stack.append(Global(name))
            case "BINPERSID":
                storage = _storage(*pop(1)[0])
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"storage {storage.key} is described in two ways")
                stack.append(storage)
            case "REDUCE":
                function, args = pop(2)
                if not isinstance(function, Global) or function.name not in CALLS:
                    raise _Refused(f"calls a {type(function).__name__}")
                stack.append(CALLS[function.name](*args))
            case "BUILD":  # attributes of a dict, such as the versions of its modules
                pop(1)
                top(dict)
            case _:
                raise _Refused(f"uses the pickle instruction {opcode.name}{'' if arg is None else f' {arg!r}'[:80]}")
    raise ValueError("the pickle has no end")


def _storage(kind: Any, storage_type: Any, key: Any, location: Any, size: Any, view: Any = None) -> Storage:
    if not isinstance(storage_type, Global) or storage_type.name not in STORAGES:
        raise _Refused("names a storage of no known type")
    if kind != "storage" or not isinstance(key, str) or view is not None:
        raise _Refused("names a storage in a way that torch.save no longer does")
    _natural(size)
    return Storage(key, STORAGES[storage_type.name], size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """The arguments of torch._utils._rebuild_tensor(_v2); the rest is for autograd."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor is not described by storage, offset, shape and strides")
    _natural(offset, *shape, *strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} has strides {strides}")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count and last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches number {last} of a storage of {storage.size}")
    if count > storage.size:  # repeated by strides of zero: small in the file, and without bound in memory
        raise ValueError(f"a tensor of shape {shape} is larger than its storage of {storage.size}")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any, requires_grad: Any = None, hooks: Any = None) -> Any:
    return data


def _ordered_dict(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    return _fill({}, pairs)


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def _fill(target: dict[Any, Any], pairs: Iterable[Any]) -> dict[Any, Any]:
    for key, value in pairs:
        # Other keys can be built so that hashing or printing one takes for ever.
        if not isinstance(key, str | int | float):
            raise _Refused(f"has a dict with a key that is a {type(key).__name__}")
        target[key] = value
    return target


def _natural(*values: Any) -> None:
    if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
        raise ValueError("a size, an offset or a stride is no natural number")


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of nested containers by dotted names, in the order of the file."""
    found: dict[str, Tensor] = {}
    seen = 0

    def visit(value: Any, path: tuple[str, ...]) -> None:
        nonlocal seen
        seen += 1
        if seen > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ValueError(f"its containers hold more than {MAX_VALUES} values, or are nested over {MAX_DEPTH} deep")
        if isinstance(value, Tensor):
            if ".".join(path) in found:
                raise ValueError(f"two tensors have the name {'.'.join(path)}")
            found[".".join(path)] = value
        elif isinstance(value, dict | list | tuple):
            for key, child in value.items() if isinstance(value, dict) else enumerate(value):
                visit(child, (*path, str(key)))

    visit(content, ())
    return found


def _array(tensor: Tensor, buffers: dict[str, bytes]) -> np.ndarray:
    storage, buffer = tensor.storage, buffers[tensor.storage.key]
    if len(buffer) != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key} has {len(buffer)} bytes, not {storage.size} × {storage.dtype.itemsize}"
        )
    # A byte that is neither 0 nor 1 is no numpy bool.
    numbers = (
        np.frombuffer(buffer, np.uint8) != 0 if storage.dtype == np.bool_ else np.frombuffer(buffer, storage.dtype)
    )
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
