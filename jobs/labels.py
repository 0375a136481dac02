"""`reelmill judge` and `reelmill advise`: rules beside a curator's labels."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from curation import api
from curation.sandbox.words import printable
from jobs.common import out, user_errors
from jobs.dataset import DatasetArg, Overrides

MinSeconds = Annotated[
    float, typer.Option("--min-seconds", min=0, help="leave out labelled shots that are shorter")
]


def judge(
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="labels: CSV, JSON … of shots, or truth.json of films")
    ],
    dataset: DatasetArg,
    min_seconds: MinSeconds = 2.0,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Compare the verdicts with your labels of shots and cuts: agreement, and where they differ."""
    with user_errors():
        judged = api.judge(truth, dataset, min_seconds=min_seconds, set=set_ or ())
        if as_json:
            typer.echo(json.dumps(judged.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
            return
        for line in judged.lines():
            out.print(printable(line), markup=False)


def advise(
    dataset: DatasetArg,
    keep: Annotated[
        str | None, typer.Option(metavar="SHARE", help="cut-offs that keep this share, e.g. 30%")
    ] = None,
    by: Annotated[Literal["clips", "seconds"], typer.Option(help="what --keep is a share of")] = "clips",
    labels: Annotated[
        str | None, typer.Option(metavar="FILE", help="cut-offs that agree with these labels")
    ] = None,
    min_seconds: MinSeconds = 2.0,
) -> None:
    """Say what each rule rejects, propose cut-offs, and write DATASET/advice.html, a contact sheet."""
    with user_errors():
        found = api.advise(dataset, keep=keep, by=by, labels=labels, min_seconds=min_seconds)
        for line in found.lines():
            out.print(printable(line), markup=False)
        out.print(f"page  {found.page}", markup=False)
