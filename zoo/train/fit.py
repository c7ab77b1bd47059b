"""The loop: one compiled step, run from where the folder stands to the last step.

Metrics are read one step late, so that the device never waits for the host. Whatever stops the loop, a
checkpoint and the rows that led to it are whole, and the same command goes on from there bit for bit; on an NVIDIA GPU
if XLA is told to leave out what is not deterministic, as the README says.
"""

import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from zoo.errors import ZooError
from zoo.train.checkpoint import Checkpoints
from zoo.train.config import TrainConfig
from zoo.train.flops import count_flops, peak_flops
from zoo.train.mesh import Rules, check_batch, place_batch, replicated
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
    given: tuple[Any, ...] = (),
    evaluate: Callable[[State], dict[str, float]] | None = None,
    pictures: Callable[[State], Any] | None = None,
    best: str = "eval_loss",
) -> Fitted:
    """Trains until `config.steps` updates are done, from the run folder's newest checkpoint if it has one.

    `init(key, *given)` makes (params, stats), `given` being host arrays to start from. `batches` makes the batch
    of any step (`rows(step, slice)`, `stream(start, stop, place)`; `resident(steps)` where a dispatch has many);
    `evaluate(state)` returns metrics, of which the lowest `best` is kept; `pictures(state)` returns an image for
    samples/.
    Raises ZooError for what a user can mend, and SystemExit(0) when told to stop before the end.
    """
    check_batch(config.batch, config.accumulate, mesh)
    window = _profile_window(config)
    run.check()
    if config.steps_per_dispatch > 1:
        if not hasattr(batches, "resident"):
            raise ZooError(f"--steps-per-dispatch: {type(batches).__name__} cannot lie on the device; leave it at 1")
        batches = batches.resident(config.steps_per_dispatch)
    make = make_init(init, tx, config.seed, bool(config.ema))
    with jax.set_mesh(mesh), _stop_signals() as stop:
        loop = _Loop(config, run, batches, mesh, stop, evaluate or (lambda _: {}), pictures, best)
        abstract = abstract_state(make, rules, mesh, given)
        step = make_step(update, config.seed, abstract, mesh, resident=bool(loop.data))
        traced = loop.trace(step, abstract)  # may fail: nothing is written yet
        with Checkpoints(run.folder / "checkpoints", config.keep) as loop.checkpoints:
            state = loop.checkpoints.restore(abstract, loop.report.say)
            step_fn = loop.compile(traced) if state is None or int(state["step"]) < config.steps else None
            state = loop.train(step_fn, create_state(make, abstract, given) if state is None else state, window)
            return Fitted(state, loop.result())


