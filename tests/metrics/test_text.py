import math
import re

import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.metrics.text import (
    bits_per_byte,
    coherence_gains,
    distinct_n,
    mtld,
    perplexity,
    repetition_rate,
    self_bleu,
    type_token_ratio,
)

SPEECH = """four score and seven years ago our fathers brought forth on this continent a new nation conceived in liberty
and dedicated to the proposition that all men are created equal now we are engaged in a great civil war testing whether
that nation or any nation so conceived and so dedicated can long endure we are met on a great battlefield of that war we
have come to dedicate a portion of that field as a final resting place for those who here gave their lives that that
nation might live it is altogether fitting and proper that we should do this"""
WORDS = SPEECH.split()

LINES = [
    line.split()
    for line in (
        "the cat sat on the mat",
        "the cat sat on the red mat today",
        "a dog sat on the mat the mat",
        "the cat",
        "dogs run",
    )
]


def test_perplexity():
    assert perplexity(12 * math.log(50257), 12) == pytest.approx(50257)
    assert perplexity(0.0, 3) == 1.0
    assert perplexity(1e6, 1) == math.inf


def test_bits_per_byte():
    """Ten tokens guessed among 16 cost 40 bits; they spell 20 bytes."""
    assert bits_per_byte(10 * math.log(16), 20) == pytest.approx(2.0)
    assert bits_per_byte(math.log(16), 2.0) == pytest.approx(2.0)


def test_distinct_n_by_hand():
    """Ten tokens, three of them different; of the seven bigrams ab ba ab, bc cc cb, ba five are."""
    texts = ["abab", "bccb", "ba"]
    assert distinct_n(texts, 1) == pytest.approx(3 / 10)
    assert distinct_n(texts, 2) == pytest.approx(5 / 10)
    assert distinct_n(texts, 2, per="ngram") == pytest.approx(5 / 7)
    assert distinct_n([["ab", "c"], ("a", "bc")], 1) == 1.0


def test_type_token_ratio_is_that_of_lexicalrichness():
    assert type_token_ratio([3, 1, 3, 3]) == 0.5
    assert type_token_ratio(WORDS) == pytest.approx(0.696078431372549)


def test_mtld_by_hand():
    # aa is a factor; of bcdb, ratio 3/4, is left 0.25/0.28 of one. Backward, the ratio falls to 4/6 at the end.
    assert mtld("aabcdb") == pytest.approx((6 / (1 + 0.25 / 0.28) + 6 / 1) / 2)
    # abcdb has 4/5, and one more c 4/6; after it nothing repeats. Backward, so has cbecb 3/5.
    assert mtld("abcdbcebc") == pytest.approx((9 / 1 + 9 / 1) / 2)
    # "aa" has the very ratio of the threshold, which ends a factor. Backward, baa is left with a ratio of 2/3.
    assert mtld("aab", threshold=0.5) == pytest.approx((3 / 1 + 3 / ((1 / 3) / 0.5)) / 2)
    assert mtld("abc") == math.inf


@pytest.mark.parametrize(
    ("words", "threshold", "expected"),
    [
        (WORDS, 0.72, 77.96837944664031),
        (WORDS, 0.8, 57.94020618556701),
        (WORDS[40:], 0.72, 76.88),
        (WORDS[40:], 0.8, 47.618556701030926),
        (WORDS[::3], 0.72, 64.736),
    ],
)
def test_mtld_is_that_of_lexicalrichness(words, threshold, expected):
    """LexicalRichness(" ".join(words), preprocessor=None, tokenizer=str.split).mtld(threshold), version 0.5.1."""
    assert mtld(words, threshold) == pytest.approx(expected, rel=1e-12)


