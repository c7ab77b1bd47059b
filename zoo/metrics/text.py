"""How text is judged: how well it is predicted, how varied and how repetitive it is, whether its order matters.

A text is a sequence of tokens, words or ids, as the caller splits it; letter case and punctuation count. A plain
`str` is taken as its characters.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal

import numpy as np

from zoo.errors import ZooError

Text = Sequence[Hashable]


def perplexity(nats: float, tokens: float) -> float:
    """exp(nats / tokens), of the nats summed over so many tokens; infinite where a float cannot hold it."""
    _positive(tokens, "tokens")
    try:
        return math.exp(nats / tokens)
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, size: float) -> float:
    """Bits for each byte of text, which does not depend on the vocabulary.

    `nats` are summed over a text of `size` bytes; nats a token over bytes a token are the same.
    """
    _positive(size, "bytes")
    return nats / (math.log(2) * size)


def distinct_n(texts: Iterable[Text], n: int, per: Literal["token", "ngram"] = "token") -> float:
    """Different n-grams over all texts, divided by the number of tokens (Li et al. 2016, arXiv:1510.03055).

    With `per="ngram"`, divided by the number of n-grams, as many reports have it: then the most is 1. It falls with
    the amount of text, so only sets of one size compare. n-grams do not run from one text into the next.
    """
    texts = list(texts)
    counts = Counter(gram for text in texts for gram in _ngrams(text, n))
    total = counts.total() if per == "ngram" else sum(map(len, texts))
    return len(counts) / _positive(total, f"{per}s in these texts")


def type_token_ratio(text: Text) -> float:
    """Different tokens divided by all tokens. It falls with length, so only texts of one length compare."""
    return len(set(text)) / _positive(len(text), "tokens in this text")


def mtld(text: Text, threshold: float = 0.72) -> float:
    """Mean length in tokens of the runs that keep a type-token ratio above the threshold (McCarthy and Jarvis 2010).

    A run (a "factor") ends with the token that brings its ratio to the threshold or below, and the next one starts
    afresh. What is left at the end counts as the part (1 - its ratio) / (1 - threshold) of a factor. The length of
    the text is divided by the number of factors, and the mean is taken of the text read forward and backward.
    Infinite for a text without any repetition, for which the measure has no value.
    """
    _positive(len(text), "tokens in this text")
    if not 0 < threshold < 1:
        raise ZooError(f"an MTLD threshold of {threshold}; give one between 0 and 1")

    def factors(tokens: Iterable[Hashable]) -> float:
        full, length, ratio = 0, 0, 1.0
        seen: set[Hashable] = set()
        for token in tokens:
            seen.add(token)
            length += 1
            ratio = len(seen) / length
            if ratio <= threshold:
                full, length, ratio = full + 1, 0, 1.0
                seen.clear()
        return full + (1 - ratio) / (1 - threshold)

    if len(set(text)) == len(text):
        return math.inf
    return (len(text) / factors(text) + len(text) / factors(reversed(text))) / 2


def self_bleu(texts: Sequence[Text], n: int = 4) -> float:
    """Mean BLEU of each text with all others as its references (Zhu et al. 2018, arXiv:1802.01886): 1 is no variety.

    BLEU (Papineni et al. 2002) of one text has uniform weights on 1- to n-grams and the penalty for brevity against
    the reference nearest in length (the shorter of two). A precision without matches counts 0.1 of one (Chen and
    Cherry 2014, method 1, as in the paper's code); a text without a matching token scores 0.
    """
    if len(texts) < 2:
        raise ZooError(f"self-BLEU of {len(texts)} texts; give at least 2")
    _order(n)
    logs = np.zeros(len(texts))
    for order in range(1, n + 1):
        counts = [Counter(_ngrams(text, order)) for text in texts]
        # The most occurrences in any *other* text follow from the two highest counts.
        highest: dict[tuple[Hashable, ...], tuple[int, int]] = {}
        for count in counts:
            for gram, times in count.items():
                _, second, first = sorted((times, *highest.get(gram, (0, 0))))
                highest[gram] = (first, second)
        for index, count in enumerate(counts):
            matches = 0
            for gram, times in count.items():
                first, second = highest[gram]
                matches += min(times, second if times == first else first)
            if matches == 0 and order == 1:
                logs[index] = -math.inf
            logs[index] += math.log((matches or 0.1) / max(1, count.total())) / n
    lengths = [len(text) for text in texts]
    for index, length in enumerate(lengths):
        if length > 0:
            others = lengths[:index] + lengths[index + 1 :]
            nearest = min(others, key=lambda other: (abs(other - length), other))
            logs[index] += min(0.0, 1 - nearest / length)
    return float(np.exp(logs).mean())


def repetition_rate(texts: Iterable[Text], n: int = 4) -> float:
    """Share of the n-grams of a text that occurred in it before, averaged over the texts: 0 is none.

    1 - different n-grams / n-grams: seq-rep-n of Welleck et al. 2020, arXiv:1908.04319. Texts of fewer
    than n tokens are left out.
    """
    rates = [1 - len(set(grams)) / len(grams) for text in texts if (grams := _ngrams(text, n))]
    return sum(rates) / _positive(len(rates), f"texts of at least {n} tokens")


def coherence_gains(
    documents: Sequence[Sequence[str]],
    nats_of: Callable[[list[str]], np.ndarray],
    shuffles: int = 8,
    seed: int = 0,
    joiner: str = " ",
) -> np.ndarray:
    """How much worse documents are predicted with their sentences shuffled: float64 [documents, shuffles].

    A document is its sentences in order. `nats_of` gives for each of a list of texts its nats a token (the log of
    its perplexity) under some language model. An entry is that of a shuffled order less that of the true one: the
    mean is the gain in log-perplexity by the true order, above 0 where the order carries meaning, and the share
    above 0 is the accuracy of telling the orders apart (Barzilay and Lapata 2008).

    Shuffled orders are drawn, uniformly among those that read otherwise, by the seed and the document's place.
    Raises ZooError for a document without two different sentences, and for scores that are not finite.
    """
    if shuffles < 1 or not documents:
        raise ZooError(f"{shuffles} shuffled orders of {len(documents)} documents; give at least 1 of both")
    orders = []
    for index, sentences in enumerate(documents):
        if len(set(sentences)) < 2:
            raise ZooError(f"document {index} has no two different sentences to shuffle; leave it out")
        rng = np.random.default_rng((seed, index))
        row = [list(sentences)]
        while len(row) <= shuffles:
            drawn = [sentences[i] for i in rng.permutation(len(sentences))]
            if drawn != row[0]:
                row.append(drawn)
        orders.append([joiner.join(order) for order in row])
    place = {text: i for i, text in enumerate(dict.fromkeys(text for row in orders for text in row))}
    nats = np.asarray(nats_of(list(place)), np.float64)
    if nats.shape != (len(place),) or not np.isfinite(nats).all():
        raise ZooError(f"nats_of must give one finite number for each of {len(place)} texts; its shape is {nats.shape}")
    scores = nats[np.array([[place[text] for text in row] for row in orders])]
    return scores[:, 1:] - scores[:, :1]


def _ngrams(text: Text, n: int) -> list[tuple[Hashable, ...]]:
    _order(n)
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _order(n: int) -> None:
    if n < 1:
        raise ZooError(f"n-grams of {n} tokens; give at least 1")


def _positive(number: float, what: str) -> float:
    if number <= 0:
        raise ZooError(f"there are {number:g} {what}; a ratio needs some")
    return number
