"""A run that is killed and started again ends as the one that was not, bit for bit.

Not among the default tests, since each starts many processes: `pytest tests/processes`.
"""

import random
import signal
import time

from tests.experiments.recipes import assert_same_run, command, environment, rows, start


def wait_for(condition, process):
    """True when the condition came to hold while the process ran."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def writing(folder):
    """A checkpoint is being written: it has its temporary name, and files in it."""
    return any("tmp" in path.name and any(path.iterdir()) for path in (folder / "checkpoints").glob("*tmp*"))


def logged(folder, step):
    path = folder / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= step


def test_sigkill_at_random_moments(straight, tmp_path, cache):
    recipe, expected = straight
    folder, env = tmp_path / "killed", environment(cache)
    total = len(rows(expected))
    draw = random.Random(recipe)
    points = sorted(draw.sample(range(2, total - 2), 2))
    moments = [
        ("while a checkpoint is written", lambda: writing(folder)),
        *((f"after {point} rows", lambda point=point: logged(folder, point)) for point in points),
    ]
    for moment, condition in moments:
        process = start(command(recipe, folder), env)
        assert wait_for(condition, process), f"never {moment}: {process.stdout.read()}"
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(command(recipe, folder), env)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert_same_run(folder, expected)


def test_sigterm(straight, tmp_path, cache):
    recipe, expected = straight
    folder, env = tmp_path / "stopped", environment(cache)
    process = start(command(recipe, folder), env)
    assert wait_for(lambda: logged(folder, 7), process)
    process.terminate()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "stopped by SIGTERM" in out
    assert len(rows(folder)) < len(rows(expected))
    process = start(command(recipe, folder), env)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "continuing" in out
    assert_same_run(folder, expected)
