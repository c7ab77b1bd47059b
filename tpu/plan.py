"""Know before you rent: compile a recipe's own step for TPUs that are not there, and say what it will take.

python -m tpu.plan experiments/vae.py cifar10 --topology v5e:1x1 [flags of the recipe]
python -m tpu.plan --compare BEFORE.json AFTER.json
python -m tpu.plan --check [FILES of tpu/plans] [--reason WHY]

Nothing runs and no accelerator is needed: libtpu compiles real TPU programs on any Linux machine. Memory is what the
compiler allots. Times are estimates: the compiler's cycles where it gives them; where it gives none bytes over the
speed of HBM or of the links, and for Pallas kernels the longer of their bytes and of the products of their blocks.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from tpu.bounds import left_out
from tpu.estimate import Plan, plan
from tpu.references import check, read_plans, write_plans
from tpu.report import compare, explain, show
from tpu.search import search
from zoo.errors import ZooError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """What to plan, and for which TPUs."""

    recipe: tyro.conf.Positional[Path | None] = None
    """A script of experiments/. Its preset and flags follow."""
    topology: tuple[str, ...] = ("v5e:1x1",)
    """Chips to compile for, such as v5e:1x1 v6e:1x1 v5e:2x4 v5p:2x2x2."""
    slices: int = 1
    """Slices of that topology, joined by the data centre's network."""
    explain: bool = False
    """List the twenty costliest operations, with the source lines that they come from."""
    without: tuple[str, ...] = ()
    """Modules of zoo/models that give back what they get, such as convolution.BatchNorm: what no better code for them
    can beat."""
    search: bool = False
    """Find the largest batch that fits, for each policy of what is computed again, and the fastest of all tried."""
    json: Path | None = None
    """File to write the plans to."""
    compare: tuple[Path, Path] | None = None
    """Two files of plans: say what became better or worse."""
    check: tuple[Path, ...] | None = None
    """Files of plans to make again, all of tpu/plans if none is named: fails where memory or time grew by over 3 %."""
    reason: str = ""
    """Why the plans are as they are: kept in the file of --json; --check then writes what has changed anew."""


def main(argv: list[str] | None = None) -> int:
    options, arguments = tyro.cli(
        Options, prog="python -m tpu.plan", description=__doc__, args=argv, return_unknown_args=True
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", 100)  # or the lines of our own are cut off
    try:
        if options.compare:
            before, after = options.compare
            compare(read_plans(before), read_plans(after))
            return 0
        if options.check is not None:
            return 0 if check(options.check, options.reason) else 1
        if options.recipe is None:
            raise ZooError("give a recipe, such as experiments/vae.py, or --compare, or --check")
        if options.without and options.json:
            raise ZooError("plans that are kept are of whole steps: give --without or --json")
        with left_out(options.without):
            plans = make(options, options.recipe, arguments)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        write_plans(options.json, plans, options.reason)
    return 0 if all(p.fits for p in plans) or options.search else 1


def make(options: Options, recipe: Path, arguments: list[str]) -> list[Plan]:
    """The plans that are asked for, printed."""
    plans: list[Plan] = []
    for topology in options.topology:
        if options.search:
            plans += search(recipe, arguments, topology, options.slices)
            continue
        made, found = plan(recipe, arguments, topology, options.slices)
        plans.append(made)
        if options.explain:
            explain(found, made.steps_per_dispatch, ROOT)
    if not options.search:
        show(plans)
    return plans


if __name__ == "__main__":
    sys.exit(main())
