import io
import json

import pytest
from PIL import Image

import zoo
from zoo.cli import main


def test_list(capsys):
    main(["list", "gpt2*"])
    out = capsys.readouterr().out
    assert "124,439,808" in out
    assert "zoo/models/decoder.py" in out
    assert "resnet" not in out


def test_list_without_a_match(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["list", "resnet-20"])
    assert stop.value.code == 2
    assert "did you mean resnet20" in capsys.readouterr().err


def test_sample(tmp_path, capsys):
    zoo.save(zoo.create("gpt-modern", vocab_size=3, context=8, layers=1, d_model=8, heads=2), tmp_path / "model")
    (tmp_path / "model" / "codec.json").write_text('{"codec": "chars", "alphabet": "abc"}')
    main(["sample", str(tmp_path), "--prompt", "ab", "--length", "12"])
    out = capsys.readouterr().out.strip()
    assert out.startswith("ab")
    assert len(out) == 14
    assert set(out) <= set("abc")


def test_several_samples_and_a_stop_string(tmp_path, capsys):
    zoo.save(zoo.create("gpt-modern", vocab_size=3, context=8, layers=1, d_model=8, heads=2), tmp_path / "model")
    (tmp_path / "model" / "codec.json").write_text('{"codec": "chars", "alphabet": "abc"}')
    main(["sample", str(tmp_path), "--prompt", "ab", "--length", "30", "--n", "3", "--stop", "c"])
    texts = capsys.readouterr().out.split("--- ")[1:]
    assert len(texts) == 3
    assert len(set(texts)) == 3
    assert all(text.splitlines()[1].startswith("ab") and "c" not in text.splitlines()[1] for text in texts)


def test_chat(tmp_path, capsys, monkeypatch):
    """Lines of a pipe are answered one by one; what does not fit the context is said."""
    alphabet = "".join(map(chr, range(1, 5))) + "abc"
    config = {"vocab_size": len(alphabet), "context": 32, "layers": 1, "d_model": 8, "heads": 2}
    zoo.save(zoo.create("gpt-modern", **config), tmp_path / "model")
    (tmp_path / "model" / "codec.json").write_text(json.dumps({"codec": "chars", "alphabet": alphabet}))
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\nc\n" + "a" * 12 + "\n\nnever read\n"))
    main(["chat", str(tmp_path), "--length", "4"])
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO("a" * 40 + "\n"))
    with pytest.raises(SystemExit) as stop:
        main(["chat", str(tmp_path), "--length", "4"])
    assert stop.value.code == 2
    assert "say it shorter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "abx"], "'x' at position 2"),
        (["--prompt", ""], "prompt 0 is empty"),
        (["--length", "0"], "length"),
        (["--top-p", "0"], "top_p 0"),
    ],
)
def test_sample_of_what_cannot_be(flags, message, tmp_path, capsys):
    zoo.save(zoo.create("gpt-modern", vocab_size=3, context=8, layers=1, d_model=8, heads=2), tmp_path / "model")
    (tmp_path / "model" / "codec.json").write_text('{"codec": "chars", "alphabet": "abc"}')
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(tmp_path), "--prompt", "a", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_classifier_does_not_write(tmp_path, capsys):
    zoo.save(zoo.create("resnet8"), tmp_path)
    (tmp_path / "codec.json").write_text('{"codec": "bytes"}')
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(tmp_path)])
    assert stop.value.code == 2
    assert "ResNet" in capsys.readouterr().err


def test_a_generator_of_images_makes_pictures(tmp_path, capsys):
    zoo.save(zoo.create("gan-residual-xs", image_size=8, channels=1, width=4, latent=4), tmp_path)
    main(["sample", str(tmp_path), "--n", "3", "--out", str(tmp_path / "found.png")])
    assert capsys.readouterr().out == f"{tmp_path / 'found.png'}\n"
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size == (3 * 66 + 2, 66 + 2)
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(tmp_path), "--out", str(tmp_path / "found.txt")])
    assert stop.value.code == 2
    assert "ends in .png" in capsys.readouterr().err
