"""Plans of recipes, compiled for TPUs that are not there; these need libtpu: pip install -e ".[tpu]"."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

import zoo
from tpu import bounds, plan, report
from tpu.capture import capture
from tpu.chips import devices_of
from tpu.estimate import exhausted
from tpu.references import read_plans, write_plans
from zoo.errors import ZooError
from zoo.models import functional
from zoo.models.convolution import BatchNorm

VAE, TINY = "experiments/vae.py", "tests/tpu/recipe.py"


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
    assert "did you mean convolution.BatchNorm" in refusal(capsys, VAE, "--without", "BatchNorm")
    assert "give --without or --json" in refusal(
        capsys, VAE, "--without", "convolution.BatchNorm", "--json", "kept.json"
    )


def test_modules_are_left_out_for_a_while():
    norm, x = BatchNorm(2), jnp.arange(8.0).reshape(1, 2, 2, 2)
    with bounds.left_out(("convolution.BatchNorm",)):
        assert norm(x, True) is x
    assert jnp.max(jnp.abs(norm(x, True) - x)) > 1
    assert bounds.modules()["cnn.Block"] is not bounds.modules()["gan.Block"]


@needs_libtpu
def test_a_recipe_is_planned_as_it_would_run(capsys, tmp_path):
    out = tmp_path / "plan.json"
    assert plan.main([VAE, "digits", "--batch", "64", "--topology", "v5e:1x1", "--explain", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    (found,) = json.loads(out.read_text())["plans"]
    assert (found["parameters"], found["batch"], found["devices"], found["fits"]) == (74_884, 64, 1, True)
    assert found["params_bytes"] == 74_884 * 4
    assert 2 * found["params_bytes"] < found["optimizer_bytes"] < 3.2 * found["params_bytes"]  # Adam's two, averages
    assert found["params_bytes"] * 4 < found["peak_bytes"] < 2**30
    assert 0 < found["mfu"] < 1
    # At the least the state is read and written once, and the step takes no less than that
    assert 2 * (found["params_bytes"] + found["optimizer_bytes"]) < found["moved_bytes"]
    assert found["moved_seconds"] == pytest.approx(found["moved_bytes"] / 819e9)
    assert found["moved_seconds"] < found["step_seconds"]
    assert found["step_seconds"] == pytest.approx(sum(found["seconds_by"].values()))
    assert found["collectives"] == {}
    assert not found["notes"]
    assert "yes, 15." in text
    assert "zoo/models/" in text  # the lines that the costliest operations come from
    assert not (tmp_path / "planned").exists()


@needs_libtpu
def test_many_chips_exchange_gradients():
    made, _ = plan.plan(Path(VAE), ["digits", "--samples", "1"], "v5e:2x2")
    assert made.devices == 4
    # Every gradient is summed over the chips once, in bfloat16, of which a ring sends 2 · 3/4; and some scalars
    moved = sum(row["bytes"] for row in made.collectives.values())
    assert 1.0 < moved / (2 * made.parameters * 2 * 3 / 4) < 1.02


@needs_libtpu
def test_kernels_are_in_the_plan(capsys):
    made, found = plan.plan(Path(TINY), ["splash"], "v5e:1x1")
    # By hand: 2 layers, rows and heads; forward 2 products over a head of 64 in 3 of 4 blocks of 512, backward 5 in all
    product = 2 * 512 * 512 * 64
    forward, backward = (made.kernels[name] for name in sorted(made.kernels, reverse=True))
    assert (forward["count"], forward["flops"]) == (2, 2 * 2 * 2 * 3 * 2 * product)
    assert (backward["count"], backward["flops"]) == (2, 2 * 2 * 2 * 4 * 5 * product)
    # At 0.7 of the peak, and half of that for a head of 64, which takes longer than what they move
    for kernel in (forward, backward):
        assert kernel["seconds"] == pytest.approx(kernel["flops"] / (0.7 * 197e12 / 2))
        assert kernel["seconds"] > kernel["bytes"] / 819e9 > 0
    assert made.seconds_by["kernel"] == pytest.approx(forward["seconds"] + backward["seconds"])
    assert made.step_seconds == pytest.approx(sum(made.seconds_by.values()))
    # What is needed has half of the square, and no scores twice: 6 products over 2 blocks
    masked = (2 * 3 + 5 * 4 - 6 * 2) * 2 * 2 * 2 * product
    assert made.executed_flops - made.flops == pytest.approx(masked + sums_as_products(2 * 1024))
    assert made.mfu / made.hfu == pytest.approx(made.flops / made.executed_flops)
    assert made.tokens_per_second == pytest.approx(2 * 1024 / made.step_seconds)
    assert not made.notes
    kernels = [cost for cost in found.costs if cost.kind == "kernel"]
    assert len(kernels) == 2
    report.show([made])
    report.explain(found, 1, Path.cwd())
    text = capsys.readouterr().out
    assert "jax/experimental/pallas/ops/tpu/splash_attention/splash_attention_kernel.py" in text
    assert "2 kernels splash_mha_fwd" in text


def sums_as_products(rows):
    """With eight columns of ones: over the vocabulary, and for the biases of queries, keys and values of two layers."""
    return 2 * rows * 8 * (256 + 2 * 3 * 128)


@needs_libtpu
def test_what_is_computed_again_is_not_needed():
    def flops(*flags):
        step = capture(Path(TINY), ["tiny", *flags], devices_of("v5e:1x1")[1])
        return step.flops, step.executed_flops

    plain = flops()
    assert plain[1] - plain[0] == sums_as_products(8 * 128)
    again = flops("--remat", "full")
    assert again[0] == plain[0]
    # Both layers' forward products once more, but for the MLP's second, whose result no gradient asks for. For 8 · 128
    # rows: queries, keys, values and outputs (4 · 128 · 128), scores and mixes (2 · 128 · 128), the MLP (128 · 512)
    rows = 2 * 8 * 128
    assert again[1] - plain[1] == 2 * rows * (4 * 128 * 128 + 128 * 512 + 2 * 128 * 128)


@needs_libtpu
def test_several_topologies_in_one_table(capsys, tmp_path):
    out = tmp_path / "plans.json"
    assert plan.main([TINY, "--topology", "v5e:2x2", "v5p:2x2x1", "--mesh.fsdp", "2", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "data 2 × fsdp 2" in text
    made = read_plans(out)
    assert [(p.topology, p.devices, p.mesh["data"], p.mesh["fsdp"]) for p in made] == [
        ("v5e:2x2", 4, 2, 2),
        ("v5p:2x2x1", 4, 2, 2),
    ]
    write_plans(out, made[:1])
    assert plan.main(["--check", str(out)]) == 0  # the same again is the same
    assert f"{out}: same" in capsys.readouterr().out
    for p in made:
        assert p.collectives["all-gather"]["count"] > 0
        assert f"{p.topology}: {p.collectives['all-gather']['count']:g} all-gather a step" in text
        # Parameters and both of Adam's averages are split over fsdp, but for what is too small for it
        assert 0.5 < p.params_bytes / (4 * p.parameters) < 0.55


@needs_libtpu
def test_slices_exchange_gradients_over_the_network():
    made, _ = plan.plan(Path(TINY), [], "v5e:2x2", 2)
    assert (made.devices, made.label, made.fits) == (8, "2 × v5e:2x2", True)
    # A quarter of every gradient, which the four chips of a slice have summed, in bfloat16 or float32: by a ring of two
    # slices each chip sends it once
    row = made.collectives["all-reduce between slices"]
    assert 1.0 < row["bytes"] / (made.parameters * 2 / 4) < 2.0
    assert row["seconds"] == pytest.approx(row["bytes"] / 3.125e9)


@needs_libtpu
def test_what_does_not_fit_is_told(capsys):
    assert plan.main([TINY, "--batch", "8192"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "fits NO, by " in text
    assert "RESOURCE_EXHAUSTED" in text


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
    step = capture(Path(VAE), ["digits"], devices)
    assert "bf16" in str(step.traced.jaxpr)


@needs_libtpu
def test_fine_tuning_is_planned_from_the_name_of_a_decoder():
    """Its weights and its tokenizer are not read."""
    _, devices = devices_of("v5e:1x1")
    step = capture(Path("experiments/chat.py"), ["--from", "gpt-nano", "--data.size", "60"], devices)
    assert functional.count(step.state["params"]) == functional.count(zoo.create("gpt-nano"))
    with pytest.raises(ZooError, match="gpt-nana"):
        capture(Path("experiments/chat.py"), ["--from", "gpt-nana"], devices)


def test_the_compilers_refusal_is_read():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.50G of 15.75G hbm. Exceeded by 7.75G."
    assert exhausted(text) == 23.5 * 2**30
    text = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (244.86G) exceeds available HBM (15.75G)."
    assert exhausted(text) == int(244.86 * 2**30)
    assert exhausted("RESOURCE_EXHAUSTED: too much") == 0
