"""Text: codecs give back what they were given, splits are those of the usual benchmarks, bad files are named."""

import json
import math
import pathlib

import numpy as np
import pytest

from zoo.data.text import Bytes, Characters, TextConfig, codec_from_json, load_text
from zoo.errors import ZooError

WORDS = "Füchse jagen 🦊 über den Zaun.\r\n\tEnde"


def test_characters_are_numbered_in_sorted_order():
    codec = Characters("banana c")
    assert codec.vocab_size == 5
    assert codec.encode("cab n").tolist() == [3, 1, 2, 0, 4]
    assert codec.decode([3, 1, 2, 0, 4]) == "cab n"
    assert codec.encode("").tolist() == []


@pytest.mark.parametrize("codec", [Characters(WORDS), Bytes()], ids=["chars", "bytes"])
def test_codecs_round_trip_also_through_json(codec):
    again = codec_from_json(json.loads(json.dumps(codec.to_json())))
    assert again.vocab_size == codec.vocab_size
    ids = codec.encode(WORDS)
    np.testing.assert_array_equal(again.encode(WORDS), ids)
    assert again.decode(ids) == codec.decode(ids) == WORDS


def test_bytes_are_those_of_utf8():
    assert Bytes().encode(WORDS).tolist() == list(WORDS.encode("utf-8"))
    assert Bytes().decode([0x48, 0xFF, 0x69]) == "H\ufffdi"


@pytest.mark.parametrize("codec", [Characters("ab"), Bytes()], ids=["chars", "bytes"])
def test_ids_beyond_the_vocabulary_decode_to_the_replacement(codec):
    ids = np.concatenate([codec.encode("a"), [codec.vocab_size, 300], codec.encode("b")])
    assert codec.decode(ids) == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("characters", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (65536 - 2048 + 1, np.uint16)]
)
def test_ids_take_the_smallest_dtype(characters, dtype):
    points = [point for point in range(characters + 2048) if not 0xD800 <= point < 0xE000][:characters]
    codec = Characters("".join(map(chr, points)))
    assert codec.vocab_size == characters
    ids = codec.encode(codec.alphabet)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(characters))


def test_an_unknown_character_is_named_with_its_position():
    with pytest.raises(ZooError, match=r"character 'ü' at position 4 is not among the 3"):
        Characters("abc").encode("abcaüb")
    with pytest.raises(ZooError, match="at position 0"):  # undecodable bytes of a command line
        Characters("abc").encode("\udcff")
    assert Bytes().decode(Bytes().encode("\udcff")) == "\ufffd" * 3


@pytest.mark.parametrize("data", [{}, {"codec": "chars"}, {"codec": "byte"}, {"codec": "chars", "alphabet": 3}, []])
def test_what_is_no_codec_is_refused(data):
    with pytest.raises(ZooError, match=r"codec"):
        codec_from_json(data)


def test_pydoc_is_real_english_in_two_parts():
    from pydoc_data.topics import topics

    text = load_text(TextConfig())
    whole = text.codec.decode(text.train) + text.codec.decode(text.test)
    assert text.name == "pydoc"
    assert whole.startswith(topics[min(topics)])
    assert whole.endswith(topics[max(topics)])
    assert all(topic in whole for topic in topics.values())
    assert len(text.train) == int(len(whole) * 0.9)


def test_tinyshakespeare_splits_as_in_nanogpt(assets: pathlib.Path):
    path = assets / "tinyshakespeare.txt"
    text = load_text(TextConfig(f"text:{path}"))
    data = path.read_text()
    assert (text.codec.vocab_size, len(text.train), len(text.test)) == (65, 1003854, 111540)
    assert text.codec.decode(text.test[:100]) == data[1003854 : 1003854 + 100]
    assert (text.bytes_per_token, text.name, text.train.dtype) == (1.0, "tinyshakespeare", np.uint8)


def test_bytes_per_token_is_of_the_held_out_part(tmp_path):
    (tmp_path / "t.txt").write_text("a" * 80 + "ü" * 20, encoding="utf-8")
    chars = load_text(TextConfig(f"text:{tmp_path}/t.txt", holdout=0.4))
    byte = load_text(TextConfig(f"text:{tmp_path}/t.txt", "bytes", 0.4))
    assert math.isclose(chars.bytes_per_token, 60 / 40)
    assert byte.bytes_per_token == 1.0
    assert (len(byte.train), len(byte.test)) == (60, 60)
    assert byte.codec.vocab_size == 256


def test_a_folder_is_read_in_sorted_order(tmp_path):
    (tmp_path / "b.txt").write_text("second ")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.md").write_text("\ufefffirst ", encoding="utf-8")
    (tmp_path / "c.py").write_text("not text")
    text = load_text(TextConfig(f"text:{tmp_path}", holdout=0.2))
    assert text.codec.decode(text.train) + text.codec.decode(text.test) == "first \nsecond "


def test_bad_sources_are_named(tmp_path):
    def error(source, **kw):
        with pytest.raises(ZooError) as caught:
            load_text(TextConfig(source, **kw))
        return str(caught.value)

    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.py").write_text("no text")
    assert f"no file or folder {tmp_path}/none.txt" in error(f"text:{tmp_path}/none.txt")
    assert f"{tmp_path}/latin.txt is not UTF-8: byte 0xe9 at offset 3" in error(f"text:{tmp_path}/latin.txt")
    assert f"{tmp_path}/empty.txt is empty" in error(f"text:{tmp_path}/empty.txt")
    assert f"{tmp_path}/folder holds no .txt or .md file" in error(f"text:{tmp_path}/folder")
    assert "3 characters, too few" in error(f"text:{tmp_path}/short.txt")
    assert "did you mean pydoc" in error("pydocs")
    assert "needs a path" in error("text:")
    assert "holdout is 1.0" in error("pydoc", holdout=1.0)
