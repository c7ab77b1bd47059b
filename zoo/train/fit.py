"""The loop: one compiled step, run from where the folder stands to the last step.

Metrics are read one step late, so that the device never waits for the host. Whatever stops the loop, a
checkpoint and the rows that led to it are whole, and the same command goes on from there bit for bit.
"""

import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoo.errors import ZooError
from zoo.train.checkpoint import Checkpoints
from zoo.train.config import TrainConfig
from zoo.train.flops import count_flops, peak_flops
from zoo.train.mesh import Rules, check_batch, place_batch
from zoo.train.progress import Reporter
from zoo.train.run import Run
from zoo.train.state import Init, State, Update, abstract_state, create_state, make_init, make_step

STOP_EVERY = 10  # steps between agreements of many processes on the time limit


@dataclass
class Fitted:
    """What training leaves: the state, and what result.json says of it."""

    state: State
    result: dict[str, Any]


def fit(
    config: TrainConfig,
    run: Run,
    *,
    init: Init,
    tx: Any,
    update: Update,
    batches: Any,
    mesh: Mesh,
    rules: Rules = (),
    evaluate: Callable[[State], dict[str, float]] | None = None,
    pictures: Callable[[State], Any] | None = None,
    best: str = "eval_loss",
) -> Fitted:
    """Trains until `config.steps` updates are done, from the run folder's newest checkpoint if it has one.

    `batches` makes the batch of any step (`rows(step, slice)`, `stream(start, stop, place)`); `evaluate(state)`
    returns metrics, of which the lowest `best` is kept; `pictures(state)` returns an image for samples/.
    Raises ZooError for what a user can mend, and SystemExit(0) when told to stop before the end.
    """
    check_batch(config.batch, config.accumulate, mesh)
    window = _profile_window(config)
    run.check()
    clock, seconds = time.monotonic(), defaultdict[str, float](float)
    report = Reporter(config.steps, config.batch)

    def place(source: Any, step: int) -> Any:
        return place_batch(source, step, mesh)

    with jax.set_mesh(mesh), _stop_signals() as stop:
        # Compile
        report.phase("compiling")
        make = make_init(init, tx, config.seed, bool(config.ema))
        abstract = abstract_state(make, rules, mesh)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), place(batches, 0))
        with _cache_events() as events, _timed(seconds, "compile"):
            traced = make_step(update, config.seed, abstract, mesh).trace(abstract, example)
            flops = count_flops(traced.jaxpr)
            step_fn = traced.lower().compile()
        report.say(f"compiled the step in {seconds['compile']:.1f} s (cache {_cache_verdict(events)}), {flops / 1e9:.3g} GFLOP")

        # Start, or continue
        with Checkpoints(run.folder / "checkpoints", config.keep) as checkpoints:
            state = checkpoints.restore(abstract, report.say)
            start = int(state["step"]) if state else 0
            state = state or create_state(make, abstract)
            run.create(start)
            if start:
                report.say(f"continuing {run.folder} at step {start}")

            # Train
            report.phase("training", start)
            pending: tuple[int, dict[str, jax.Array]] | None = None
            stream = batches.stream(start, config.steps, place)
            best_yet, saved, trained_from = run.best(best), start, time.monotonic()

            def settle() -> None:
                """Reads the metrics of the step before this one."""
                nonlocal pending
                if pending is None:
                    return
                step, values = pending[0], {key: float(value) for key, value in jax.device_get(pending[1]).items()}
                pending = None
                if not all(math.isfinite(value) for value in values.values()):
                    checkpoints.wait()
                    kept = f"the checkpoint of step {checkpoints.steps()[-1]} is kept" if checkpoints.steps() else "no checkpoint yet"
                    raise ZooError(
                        f"{', '.join(f'{key} {value}' for key, value in values.items() if not math.isfinite(value))}"
                        f" at step {step}; {kept} in {run.folder}; try a lower --optim.lr or --optim.clip 1 in another --run"
                    )
                if step % config.log_every == 0 or step == config.steps:
                    run.log(step, values)
                    run.flush()
                report.step(step, values)

            try:
                for step in range(start, config.steps):
                    if window and step == window[0]:
                        jax.profiler.start_trace(str(run.folder / "profile"))
                    with _timed(seconds, "data"):
                        batch = next(stream)
                    try:
                        state, metrics = step_fn(state, batch)
                    except TypeError as error:  # the compiled step takes one shape only
                        raise ZooError(f"the batch of step {step} has another shape or dtype than the first: {error}") from error
                    settle()
                    done, pending = step + 1, (step + 1, metrics)
                    if window and done == window[1]:
                        jax.block_until_ready(state)
                        jax.profiler.stop_trace()
                    last = done == config.steps
                    score = None
                    if last or done % config.eval_every == 0:
                        settle()
                        with _timed(seconds, "evaluate"):
                            scores = evaluate(state) if evaluate else {}
                            if scores:
                                run.log(done, scores)
                                run.flush()
                                report.say(f"step {done}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
                            if pictures:
                                run.write_image(f"samples/step_{done:06d}.png", pictures(state))
                            run.plot()
                        score = scores.get(best)
                    improved = score is not None and score < best_yet
                    best_yet = min(best_yet, math.inf if score is None else score)
                    reason = "" if last else stop.reason(done, clock, config.max_minutes)
                    if last or improved or reason or done % config.save_every == 0:
                        settle()
                        with _timed(seconds, "checkpoint"):
                            checkpoints.save(done, state, score)
                        saved = done
                    if reason:
                        with _timed(seconds, "checkpoint"):
                            checkpoints.wait()
                        report.close()
                        report.say(f"stopped by {reason} at step {done}, saved in {run.folder}; the same command continues")
                        raise SystemExit(0)
            finally:
                stream.close()
                report.close()
            jax.block_until_ready(state)
            train_seconds = time.monotonic() - trained_from
            with _timed(seconds, "checkpoint"):
                checkpoints.wait()

    rows = [row for row in run.rows if row["step"] == saved]
    steps_run = config.steps - start
    busy = train_seconds - seconds["evaluate"] - seconds["data"] - seconds["checkpoint"]
    rate = steps_run / busy if steps_run else 0.0
    result = {
        "step": saved,
        "metrics": {key: value for row in rows for key, value in row.items() if key != "step"},
        "seconds": {"train": busy, **seconds, "total": time.monotonic() - clock},
        "steps_per_second": rate,
        "examples_per_second": rate * config.batch,
        "gflops_per_second": rate * flops / 1e9,
        "device": f"{mesh.devices.flat[0].device_kind} × {mesh.size}",
        "mesh": dict(mesh.shape),
        "continued_from": start,
    }
    peak = peak_flops(mesh.devices.flat[0])
    speed = f"{result['examples_per_second']:,.0f} examples/s, {result['gflops_per_second']:.3g} GFLOP/s"
    if peak:
        result["mfu"] = rate * flops / (peak * mesh.size)
        speed += f", MFU {result['mfu']:.1%}"
    report.say(f"step {saved} of {config.steps} done: {speed}" if steps_run else f"{run.folder} was finished at step {saved}")
    return Fitted(state, result)


class _Stop:
    """Who asked the loop to stop: a signal, or the time limit."""

    signal_name = ""

    def reason(self, step: int, clock: float, max_minutes: float) -> str:
        late = bool(max_minutes) and time.monotonic() - clock > max_minutes * 60
        if jax.process_count() == 1:
            return self.signal_name or (f"--max-minutes {max_minutes:g}" if late else "")
        if multihost_utils.reached_preemption_sync_point(step):  # a step that all processes agree on
            return "SIGTERM"
        if max_minutes and step % STOP_EVERY == 0 and multihost_utils.process_allgather(late).any():
            return f"--max-minutes {max_minutes:g}"
        return ""


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGTERM and SIGINT ask for a stop, and the second SIGINT interrupts. With many processes jax's own
    SIGTERM watch tells the others, and SIGINT is turned into it."""
    stop = _Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
                return
        stop.signal_name = signal.Signals(number).name

    watched = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    try:
        before = {number: signal.signal(number, on_signal) for number in watched}
    except ValueError:  # only the main thread may watch signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[name] += time.monotonic() - start


@contextmanager
def _cache_events() -> Iterator[list[str]]:
    """The events of the persistent compile cache while the block runs."""
    events: list[str] = []
    listening = True

    def listen(name: str, **_: Any) -> None:
        if listening and name.startswith("/jax/compilation_cache/cache_"):
            events.append(name.rsplit("_", 1)[-1])

    jax.monitoring.register_event_listener(listen)
    yield events
    listening = False


def _cache_verdict(events: list[str]) -> str:
    if not jax.config.jax_compilation_cache_dir:
        return "off"
    return "hit" if "hits" in events and "misses" not in events else "miss"


def _profile_window(config: TrainConfig) -> tuple[int, int] | None:
    if not config.profile:
        return None
    try:
        first, last = (int(part) for part in config.profile.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 0 <= first < last <= config.steps:
        raise ZooError(f"--profile {config.profile} should be START:STOP with 0 <= START < STOP <= --steps {config.steps}")
    return first, last
