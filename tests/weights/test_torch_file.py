import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.weights.torch_file import read_torch

GOLDEN = Path(__file__).parent.parent / "golden"


class Raw(bytes):
    """Instructions of a pickle, as they are."""


def emit(value):
    """The instructions that make a value, as torch.save writes them."""
    match value:
        case Raw():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case int():
            content = value.to_bytes(9, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case dict():
            return b"}(" + b"".join(emit(k) + emit(v) for k, v in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(emit, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
    raise AssertionError(value)


def named(name):
    module, _, attribute = name.rpartition(".")
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(name, *args):
    return Raw(named(name) + emit(args) + b"R")


def storage(size, key="0", kind="torch.FloatStorage", word="storage"):
    return Raw(emit((word, named(kind), key, "cpu", size)) + b"Q")


def tensor(shape, strides, offset=0, size=6, **where):
    return call("torch._utils._rebuild_tensor_v2", storage(size, **where), offset, shape, strides, False, {})


def finish(value):
    return b"\x80\x02" + emit(value) + b"."


DATA = np.arange(6, dtype=np.float32).tobytes()


def write_zip(path, value, compression=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", value if type(value) is bytes else finish(value))
        for name, content in ({"data/0": DATA} | entries).items():
            archive.writestr(f"x/{name}", content)
    return path


def write_legacy(path, value, keys=("0",), sizes=(6,), data=DATA, system=None):
    head = (0x1950A86A20F9469CFC6C, 1001, system or {"little_endian": True})
    head = [b"\x80\x02\x8a\x0a" + head[0].to_bytes(10, "little") + b".", *(finish(part) for part in head[1:])]
    body = value if type(value) is bytes else finish(value)
    tail = b"".join(struct.pack("<q", size) + data for size in sizes)
    path.write_bytes(b"".join(head) + body + finish(list(keys)) + tail)
    return path


@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_legacy.pt"])
def test_reads_what_torch_wrote(name):
    tensors = read_torch(GOLDEN / name)
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "net.transposed": base.T,
        "net.window": base[1:3, ::2],
        "net.half": np.array([1.5, -2], np.float16),
        "net.double": np.array([0.1]),
        "net.scalar": np.array(-7),
        "net.byte": np.array([[1], [255]], np.uint8),
        "net.flags": np.array([True, False]),
        "net.empty": np.zeros((0, 3), np.float32),
        "net.parameter": np.array([3], np.float32),
        "moments.0.0": np.ones(1, np.float32),
    }
    assert str(tensors["net.bfloat"].dtype) == "bfloat16"
    assert tensors.pop("net.bfloat").astype(np.float32).tolist() == [1, -2.5]
    assert set(tensors) == set(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype, key
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)


def test_reads_published_files(assets):
    resnet = read_torch(assets / "resnet20-12fca82f.th")
    assert resnet["module.layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    parameters = [x for name, x in resnet.items() if "running" not in name]
    assert sum(x.size for x in parameters) == 269_722
    assert all(np.all(x > 0) for name, x in resnet.items() if name.endswith("running_var"))
    decoder = read_torch(assets / "taef2_decoder.pth")
    assert decoder["1.weight"].shape == (64, 32, 3, 3)
    assert {str(x.dtype) for x in decoder.values()} == {"float16"}
    assert all(np.all(np.isfinite(x)) for x in decoder.values())


def test_the_state_dict_is_chosen(tmp_path):
    content = {"state_dict": {"w": tensor((2,), (1,))}, "optimizer": {"m": tensor((2,), (1,))}}
    for path in (write_zip(tmp_path / "z", content), write_legacy(tmp_path / "l", content)):
        tensors = read_torch(path)
        assert {name: x.tolist() for name, x in tensors.items()} == {"w": [0, 1]}
        assert not tensors["w"].flags.writeable


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_code_is_refused_and_not_run(tmp_path, write, protocol):
    proof = tmp_path / "proof"
    path = write(tmp_path / "evil.pt", pickle.dumps({"w": Evil(proof)}, protocol))
    with pytest.raises(ZooError, match=r"evil\.pt (asks for (posix|nt)\.system|uses the pickle instruction)"):
        read_torch(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Evil(proof), protocol))
    assert proof.exists()  # so the pickle was a live one


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (call("builtins.eval", "1"), "asks for builtins.eval"),
        (call("torch.nn.modules.linear.Linear"), "asks for torch.nn.modules.linear.Linear"),
        (call("torch._utils._rebuild_tensor_v2.__globals__"), "asks for"),
        (Raw(b"(S'x'\nios\nsystem\n"), "STRING"),
        (Raw(b"(ios\nsystem\n"), "INST 'os system'"),
        (Raw(named("collections.OrderedDict") + b")\x81"), "NEWOBJ"),
        (Raw(b"\x82\x01"), "EXT1"),
        (Raw(emit("os") + emit("system") + b"\x93"), "asks for os.system"),
        (Raw(emit("print") + b")R"), "calls a str"),
        (Raw(named("torch.FloatStorage") + b")R"), "calls a Global"),
        (Raw(b"](K\x01)e" + emit({}) + b"b"), "fills a list like a dict"),
        (Raw(b"})K\x01s"), "key that is a tuple"),
        (storage(6, kind="collections.OrderedDict"), "storage of no known type"),
        (storage(6, word="module"), "names a storage in a way"),
        (storage(-1), "natural number"),
        (tensor((2,), (1,), offset=5), r"\(2,\) reaches number 6 of a storage of 6"),
        (tensor((2, 2), (4, 2)), "reaches number 6"),
        (tensor((2,), (-1,), offset=1), "natural number"),
        (tensor((10**12,), (0,)), "larger than its storage"),
        (tensor((2**62, 4), (0, 0)), "larger than its storage"),
        (tensor((2,), (1, 1)), "has strides"),
        (tensor(2, 1), "not described by"),
        (tensor((2,), (1,), size=7), r"storage 0 has"),
        (tensor((2,), (1,), key="../data.pkl"), "KeyError|list of storages"),
        ([tensor((2,), (1,)), tensor((2,), (1,), kind="torch.HalfStorage")], "two ways"),
        ({"a.b": tensor((2,), (1,)), "a": {"b": tensor((2,), (1,))}}, "two tensors have the name a.b"),
        (Raw(b"0"), "POP"),
        (Raw(b"h\x05"), "KeyError"),
        (Raw(b"a"), "damaged"),
        (Raw(b"\x85"), "takes more values"),
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_bad_pickles_are_refused(tmp_path, write, value, message):
    with pytest.raises(ZooError, match=message):
        read_torch(write(tmp_path / "bad.pt", value))


def test_endless_containers_are_refused(tmp_path):
    with pytest.raises(ZooError, match="nested over"):
        read_torch(write_zip(tmp_path / "deep", Raw(b"]" * 100 + b"a" * 99)))
    # A list of two references to a list of two references to ... : 2^40 values in some hundred bytes.
    doubled = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(40))
    with pytest.raises(ZooError, match="hold more than"):
        read_torch(write_zip(tmp_path / "wide", Raw(doubled)))


def test_a_zip_entry_beyond_the_end_is_refused(tmp_path):
    path = write_zip(tmp_path / "bad.pt", tensor((2,), (1,)))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 42, len(content) - 10)  # where its header is said to be
    path.write_bytes(content)
    with pytest.raises(ZooError, match="damaged"):
        read_torch(path)


def test_bad_containers_are_refused(tmp_path):
    good = tensor((2,), (1,))
    path = tmp_path / "bad.pt"
    for message, write in (
        ("data.pkl is compressed", lambda: write_zip(path, good, zipfile.ZIP_DEFLATED)),
        ("big-endian", lambda: write_zip(path, good, byteorder=b"big")),
        ("storage 0 has 5 bytes, not 6 × 4", lambda: write_zip(path, good, **{"data/0": b"12345"})),
        ("2 entries data.pkl", lambda: write_zip(path, good, **{"y/data.pkl": finish(good)})),
        ("big-endian", lambda: write_legacy(path, good, system={"little_endian": False})),
        ("list of storages", lambda: write_legacy(path, good, keys=("1",))),
        ("storage 0 has 5 numbers, its tensors expect 6", lambda: write_legacy(path, good, sizes=(5,))),
        ("ends 4 bytes too early", lambda: write_legacy(path, good, data=DATA[:-4])),
        ("magic number", lambda: path.write_bytes(finish(5))),
        ("not a PyTorch file", lambda: path.write_bytes(b"")),
        ("not a PyTorch file", lambda: path.write_bytes(b"hello")),
        ("cannot be read: Is a directory", lambda: (path.unlink(), path.mkdir())),
    ):
        write()
        with pytest.raises(ZooError, match=message) as error:
            read_torch(path)
        assert "bad.pt" in str(error.value)
    with pytest.raises(ZooError, match="No such file"):
        read_torch(tmp_path / "absent")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of string escapes, while pickletools reads garbage
@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_legacy.pt"])
def test_damage_raises_only_zoo_errors(tmp_path, name):
    content = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    for cut in range(0, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:cut])
        with pytest.raises(ZooError, match=name):
            read_torch(path)
    generator, refused = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 3, 10])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_torch(path)
        except ZooError:
            refused += 1
    assert refused > 50


def test_a_storage_is_read_once_and_shared(tmp_path):
    content = {"a": tensor((6,), (1,)), "b": tensor((2, 3), (1, 2))}
    tensors = read_torch(write_zip(tmp_path / "z", content))
    assert np.shares_memory(tensors["a"], tensors["b"])
    assert tensors["b"].tolist() == [[0, 2, 4], [1, 3, 5]]
