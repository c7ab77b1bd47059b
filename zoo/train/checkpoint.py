"""Checkpoints: saved while training goes on, kept by age and by score, restored onto any mesh."""

import logging
import re
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from zoo.errors import ZooError
from zoo.train.mesh import named_leaves

# Orbax reports every file it writes, and of a failure every thread that met it; the exception says enough.
for logger in ("absl", "asyncio", "concurrent.futures"):
    logging.getLogger(logger).setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of a run, one folder a step.

    Keeps the last `keep` and the best (the lowest `score` given to `save`). Writes happen in the
    background and appear under their final name only when whole.
    """

    def __init__(self, folder: epath.Path, keep: int = 2):
        folder = epath.Path(folder)
        self.folder = folder if "://" in str(folder) else folder.absolute()  # orbax wants local paths absolute
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        policy = policies.AnyPreservationPolicy([policies.LatestN(n=max(1, keep)), best])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        handler = ocp.StandardCheckpointHandler()
        self.manager = ocp.CheckpointManager(self.folder, item_handlers=handler, options=options)

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts to write the state; returns when it has been copied off the devices."""
        metrics = None if score is None else {"score": score}
        self.manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def wait(self) -> None:
        """Returns when every save has been written, or raises what went wrong with one."""
        self.manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.manager.close()  # waits for the last write, and ends the background threads

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in order."""
        return sorted(self.manager.all_steps(read=True))

    def restore(self, abstract: Any, say: Callable[[str], None] = print) -> Any | None:
        """The newest state that can be read, in the shapes and shardings of `abstract`; None if there is none.

        A checkpoint that cannot be read is said, set aside and passed over. Raises ZooError when the newest
        readable one has other keys or shapes, and when none of them can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                self._check(step, abstract)
                state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
                jax.block_until_ready(state)
            except ZooError:
                raise
            except Exception as error:  # a damaged file raises whatever its reader meets first
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                say(f"checkpoint {self.folder / str(step)} cannot be read ({reason}); trying the one before it")
                continue
            for newer in steps[steps.index(step) + 1 :]:
                self._set_aside(newer)
            return state
        if steps:
            raise ZooError(
                f"none of the checkpoints in {self.folder} can be read (steps {', '.join(map(str, steps))});"
                " restore the folder from a copy, or delete it to start again from step 0"
            )
        return None

    def _check(self, step: int, abstract: Any) -> None:
        """Raises ZooError with all differences between a checkpoint's tree and the wanted one."""
        found, wanted = _shapes(self.manager.item_metadata(step).tree), _shapes(abstract)
        problems = [f"  {k}: {was} saved, {wanted[k]} wanted" for k, was in found.items() if was != wanted.get(k, was)]
        problems += [f"  {name}: only in the checkpoint" for name in found if name not in wanted]
        problems += [f"  {name}: not in the checkpoint" for name in wanted if name not in found]
        if problems:
            shown = "\n".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
            raise ZooError(
                f"checkpoint {self.folder / str(step)} is of another model or optimizer:\n{shown}\n"
                "choose another --run folder, or the config that made this one"
            )

    def _set_aside(self, step: int) -> None:
        target = self.folder.parent / "unreadable"
        target.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(target / str(step))
        self.manager.reload()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by paths in which named tuple fields, indices and keys read alike, saved or not."""
    return {re.sub(r"[\[\]']", "", name): tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
