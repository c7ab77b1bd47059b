"""Plans of recipes, compiled for TPUs that are not there; these need libtpu: pip install -e ".[tpu]"."""

import importlib.util
import json

import pytest

from tpu import plan
from tpu.capture import capture
from tpu.chips import devices_of

VAE = "experiments/vae.py"


def needs_libtpu(test):
    """Marks a test that `pytest -m tpu` picks, and that says why where it cannot run."""
    missing = importlib.util.find_spec("libtpu") is None
    return pytest.mark.tpu(pytest.mark.skipif(missing, reason='no libtpu: pip install -e ".[tpu]"')(test))


@pytest.fixture(autouse=True)
def root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def refusal(capsys, *arguments):
    assert plan.main(list(arguments)) == 2
    return capsys.readouterr().err


def test_bad_input_is_told(capsys):
    assert "did you mean v5p or v5e" in refusal(capsys, VAE, "--topology", "v5:1x1")
    assert "should be KIND:SIZES, such as v5e:2x4" in refusal(capsys, VAE, "--topology", "v5e")


@needs_libtpu
def test_a_recipe_is_planned_as_it_would_run(capsys, tmp_path):
    out = tmp_path / "plan.json"
    assert plan.main([VAE, "digits", "--batch", "64", "--topology", "v5e:1x1", "--explain", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    (found,) = json.loads(out.read_text())
    assert (found["parameters"], found["batch"], found["devices"], found["fits"]) == (74_884, 64, 1, True)
    assert found["params_bytes"] == 74_884 * 4
    assert 2 * found["params_bytes"] < found["optimizer_bytes"] < 3.2 * found["params_bytes"]  # Adam's two, averages
    assert found["params_bytes"] * 4 < found["peak_bytes"] < 2**30
    assert 0 < found["mfu"] < 1
    assert found["step_seconds"] == pytest.approx(sum(found["seconds_by"].values()))
    assert found["collectives"] == {}
    assert not found["notes"]
    assert "yes, 15." in text
    assert "zoo/models/" in text  # the lines that the costliest operations come from
    assert not (tmp_path / "planned").exists()


@needs_libtpu
def test_many_chips_exchange_gradients():
    made, _ = plan.plan(plan.Path(VAE), ["digits", "--samples", "1"], "v5e:2x2")
    assert made.devices == 4
    # Every gradient is summed over the chips once, in bfloat16, of which a ring sends 2 · 3/4; and some scalars
    moved = sum(row["bytes"] for row in made.collectives.values())
    assert 1.0 < moved / (2 * made.parameters * 2 * 3 / 4) < 1.02


@needs_libtpu
def test_what_the_recipe_refuses_is_told(capsys, tmp_path):
    assert "there is no nothing.py; give a recipe" in refusal(capsys, "nothing.py")
    (tmp_path / "other.py").write_text("x = 1")
    assert "is no recipe: it has no PRESETS and main" in refusal(capsys, str(tmp_path / "other.py"))
    assert "did you mean digits" in refusal(capsys, VAE, "digit")
    assert "does not divide by mesh.data 4" in refusal(capsys, VAE, "--batch", "6", "--topology", "v5e:2x2")


@needs_libtpu
def test_models_are_those_of_a_tpu():
    _, devices = devices_of("v5e:1x1")
    step = capture(plan.Path(VAE), ["digits"], devices)
    assert "bf16" in str(step.traced.jaxpr)


def test_the_compilers_refusal_is_read():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.50G of 15.75G hbm. Exceeded by 7.75G."
    assert plan.exhausted(text) == 23.5 * 2**30
    assert plan.exhausted("RESOURCE_EXHAUSTED: too much") == 0
