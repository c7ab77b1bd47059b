"""Tokenizers from files of others: Hugging Face, GPT-2, GGUF, llama2.c.

Files are untrusted: they are parsed as JSON or plain bytes, bounded in size, and what does not fit is a ZooError.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from zoo.data.sentencepiece import parse_llama2c
from zoo.data.text import Codec, codec_from_json
from zoo.data.tokenizer import ROLES, Subwords
from zoo.errors import ZooError, unknown

MOST_BYTES = 2**26  # the largest published tokenizers have half of it
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF

# The patterns that GGUF names by `tokenizer.ggml.pre`, as their models' own tokenizer.json files give them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = _BYTES | {"use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt2": {"pre_tokenizer": _GPT2},
    "smollm": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2]}},
    "llama-bpe": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_split(_LLAMA3), _BYTES]},
        "ignore_merges": True,
    },
    "qwen2": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_split(_LLAMA3.replace("{1,3}", "")), _BYTES]},
        "normalizer": {"type": "NFC"},
    },
}
for _name, _like in {"gpt-2": "gpt2", "llama3": "llama-bpe", "starcoder": "smollm"}.items():
    PRE_TOKENIZERS[_name] = PRE_TOKENIZERS[_like]


def load_tokenizer(source: str | pathlib.Path) -> Codec:
    """The tokenizer of a folder or file.

    A folder: tokenizer.json (with tokenizer_config.json and chat_template.jinja where they are), GPT-2's vocab.json
    or encoder.json with merges.txt or vocab.bpe, or codec.json. A file: one of these, or llama2.c's tokenizer .bin.
    """
    path = pathlib.Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    names = [path.name] if path.is_file() else []
    if path.is_dir():
        names = ["tokenizer.json", "codec.json", "vocab.json", "encoder.json"]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise ZooError(f"{path} holds no tokenizer.json, no vocab.json with merges.txt, and no codec.json")
    try:
        if name.endswith(".bin"):
            return parse_llama2c(_read_bytes(folder / name))
        data = _read_json(folder / name)
        if isinstance(data.get("codec"), str):  # in a vocabulary, "codec" and "model" are tokens
            return codec_from_json(data)
        roles, template = _read_config(folder)
        if isinstance(data.get("model"), dict):
            return Subwords(data, _known(roles, data), template)
        merges = next((folder / m for m in ("merges.txt", "vocab.bpe") if (folder / m).is_file()), None)
        if merges is None:
            raise ZooError("no merges.txt or vocab.bpe lies beside it")
        lines = [line for line in _read(merges).splitlines() if line and not line.startswith("#version")]
        spec = _bpe(data, lines, [t for t in data if t == "<|endoftext|>"], [], PRE_TOKENIZERS["gpt2"])
        default = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>") if "<|endoftext|>" in data else {}
        return Subwords(spec, _known(default | roles, spec), template)
    except ZooError as error:
        raise ZooError(f"{folder / name}: {error}") from None


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Subwords:
    """The byte-level BPE tokenizer of a GGUF file.

    `fields` has tokens, merges, and where there are any token_types (3 control, 4 user defined), pre (a key of
    PRE_TOKENIZERS), bos_id, eos_id, pad_id, unk_id and chat_template.
    """
    tokens, merges = (list(fields.get(name) or ()) for name in ("tokens", "merges"))
    types = fields.get("token_types")
    types = [1] * len(tokens) if types is None else list(types)
    if not tokens or not all(isinstance(text, str) for text in tokens + merges) or len(types) != len(tokens):
        raise ZooError("a GGUF tokenizer needs tokens and merges as lists of text, and a type for every token")
    if len(set(tokens)) != len(tokens):
        raise ZooError("this GGUF vocabulary holds a token twice")
    pre = fields.get("pre") or "gpt2"
    if pre not in PRE_TOKENIZERS:
        raise unknown("pre-tokenizer of a GGUF file", str(pre), PRE_TOKENIZERS)
    roles: dict[str, str] = {}
    for role in ROLES:
        i = fields.get(f"{role}_id")
        if i is not None:
            if not 0 <= i < len(tokens):
                raise ZooError(f"the {role} token of this GGUF file is {i}, but it holds {len(tokens)} tokens")
            roles[role] = tokens[i]
    control, user = ([tokens[i] for i, of in enumerate(types) if of == kind] for kind in (_CONTROL, _USER_DEFINED))
    spec = _bpe({token: i for i, token in enumerate(tokens)}, merges, control, user, PRE_TOKENIZERS[pre])
    return Subwords(spec, roles, fields.get("chat_template") or "")


def _bpe(
    vocab: dict[str, int], merges: list[str], control: list[str], user: list[str], pre: dict[str, Any]
) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE."""
    for line, merge in enumerate(merges, start=1):
        if len(merge.split(" ")) != 2:
            raise ZooError(f"merge {line} is {merge[:40]!r}, not two tokens with a space between")
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kinds = [(token, True) for token in control] + [(token, False) for token in user]
    added = [{"id": vocab[token], "content": token, "special": special} | common for token, special in kinds]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": pre.get("ignore_merges", False)}
    return {
        "version": "1.0",
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": pre.get("normalizer"),
        "pre_tokenizer": pre["pre_tokenizer"],
        "post_processor": None,
        "decoder": _BYTES,
        "model": model,
    }


def _known(roles: Mapping[str, str | None], spec: dict[str, Any]) -> dict[str, str | None]:
    """Roles without a pad or unknown token that the vocabulary lacks; some published files name such."""
    vocab = spec["model"].get("vocab", ()) if isinstance(spec.get("model"), dict) else ()
    tokens = {t if isinstance(t, str) else t[0] for t in vocab if isinstance(t, str) or t}
    tokens |= {token.get("content") for token in spec.get("added_tokens") or () if isinstance(token, dict)}
    return {role: token for role, token in roles.items() if token in tokens or role in ("bos", "eos")}


def _read_config(folder: pathlib.Path) -> tuple[dict[str, str | None], str]:
    """Role tokens and chat template of tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
    roles: dict[str, str | None] = {}
    template: Any = ""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        data = _read_json(folder / name) if (folder / name).is_file() else {}
        for role in ROLES:
            token = data.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                roles[role] = token
        template = data.get("chat_template") or template
    if isinstance(template, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if (folder / "chat_template.jinja").is_file():
        template = _read(folder / "chat_template.jinja")
    return roles, template if isinstance(template, str) else ""


def _read_bytes(path: pathlib.Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            size = path.stat().st_size / 2**20
            raise ZooError(f"{path} has {size:.0f} MiB; a tokenizer has {MOST_BYTES >> 20} at most")
        return path.read_bytes()
    except OSError as error:
        raise ZooError(f"cannot read {path}: {error.strerror}") from None


def _read(path: pathlib.Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ZooError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path))
    except ZooError:
        raise
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ZooError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data