@dataclass
class _Loop:
    """The parts of `fit` that share what has been measured so far."""

    config: TrainConfig
    run: Run
    batches: Any
    mesh: Mesh
    stop: "_Stop"
    evaluate: Callable[[State], dict[str, float]]
    pictures: Callable[[State], Any] | None
    best: str
    checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        self.stride = self.config.steps_per_dispatch
        self.data = jax.device_put([self.batches.arrays] if self.stride > 1 else [], replicated(self.mesh))
        self.report = Reporter(self.config.steps, self.config.batch)
        self.begun, self.seconds = time.monotonic(), defaultdict[str, float](float)
        self.pending: tuple[int, dict[str, jax.Array]] | None = None

    def place(self, batches: Any, step: int) -> Any:
        return place_batch(batches, step, self.mesh)

    def trace(self, step: Any, abstract: State) -> Any:
        """The step for one shape of state and batch, and its FLOPs."""
        first = self.place(self.batches, 0)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), first)
        with self.timed("compile"):
            traced = step.trace(abstract, shapes, *self.data)
            self.flops = count_flops(traced.jaxpr) / self.stride
        return traced

    def compile(self, traced: Any) -> Any:
        """The executable of a traced step; its time, cache verdict and FLOPs are told."""
        self.report.phase("compiling")
        with _cache_events() as events, self.timed("compile"):
            compiled = traced.lower().compile()
        cache = "off" if not events else "miss" if "misses" in events else "hit"
        seconds, gflops = self.seconds["compile"], self.flops / 1e9
        self.report.say(f"compiled the step in {seconds:.1f} s (cache {cache}), {gflops:.3g} GFLOP")
        return compiled

    def train(self, step_fn: Any, state: State, window: tuple[int, int] | None) -> State:
        """Runs the steps that are left, and traces those of the profiler's window."""
        config = self.config
        self.start = int(state["step"])
        self.run.create(self.start)
        self.lowest = self.run.best(self.best)
        if self.start:
            self.report.say(f"continuing {self.run.folder} at step {self.start}")
        self.report.phase("training", self.start)
        stream = self.batches.stream(self.start, config.steps, self.place)
        begun = time.monotonic()
        try:
            for step in range(self.start, config.steps, self.stride):
                done = step + self.stride
                if window and step <= window[0] < done:
                    jax.profiler.start_trace(str(self.run.folder / "profile"))
                with self.timed("data"):
                    batch = next(stream)
                try:
                    state, metrics = step_fn(state, batch, *self.data)
                except TypeError as error:  # a compiled step takes one shape only: there is no silent recompilation
                    raise ZooError(f"the batch of step {step} has another shape or dtype: {error}") from error
                self.settle()
                self.pending = done, metrics
                if window and step < window[1] <= done:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                self.after(done, state)
            jax.block_until_ready(state)
        finally:
            stream.close()
            self.report.close()
            self.run.close()
            others = sum(self.seconds[name] for name in ("data", "evaluate", "checkpoint"))
            self.seconds["train"] = time.monotonic() - begun - others
        with self.timed("checkpoint"):
            self.checkpoints.wait()
        return state

    def after(self, done: int, state: State) -> None:
        """Evaluates, saves and stops, where it is time to. Raises SystemExit(0) when told to stop."""
        last, score = done == self.config.steps, None
        if last or done % self.config.eval_every == 0:
            self.settle()
            with self.timed("evaluate"):
                score = self.look(done, state)
        improved = score is not None and score < self.lowest
        self.lowest = min(self.lowest, math.inf if score is None else score)
        reason = "" if last else self.stop.reason(done // self.stride, self.begun, self.config.max_minutes)
        if last or improved or reason or done % self.config.save_every == 0:
            self.settle()
            with self.timed("checkpoint"):
                self.run.flush(at_once=True)
                self.checkpoints.save(done, state, score)
        if reason:
            self.checkpoints.wait()
            self.report.close()
            saved = f"saved in {self.run.folder}; the same command continues"
            self.report.say(f"stopped by {reason} at step {done}, {saved}")
            raise SystemExit(0)

    def look(self, done: int, state: State) -> float | None:
        """Evaluates, draws and tells; returns the score by which the best checkpoint is kept."""
        scores = self.evaluate(state)
        if scores:
            self.run.log(done, scores)
            self.run.flush()
            self.report.say(f"step {done}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        if self.pictures:
            self.run.write_image(f"samples/step_{done:06d}.png", self.pictures(state))
        self.run.plot()
        return scores.get(self.best)

    def settle(self) -> None:
        """Reads the metrics of the dispatch before, which the device has done by now. Raises ZooError for NaN."""
        if self.pending is None:
            return
        done, metrics = self.pending[0], jax.device_get(self.pending[1])
        self.pending = None
        for back in range(self.stride, 0, -1):
            self.tell(done - back + 1, {name: float(np.ravel(x)[-back]) for name, x in metrics.items()})

    def tell(self, step: int, values: dict[str, float]) -> None:
        """Logs and shows the metrics of a step. Raises ZooError for NaN."""
        bad = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
        if bad:
            self.checkpoints.wait()
            steps = self.checkpoints.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
            raise ZooError(
                f"{bad} at step {step}; {kept} in {self.run.folder};"
                " try a lower --optim.lr, or --optim.clip 1, in another --run folder"
            )
        if step % self.config.log_every == 0 or step == self.config.steps:
            self.run.log(step, values)
            self.run.flush()
        self.report.step(step, values)

    def result(self) -> dict[str, Any]:
        """What result.json holds, and a line that says how fast it was."""
        steps, device = self.config.steps - self.start, self.mesh.devices.flat[0]
        last = [row for row in self.run.rows if row["step"] == self.config.steps]
        rate = steps / self.seconds["train"] if steps else 0.0
        result = {
            "step": self.config.steps,
            "metrics": {name: value for row in last for name, value in row.items() if name != "step"},
            "seconds": self.seconds | {"total": time.monotonic() - self.begun},
            "steps_per_second": rate,
            "examples_per_second": rate * self.config.batch,
            "gflops_per_second": rate * self.flops / 1e9,
            "device": f"{self.mesh.size} × {device.device_kind}",
            "mesh": dict(self.mesh.shape),
            "continued_from": self.start,
        }
        if peak := peak_flops(device):
            result["mfu"] = rate * self.flops / (peak * self.mesh.size)
        if not steps:
            self.report.say(f"{self.run.folder} was finished at step {self.start}")
        else:
            speed = f"{result['examples_per_second']:,.0f} examples/s, {result['gflops_per_second']:.3g} GFLOP/s"
            self.report.say(f"trained {steps} steps: {speed}" + (f", MFU {result['mfu']:.1%}" if peak else ""))
        return result

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start


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
def _cache_events() -> Iterator[list[str]]:
    """The events of the persistent compile cache while the block runs."""
    events: list[str] = []
    listening = True

    def listen(event: str, **_: Any) -> None:
        if listening and event.startswith("/jax/compilation_cache/cache_"):
            events.append(event.rsplit("_", 1)[-1])

    jax.monitoring.register_event_listener(listen)
    yield events
    listening = False


def _profile_window(config: TrainConfig) -> tuple[int, int] | None:
    if not config.profile:
        return None
    try:
        first, last = (int(part) for part in config.profile.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 0 <= first < last <= config.steps:
        raise ZooError(
            f"--profile {config.profile} should be START:STOP with 0 <= START < STOP <= --steps {config.steps}"
        )
    return first, last
