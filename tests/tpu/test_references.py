"""Kept plans: their files, what became better or worse, and the check; on plans that nothing was compiled for."""

import json

import pytest

from tests.tpu.made import BASE, changed
from tpu import plan
from tpu.estimate import GIB
from tpu.references import check, judge, read_plans, write_plans
from tpu.report import compare
from zoo.errors import ZooError


def test_a_file_of_plans_is_read_as_it_was_written(tmp_path):
    plans = [BASE, changed(topology="v5e:2x4", collectives={"all-reduce": {"count": 2, "bytes": 8.0, "seconds": 1e-3}})]
    write_plans(tmp_path / "a.json", plans, "first")
    assert read_plans(tmp_path / "a.json") == plans
    assert json.loads((tmp_path / "a.json").read_text())["reason"] == "first"


@pytest.mark.parametrize("content", ["{", "[]", '{"plans": [{"recipe": "x"}]}', '{"plans": 3}'])
def test_a_file_of_something_else_is_told(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ZooError, match=r"a\.json does not hold plans of this version .* write it again with --json"):
        read_plans(tmp_path / "a.json")
    with pytest.raises(ZooError, match=r"there is no .*b\.json; write it with --json"):
        read_plans(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("fields", "verdict", "line"),
    [
        ({"peak_bytes": int(8.2 * GIB), "step_seconds": 0.1029}, "same", ""),
        ({"peak_bytes": int(8.4 * GIB)}, "worse", "HBM peak +5.0%"),
        ({"step_seconds": 0.104}, "worse", "estimated step +4.0%"),
        ({"step_seconds": 0.09}, "better", "estimated step -10.0%"),
        ({"step_seconds": 0.09, "peak_bytes": 9 * GIB}, "worse", "HBM peak +12.5%"),
        ({"fits": False, "peak_bytes": 0, "step_seconds": 0.0}, "worse", "it does not fit any more"),
        ({"step_seconds": 9.0, "versions": {"jax": "1.2.4", "libtpu": "4.5.6"}}, "not judged", "jax 1.2.4"),
    ],
)
def test_what_is_worse_by_more_than_three_per_cent(fields, verdict, line):
    found, lines = judge(BASE, changed(**fields))
    assert found == verdict
    assert line in " ".join(lines)


def test_the_check_fails_until_the_file_is_written_with_a_reason(tmp_path, capsys):
    path, slower = tmp_path / "a.json", changed(step_seconds=0.2, mfu=0.25)
    write_plans(path, [BASE], "first")
    assert check([path], make=lambda p: p)
    assert not check([path], make=lambda p: slower)
    assert f'python -m tpu.plan --check {path} --reason "WHY"' in capsys.readouterr().out
    assert read_plans(path) == [BASE]
    assert check([path], "dropout", make=lambda p: slower)
    assert (read_plans(path), json.loads(path.read_text())["reason"]) == ([slower], "dropout")
    assert check([path], make=lambda p: slower)


def test_a_reason_leaves_files_alone_that_are_as_before(tmp_path):
    path = tmp_path / "a.json"
    write_plans(path, [BASE], "first")
    assert check([path], "another", make=lambda p: changed(compile_seconds=9.0, step_seconds=0.101))
    assert (read_plans(path), json.loads(path.read_text())["reason"]) == ([BASE], "first")


def test_plans_of_other_versions_are_shown_and_not_judged(tmp_path, capsys):
    write_plans(tmp_path / "a.json", [BASE])
    newer = changed(step_seconds=0.2, versions={"jax": "2.0.0", "libtpu": "4.5.6"})
    assert check([tmp_path / "a.json"], make=lambda p: newer)
    text = capsys.readouterr().out
    assert "not judged: it was planned with jax 1.2.3, libtpu 4.5.6, here are jax 2.0.0, libtpu 4.5.6" in text
    assert "+100.0 %" in text


def test_a_comparison_by_topology(capsys):
    before = [BASE, changed(topology="v6e:1x1"), changed(topology="v4:2x2x1")]
    after = [
        changed(topology="v6e:1x1", peak_bytes=4 * GIB),
        changed(step_seconds=0.125, examples_per_second=512.0, mfu=0.4),
        changed(topology="v5e:2x4", slices=2),
    ]
    compare(before, after)
    text = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[0] == "v5e:1x1"  # its rows come first, as in the first file
    assert "estimated step, ms 100.000 125.000 +25.0 % worse" in rows
    assert "estimated examples/s 640 512 -20.0 % worse" in rows
    assert "HBM peak, GiB 8.00 4.00 -50.0 % better" in rows
    assert rows.count("estimated step, ms 100.000 100.000 +0.0 % same") == 1
    assert not any("collectives" in row for row in rows)
    assert {"v4:2x2x1: only before", "2 × v5e:2x4: only after"} <= set(rows)


def test_on_the_command_line(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    write_plans(tmp_path / "a.json", [BASE])
    write_plans(tmp_path / "b.json", [changed(step_seconds=0.05)])
    assert plan.main(["--compare", *paths]) == 0
    assert "-50.0 % better" in " ".join(capsys.readouterr().out.split())
    assert plan.main([]) == 2
    assert "give a recipe" in capsys.readouterr().err
    assert plan.main(["--check", str(tmp_path / "c.json")]) == 2
    assert "there is no" in capsys.readouterr().err
