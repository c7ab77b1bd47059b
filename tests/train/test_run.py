import json

import pytest
from etils import epath

from tests.train.toy import ToyConfig
from zoo.errors import ZooError
from zoo.train.run import Run


def make(folder, **changes):
    return Run(ToyConfig(run=str(folder), **changes), "python toy.py")


def rows(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_check_writes_nothing(tmp_path):
    make(tmp_path / "run").check()
    assert not (tmp_path / "run").exists()


def test_changed_config_is_refused_with_the_difference(tmp_path):
    make(tmp_path / "run").create(0)
    other = make(tmp_path / "run", steps=99, seed=3)
    with pytest.raises(ZooError) as error:
        other.check()
    assert "steps: 12 there, 99 here" in str(error.value)
    assert "seed: 0 there, 3 here" in str(error.value)
    assert "batch" not in str(error.value)


def test_what_does_not_change_the_result_may_change(tmp_path):
    make(tmp_path / "run").create(0)
    make(tmp_path / "run", save_every=1, max_minutes=5.0, keep=9).check()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_damaged_config(tmp_path, content):
    make(tmp_path / "run").create(0)
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(ZooError, match=r"config\.json|another config"):
        make(tmp_path / "run").check()


def test_folder_is_a_file(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ZooError, match="is a file"):
        make(tmp_path / "run").check()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    run = make(tmp_path / "run")
    run.create(0)
    for step in range(1, 6):
        run.log(step, {"loss": 1.0 / step})
    run.flush()
    run.log(6, {"loss": 0.0})  # not flushed: lost with the process
    again = make(tmp_path / "run")
    again.create(3)
    again.log(4, {"loss": 0.25})
    again.flush()
    assert [row["step"] for row in rows(again)] == [1, 2, 3, 4]
    assert again.best("loss") == 0.25


def test_cut_row_is_dropped_and_what_follows_it(tmp_path):
    run = make(tmp_path / "run")
    run.create(0)
    run.log(1, {"loss": 0.5})
    run.flush()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo\n{"step": 2, "loss": 0.1}\n')
    again = make(tmp_path / "run")
    again.create(2)
    assert rows(again) == [{"step": 1, "loss": 0.5}]


def test_not_a_number_is_written_as_null(tmp_path):
    run = make(tmp_path / "run")
    run.create(0)
    run.log(1, {"loss": float("nan")})
    run.flush()
    assert rows(run) == [{"step": 1, "loss": None}]


def test_rows_are_tensorboard_events_as_well(tmp_path):
    run = make(tmp_path / "run")
    run.create(0)
    run.log(1, {"loss": 0.5, "an_unlikely_name": 2.0})
    run.flush()
    run.close()
    (events,) = (tmp_path / "run" / "events").iterdir()
    assert b"an_unlikely_name" in events.read_bytes()


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    run.create(0)
    run.write("note.txt", "old")
    path = type(run.folder)

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run.write("note.txt", "newer")
    assert (tmp_path / "run" / "note.txt").read_text() == "old"
    assert not list((tmp_path / "run").glob("*.part"))


def test_bucket_paths_go_through_epath(tmp_path):
    """A gs:// folder is written through etils, here with a backend that keeps it on this disk."""
    from etils.epath import testing

    real = lambda path: str(tmp_path / str(path).removeprefix("gs://"))
    with testing.mock_epath(
        open=lambda original, path, *args, **kwargs: original(real(path), *args, **kwargs),
        exists=lambda original, path: original(real(path)),
        isdir=lambda original, path: original(real(path)),
        makedirs=lambda original, path, *args, **kwargs: original(real(path), *args, **kwargs),
        replace=lambda original, path, target: original(real(path), real(target)),
    ):
        run = make("gs://bucket/run")
        assert run.folder == epath.Path("gs://bucket/run")
        run.check()
        run.create(0)
        run.log(1, {"loss": 0.5})
        run.flush()
        assert rows(run) == [{"step": 1, "loss": 0.5}]
    assert (tmp_path / "bucket" / "run" / "config.json").exists()


def test_every_loss_is_plotted(tmp_path):
    run = make(tmp_path)
    run.log(1, {"d_loss": 1.0, "g_loss": 2.0, "lr": 0.1})
    run.log(2, {"eval_loss": 1.5})
    drawn = []
    run.write_image = lambda name, figure: drawn.extend(line.get_label() for line in figure.axes[0].lines)
    run.plot()
    assert drawn == ["d_loss", "g_loss", "eval_loss"]
