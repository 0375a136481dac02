"""The `reelmill` command. This module registers its commands; `jobs.common` documents the exit codes."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from curation.store.dataset import reelmill_version
from jobs import dataset, generate
from jobs.common import leave, out
from jobs.config import config
from jobs.corpus import corpus
from jobs.evaluate import evaluate
from jobs.labels import advise, judge
from jobs.recipe import recipe

app = typer.Typer(
    help="Raw videos in, a trained two-stage text-to-video model out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"reelmill {reelmill_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Raw videos in, a trained two-stage text-to-video model out."""


for command in (
    dataset.build,
    dataset.select,
    dataset.caption,
    dataset.remove,
    dataset.report,
    dataset.status,
    dataset.verify,
    dataset.export,
    judge,
    advise,
    generate.train,
    generate.sample,
    generate.enhance,
    generate.convert,
    corpus,
    evaluate,
    recipe,
):
    app.command()(command)
app.add_typer(config, name="config")


def main() -> NoReturn:
    leave(lambda: app(prog_name="reelmill"))


if __name__ == "__main__":
    main()
