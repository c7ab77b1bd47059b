"""The notebook, run from top to bottom as it is, with its sizes set to tiny; and what it is made of."""

import json
import re
import sys
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from tests.train import toy
from zoo import notebook
from zoo.errors import ZooError

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "tpu" / "colab.ipynb"


def code_of(page):
    return [cell for cell in page.cells if cell.cell_type == "code"]


def test_it_is_clean_and_short():
    page = nbformat.read(PATH, as_version=nbformat.NO_CONVERT)
    nbformat.validate(page)
    assert (page.nbformat, page.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in page.cells}) == len(page.cells)
    cells = code_of(page)
    assert len(cells) == 3
    for cell in cells:
        assert not cell.outputs
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= 20
        assert max(map(len, cell.source.splitlines())) <= 120


def test_the_badge_opens_the_repository_that_is_cloned():
    page = nbformat.read(PATH, as_version=4)
    owner = re.search(r'^REPOSITORY = "https://github\.com/(\S+)"$', code_of(page)[0].source, re.MULTILINE)[1]
    assert f"(https://colab.research.google.com/github/{owner}/blob/main/tpu/colab.ipynb)" in page.cells[0].source


def test_it_runs_from_top_to_bottom(tmp_path, cache):
    page = nbformat.read(PATH, as_version=4)
    setup, training, sampling = code_of(page)
    setup.source, changes = re.subn('^SIZE = "full"', 'SIZE = "tiny"', setup.source, flags=re.MULTILINE)
    assert changes == 1
    for room in ("zoo", "experiments"):
        (tmp_path / room).symlink_to(ROOT / room)
    NotebookClient(page, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert "8 × cpu" in text_of(setup)
    run = tmp_path / "runs" / "gpt-tiny"
    assert json.loads((run / "result.json").read_text())["step"] == 20
    assert json.loads((run / "result.json").read_text())["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert images_of(training) == [(run / "samples/step_000020.png").read_bytes(), (run / "loss.png").read_bytes()]
    losses = [row["eval_loss"] for row in rows(run) if "eval_loss" in row]
    assert f"step 20: eval_loss {losses[-1]:.4f}" in text_of(training)
    assert text_of(sampling).startswith("The ")
    assert len(text_of(sampling)) > 100


def text_of(cell):
    return "".join(
        output.text if output.output_type == "stream" else output.data["text/plain"] + "\n" for output in cell.outputs
    )


def images_of(cell):
    """The pictures that a cell ends up showing, decoded."""
    shown = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [b64decode(picture) for picture in shown]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def shown(monkeypatch):
    """What the page shows: a list of pictures."""
    pictures = []
    monkeypatch.setattr(notebook, "clear_output", lambda wait: pictures.clear())
    monkeypatch.setattr(notebook, "display", lambda image: pictures.append(image.data))
    return pictures


RECIPE = SimpleNamespace(__name__="tests.train.toy", __doc__="", PRESETS={"toy": toy.ToyConfig()}, main=toy.main)


def test_the_cell_resumes_what_its_time_limit_stopped(tmp_path, shown):
    folder, straight = tmp_path / "run", tmp_path / "straight"
    flags = "--steps 4 --eval-every 2 --mesh.data 1"
    assert notebook.train(RECIPE, flags, str(straight))
    assert shown == [(straight / "samples/step_000004.png").read_bytes(), (straight / "loss.png").read_bytes()]
    shown.clear()
    stops = 0
    while not notebook.train(RECIPE, flags, str(folder), minutes=1e-9):  # saves and stops after every step
        stops += 1
        assert shown == [path.read_bytes() for path in pictures(folder)]
    assert stops == 3
    assert rows(folder) == rows(straight)
    shown.clear()
    assert notebook.train(RECIPE, flags, str(folder))  # finished already, and shown again
    assert shown == [path.read_bytes() for path in pictures(folder)]
    assert (
        "python experiments/toy.py --steps 4 --eval-every 2 --mesh.data 1 --run" in (folder / "README.md").read_text()
    )


def pictures(folder):
    return [*sorted((folder / "samples").glob("*.png"))[-1:], *folder.glob("loss.png")]


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ZooError, match="did you mean toy"):
        notebook.train(RECIPE, "toys", str(tmp_path / "run"))
    with pytest.raises(ZooError, match="does not divide"):
        notebook.train(RECIPE, "--batch 7", str(tmp_path / "run"))
    with pytest.raises(SystemExit) as stop:
        notebook.train(RECIPE, "--stpes 7", str(tmp_path / "run"))
    assert stop.value.code == 2
    assert not (tmp_path / "run").exists()


def test_runs_are_kept_where_they_last(monkeypatch):
    mounted = []
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    assert notebook.storage() == "runs"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert notebook.storage() == "/content/drive/MyDrive/runs"
    assert mounted == ["/content/drive"]
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert notebook.storage() == "/kaggle/working/runs"
