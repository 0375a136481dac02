"""`reelmill judge` and `reelmill advise`: rules beside a curator's labels."""

from __future__ import annotations

import json
from typing import Annotated

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
