"""`reelmill corpus`, and `python -m jobs.corpus --out DIR`: rendered footage with known properties."""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from curation.config.schema import ConfigError
from curation.corpus.plan import HELD_OUT, VIDEOS, Settings
from curation.progress import Progress
from jobs.common import alone, err, out, user_errors


def corpus(
    out_: Annotated[str, typer.Option("--out", metavar="DIR", help="folder to make or to continue")],
    clips: Annotated[int, typer.Option(help="number of scenes in videos/")] = Settings.clips,
    held_out: Annotated[int, typer.Option(help="number of scenes in held-out/")] = Settings.held_out,
    defects: Annotated[float, typer.Option(help="part of the clips with a defect")] = Settings.defects,
    dissolves: Annotated[
        float, typer.Option(help="part of the changes between good scenes that are dissolves")
    ] = Settings.dissolves,
    size: Annotated[str, typer.Option(metavar="WxH", help="size of the videos")] = (
        f"{Settings.width}x{Settings.height}"
    ),
    fps: Annotated[int, typer.Option(help="frames per second")] = Settings.fps,
    train_side: Annotated[
        int, typer.Option(help="shorter side in training, in pixels; the width of stripes depends on it")
    ] = Settings.train_side,
    seed: Annotated[int, typer.Option(help="another seed gives another corpus")] = Settings.seed,
) -> None:
    """Render footage with known properties, for testing a build and for training."""
    from curation.corpus.plan import write

    with user_errors():
        match = re.fullmatch(r"(\d+)x(\d+)", size)
        if match is None:
            raise ConfigError(f"--size {size}: write width and height, such as 128x128")
        width, height = map(int, match.groups())
        settings = Settings(clips, held_out, defects, dissolves, width, height, fps, train_side, seed)
        folder = Path(out_).expanduser().absolute()
        with closing(Progress(err)) as progress:
            place = write(folder, settings, progress.start_render, progress.rendered, _cores())
        out.print(
            f"to train on  {folder / VIDEOS}\nheld out     {folder / HELD_OUT}\ntruth        {place}",
            markup=False,
        )


def _cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    alone(corpus)