def test_self_bleu_by_hand():
    """Either text has two of its three words and one of its two pairs in the other: sqrt(2/3 · 1/2)."""
    assert self_bleu(["abc", "abd"], 2) == pytest.approx(math.sqrt(1 / 3))
    # aaaa finds one a, and not two, in ab or ac: 1/4. These find theirs: 1/2, and one is as long as the other.
    assert self_bleu(["aaaa", "ab", "ac"], 1) == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    # The shorter is penalised by exp(1 - 4/2).
    assert self_bleu(["abcd", "ab"], 1) == pytest.approx((1 / 2 + math.exp(-1)) / 2)
    assert self_bleu(["abcde"] * 3) == pytest.approx(1.0)
    assert self_bleu(["abcde", "fghij", ""]) == 0.0


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 0.6183062621147578),
        (2, 0.5777468301577064),
        (3, 0.4452100884143853),
        (4, 0.3878793136998159),
        (5, 0.310479223326811),
    ],
)
def test_self_bleu_is_that_of_nltk(n, expected):
    """Mean of sentence_bleu(others, line, (1 / n,) * n, SmoothingFunction().method1), nltk 3.10.4."""
    assert self_bleu(LINES, n) == pytest.approx(expected, rel=1e-12)


def test_repetition_rate_by_hand():
    """abababab has 5 four-grams and 2 different ones; abcde repeats none; abc is too short to tell."""
    assert repetition_rate(["abababab"]) == pytest.approx(3 / 5)
    assert repetition_rate(["abababab", "abcde", "abc"]) == pytest.approx(3 / 10)
    assert repetition_rate(["aab"], n=1) == pytest.approx(1 / 3)


def numbers(text):
    return [int(word) for word in re.findall(r"\d+", text)]


def disorder(texts):
    """A scoring that likes numbers in order: the share of neighbours that fall."""
    return np.array([np.mean(np.diff(numbers(text)) < 0) for text in texts])


def test_coherence_is_the_gain_over_shuffled_orders():
    documents = [["1 2.", "3 4.", "5 6."], ["30.", "20."]]
    seen = []
    gains = coherence_gains(documents, lambda texts: seen.extend(texts) or disorder(texts), shuffles=6, seed=3)
    assert gains.shape == (2, 6)
    # Every order of the first document but the true one has one or two falls among five neighbours.
    assert set(np.round(gains[0] * 5)) == {1, 2}
    # The second has only one other order, which rises.
    np.testing.assert_array_equal(gains[1], np.full(6, -1.0))
    assert len(seen) == len(set(seen)), "a text is scored once"
    assert {"1 2. 3 4. 5 6.", "30. 20.", "20. 30."} <= set(seen)
    for text in seen:
        assert sorted(numbers(text)) in ([1, 2, 3, 4, 5, 6], [20, 30])


def test_coherence_draws_by_the_seed():
    document = [[f"{i}." for i in range(20)]]
    orders = []
    for seed in (0, 0, 1):
        coherence_gains(document, lambda texts: orders.append(texts) or disorder(texts), 4, seed, joiner="\n")
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] == "\n".join(document[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perplexity(1.0, 0), "0 tokens"),
        (lambda: bits_per_byte(1.0, 0), "0 bytes"),
        (lambda: distinct_n(["ab"], 0), "n-grams of 0"),
        (lambda: distinct_n(["ab"], 3, per="ngram"), "0 ngrams"),
        (lambda: type_token_ratio([]), "0 tokens"),
        (lambda: mtld([]), "0 tokens"),
        (lambda: mtld("aab", 1.0), "threshold of 1.0"),
        (lambda: self_bleu(["ab"]), "1 texts"),
        (lambda: self_bleu(["ab", "cd"], 0), "n-grams of 0"),
        (lambda: repetition_rate(["abc"]), "0 texts of at least 4"),
        (lambda: coherence_gains([["a", "b"], ["a", "a"]], disorder), "document 1 has no two"),
        (lambda: coherence_gains([], disorder), "0 documents"),
        (lambda: coherence_gains([["1", "2"]], lambda texts: np.zeros(5)), "each of 2 texts"),
        (lambda: coherence_gains([["1", "2"]], lambda texts: np.full(len(texts), np.nan)), "finite"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ZooError, match=message):
        call()
