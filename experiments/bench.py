"""Measure what the zoo claims about itself. Every comparison runs both sides in turn in one session.

engine: what the loop costs over its compiled step, how soon the first step runs, how fast the data comes.
race: the held-out loss of Shakespeare's characters against time, beside a nanoGPT checkout if one is given.
decode: tokens a second beside the transformers library with the same weights; import memory; a training step.
scenes: what the scene model draws, says and mends rightly, beside classical methods.
quality: how good the image generators are, beside PyTorch's examples given the same time.
"""

from typing import Annotated

import tyro
from benchmarks.decode import Decode
from benchmarks.engine import Engine
from benchmarks.quality import Quality
from benchmarks.race import Race
from benchmarks.scenes import Scenes

if __name__ == "__main__":
    Command = (
        Annotated[Engine, tyro.conf.subcommand("engine")]
        | Annotated[Race, tyro.conf.subcommand("race")]
        | Annotated[Decode, tyro.conf.subcommand("decode")]
        | Annotated[Scenes, tyro.conf.subcommand("scenes")]
        | Annotated[Quality, tyro.conf.subcommand("quality")]
    )
    tyro.cli(Command, description=__doc__).main()
