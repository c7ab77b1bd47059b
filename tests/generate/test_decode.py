"""Cached generation against the plain forward of the whole text, and what a person can ask of it."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import RICH, TINY, noisy
from zoo.data.text import Bytes, Characters
from zoo.errors import ZooError
from zoo.generate.decode import Generator
from zoo.generate.sampling import Sampling
from zoo.models.functional import merge

GREEDY = Sampling(temperature=0)
LETTERS = Characters("abcdefghijklm")  # 13, as many as the tiny vocabulary
CONFIGS = {
    "gpt2": replace(TINY, context=32),
    "rich": replace(RICH, context=32, softcap=0.0),
    "window": replace(RICH, context=32, window=5),
}


@functools.cache
def model(name):
    graphdef, params = noisy(CONFIGS[name])
    return merge(graphdef, params, {})


@functools.cache
def generator(name):
    return Generator(model(name), LETTERS)


@functools.cache
def forward(name):
    return jax.jit(model(name))


def logits_after(name, ids):
    """Logits [V] of the token after `ids`, by the whole forward pass."""
    padded = np.pad(np.asarray(ids, np.int32), (0, CONFIGS[name].context - len(ids)))
    return np.asarray(forward(name)(padded[None])[0, len(ids) - 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_the_uncached_forward_token_for_token(name):
    prompts = ["abc", "mlkjihg"]
    for prompt, (found,) in zip(prompts, generator(name).complete(prompts, 20, sampling=GREEDY), strict=True):
        ids = LETTERS.encode(prompt).tolist()
        for token, logprob in zip(found.ids, found.logprobs, strict=True):
            logits = logits_after(name, ids)
            assert token == np.argmax(logits)
            assert logprob == pytest.approx(float(jax.nn.log_softmax(logits)[token]), abs=1e-4)
            ids.append(token)
        assert len(found.ids) == 20
        assert found.reason == "length"
        assert found.text == LETTERS.decode(found.ids)


def test_a_text_does_not_depend_on_its_neighbours_or_on_pieces():
    write = functools.partial(generator("rich").complete, length=12, seed=3)
    (alone,) = write(["abc"], n=3)
    _, beside = write(["mlkjihg", "abc"], n=3)
    assert [c.text for c in alone] == [c.text for c in beside]
    assert len({c.text for c in alone}) == 3
    assert "".join(generator("rich").stream("abc", 12, seed=3, every=5)) == alone[0].text
    assert write(["abc"], n=3, seed=4)[0][0].text != alone[0].text
    other, again = write(["abc", "abc"], n=3, seed=[4, 3])
    assert [c.text for c in other] == [c.text for c in write(["abc"], n=3, seed=4)[0]]
    assert [c.text for c in again] == [c.text for c in alone]


def test_end_tokens_and_stop_strings():
    (full,) = generator("rich").complete(["abc"], 20, sampling=GREEDY)[0]
    end = full.ids[6]
    first = full.ids.index(end)
    (ended,) = Generator(model("rich"), LETTERS, ends=[end]).complete(["abc"], 20, sampling=GREEDY)[0]
    assert ended.ids == full.ids[: first + 1]
    assert ended.text == LETTERS.decode(full.ids[:first])
    assert ended.reason == "end"

    stop = full.text[4:7]  # three tokens long
    at = full.text.find(stop)
    options = {"sampling": GREEDY, "stop": ["never", stop]}
    (stopped,) = generator("rich").complete(["abc"], 20, **options)[0]
    assert stopped.text == full.text[:at]
    assert stopped.ids == full.ids[: at + 3]
    assert stopped.reason == "stop"
    pieces = list(generator("rich").stream("abc", 20, every=1, **options))
    assert "".join(pieces) == stopped.text


def test_rows_end_alone():
    """A row that has ended leaves the others as they are."""
    both = generator("rich").complete(["abc", "mlkjihg"], 20, sampling=GREEDY)
    end = both[0][0].ids[2]
    ended = Generator(model("rich"), LETTERS, ends=[end]).complete(["abc", "mlkjihg"], 20, sampling=GREEDY)
    for (full,), (cut,) in zip(both, ended, strict=True):
        last = full.ids.index(end) + 1 if end in full.ids else 20
        assert cut.ids == full.ids[:last]


def test_shift_goes_on_from_the_last_half():
    """Past the context of 32, the last 16 tokens are read anew."""
    options = {"sampling": GREEDY, "shift": True}
    (found,) = generator("gpt2").complete(["abc"], 40, **options)[0]
    ids = LETTERS.encode("abc").tolist() + found.ids
    assert len(found.ids) == 40
    start = 0
    for at in range(3, 43):
        if at - start == 32:
            start = at - 16
        assert ids[at] == np.argmax(logits_after("gpt2", ids[start:at]))


def test_pieces_of_a_stream_are_valid_unicode():
    """Bytes that are no UTF-8 alone become the characters that they make together."""
    config = replace(CONFIGS["gpt2"], vocab_size=256)
    graphdef, params = noisy(config)
    text = "naïve 🙂 日本"
    raw = np.frombuffer(text.encode(), np.uint8)

    class Fixed(Generator):
        """Writes a fixed text, whatever the model says."""

        def _segment(self, rows, inputs, take, draw, request, every):
            for byte in raw:
                self._extend(rows[0], [int(byte)], [0.0], ())
                yield

    pieces = list(Fixed(merge(graphdef, params, {}), Bytes()).stream("a", 31))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_errors():
    for prompts, length, message in (
        (["abc"], 30, "a prompt of 3 tokens and 30 new ones do not fit the context of 32; ask for at most 29"),
        (["abc", ""], 3, "prompt 1 is empty"),
        ([[1, 13]], 3, "outside the vocabulary of 13"),
        (["abc"], 0, "at least 1"),
    ):
        with pytest.raises(ZooError, match=message):
            generator("gpt2").complete(prompts, length)
    with pytest.raises(ZooError, match="stop strings not empty"):
        generator("gpt2").complete(["abc"], 3, stop=[""])


def test_repetition_penalty_reads_the_prompt_but_not_its_padding():
    """With a huge penalty on positive logits, no token of the prompt or the text comes again."""
    write = functools.partial(
        generator("gpt2").complete, length=4, sampling=Sampling(temperature=0, repetition_penalty=1e6)
    )
    for prompt, (found,) in zip(["bcd", "cdefghi"], write(["bcd", "cdefghi"]), strict=True):
        ids = LETTERS.encode(prompt).tolist()
        for token in found.ids:
            logits = logits_after("gpt2", ids)
            logits = logits.copy()
            logits[ids] = np.where(logits[ids] > 0, logits[ids] / 1e6, logits[ids] * 1e6)
            assert token == np.argmax(logits)
            ids.append(token)
    assert jnp.isfinite(jnp.asarray(found.logprobs)).all()
