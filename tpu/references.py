"""Plans that are kept: files of them, and the check that a step has not become larger or slower without a reason."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tpu.estimate import Plan, plan
from tpu.report import compare, named
from zoo.errors import ZooError

FOLDER = Path(__file__).parent / "plans"
WORSE = 0.03  # part by which memory or time may grow, or shrink, before it is said
JUDGED = (("HBM peak", "peak_bytes"), ("estimated step", "step_seconds"))


def write_plans(path: Path, plans: Sequence[Plan], reason: str = "") -> None:
    """Writes plans as JSON, with the reason why they are as they are."""
    path.write_text(json.dumps({"reason": reason, "plans": [asdict(p) for p in plans]}, indent=1) + "\n")


def read_plans(path: Path) -> list[Plan]:
    """The plans of a file. Raises ZooError for a file that is none of `write_plans`."""
    if not path.is_file():
        raise ZooError(f"there is no {path}; write it with --json {path}")
    try:
        return [Plan(**row) for row in json.loads(path.read_text())["plans"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} does not hold plans of this version ({error}); write it again with --json") from error


def check(paths: Sequence[Path], reason: str = "", make: Callable[[Plan], Plan] | None = None) -> bool:
    """Plans the recipes of files again, and says whether none of them became worse; all of the folder without paths.

    With a reason, a file whose plans became worse or better, or are of other versions, is written anew and passes.
    `make` makes a plan again. Raises ZooError for files that hold no plans.
    """
    paths = list(paths) or sorted(FOLDER.glob("*.json"))
    if not paths:
        raise ZooError(f"there are no plans in {FOLDER}; write one with --json {FOLDER / 'NAME.json'}")
    passed = True
    for path in paths:
        before = read_plans(path)
        after = [(make or again)(p) for p in before]
        verdicts = [judge(old, new) for old, new in zip(before, after, strict=True)]
        compare(before, after)
        bad = [line for verdict, lines in verdicts if verdict == "worse" for line in lines]
        for verdict, lines in verdicts:
            print("".join(f"{path}: {verdict}: {line}\n" for line in lines) or f"{path}: {verdict}\n", end="")
        if reason and any(verdict != "same" for verdict, _ in verdicts):
            write_plans(path, after, reason)
            print(f"{path}: written anew")
        elif bad:
            passed = False
            print(f'if it must be so: python -m tpu.plan --check {path} --reason "WHY"')
    return passed


def again(p: Plan) -> Plan:
    """The same plan, of the code as it is now."""
    script, *arguments = shlex.split(p.recipe)
    return plan(Path(script), arguments, p.topology, p.slices)[0]


def judge(old: Plan, new: Plan) -> tuple[str, list[str]]:
    """("worse", "better", "same" or "not judged", what changed). Plans of other versions are not judged."""
    if old.versions != new.versions:
        return "not judged", [f"it was planned with {named(old.versions)}, here are {named(new.versions)}"]
    if old.fits and not new.fits:
        return "worse", [f"{old.label}: it does not fit any more"]
    grown, shrunk = [], []
    for name, field in JUDGED:
        was, now = getattr(old, field), getattr(new, field)
        line = f"{old.label}: {name} {now / was - 1:+.1%}" if was else f"{old.label}: {name} is known now"
        if now > was * (1 + WORSE):
            grown.append(line)
        elif now < was * (1 - WORSE):
            shrunk.append(line)
    return ("worse", grown) if grown else ("better", shrunk) if shrunk else ("same", [])
