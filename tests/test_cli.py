import pytest

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


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--prompt", "abx"], "'x' at position 2"), (["--prompt", ""], "--prompt"), (["--length", "0"], "--length")],
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
