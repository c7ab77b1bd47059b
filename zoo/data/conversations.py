"""Where dialogues and preferences come from: the world of dialogues.py, or JSON lines."""

import dataclasses
import json
from typing import Annotated, Any

import tyro

from zoo.data.chat import read_dialogues, read_preferences
from zoo.data.dialogues import load_dialogues, load_preferences
from zoo.data.draw import held_out
from zoo.errors import ZooError, unknown


@dataclasses.dataclass(frozen=True)
class ConversationConfig:
    source: Annotated[str, tyro.conf.arg(aliases=["--data"])] = "dialogues"
    """dialogues (questions and answers that code makes) or jsonl:FILE, a line of which holds messages."""
    pairs: str = "dialogues"
    """What DPO learns from: dialogues, or jsonl:FILE, a line of which holds prompt, chosen and rejected."""
    size: int = 6000
    """Dialogues that are made; a third as many pairs."""
    holdout: float = 0.15
    """Share that is kept for evaluation, chosen by content."""
    seed: int = 0
    """Of what is made."""
    skip_broken: bool = False
    """Leave out lines that cannot be used, and count them, instead of stopping."""


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Dialogues (lists of messages) and pairs of answers, to learn from and held out."""

    train: list[Any]
    test: list[Any]
    train_pairs: list[Any]
    test_pairs: list[Any]
    notes: tuple[str, ...]


def load_conversations(config: ConversationConfig) -> Conversations:
    """Raises ZooError for a file that cannot be used, or of which nothing is held out."""
    if config.source == "dialogues":
        parts = load_dialogues(config.seed, config.size, config.holdout)
        train, test = ([row["messages"] for row in part] for part in parts)
        notes: tuple[str, ...] = ()
    else:
        found, notes = read_dialogues(_file(config.source), config.skip_broken)
        train, test = _split(found, config.holdout, config.source)
    if config.pairs == "dialogues":
        train_pairs, test_pairs = load_preferences(config.seed, max(1, config.size // 3), config.holdout)
    else:
        pairs, more = read_preferences(_file(config.pairs), config.skip_broken)
        train_pairs, test_pairs = _split(pairs, config.holdout, config.pairs)
        notes += more
    return Conversations(train, test, train_pairs, test_pairs, notes)


def _split(rows: list[Any], holdout: float, source: str) -> tuple[list[Any], list[Any]]:
    """By content, so that copies never lie on both sides."""
    parts: tuple[list[Any], list[Any]] = [], []
    for row in rows:
        parts[held_out(json.dumps(row, sort_keys=True), holdout)].append(row)
    if not all(parts):
        raise ZooError(
            f"{source} has {len(rows)} lines, too few to learn from some and hold {holdout:g} of them out;"
            " give more, or another --data.holdout"
        )
    return parts


def _file(source: str) -> str:
    kind, _, path = source.partition(":")
    if kind != "jsonl" or not path:
        raise unknown("source of dialogues", source, ("dialogues", "jsonl:FILE"))
    return path
