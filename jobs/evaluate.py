"""`reelmill evaluate`, and `python -m jobs.evaluate --run RUN --data DATASET`: measures a trained run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.common import alone, err, generation_errors, lease, out
from jobs.generate import Device, RunOption, given_prompts, places

_SHOWN_DEPTH = 2


def evaluate(
    run: RunOption,
    data: Annotated[str, typer.Option("--data", metavar="DATASET", help="the training dataset")],
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", metavar="DATASET", help="other clips; default: the held-out clips of the run"
        ),
    ] = None,
    out_: Annotated[str | None, typer.Option("--out", metavar="DIR", help="default: RUN/evaluation")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part", help="vae, stage1, stage2 or chain; may be repeated; default: all existing parts"
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="one prompt a line; default: held-out captions"),
    ] = None,
    config: Annotated[str | None, typer.Option(help="a YAML file with attributes, bars and numbers")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. clips=32")
    ] = None,
    vbench: Annotated[
        str | None, typer.Option(metavar="DIR", help="folder for the videos in the form of VBench's tool")
    ] = None,
    device: Device = None,
) -> None:
    """Measure a run: figures with controls, checked against bars. Exit code 1 if a bar is missed."""

    with generation_errors(), places():
        from generation import api
        from generation.evaluate.following import JudgeUnfit

        try:
            made = api.evaluate(
                run,
                data,
                held_out=held_out,
                out=out_,
                parts=part or (),
                prompts=given_prompts(None, prompts) if prompts else None,
                config=config,
                set=set_ or (),
                vbench=vbench,
                device=device,
                lock=lease,
            )
        except JudgeUnfit as error:
            err.print(f"reelmill: {error}", markup=False)
            raise typer.Exit(1) from error
        for name, figures in made.figures.items():
            out.print(_table(name, figures))
        for line in made.notes:
            out.print(line, markup=False)
        for verdict in made.verdicts:
            out.print(verdict.told, markup=False)
        out.print(f"figures  {made.file}\npage     {made.page}", markup=False)
        if made.vbench:
            out.print(f"videos   {made.vbench}", markup=False)
        if not made.passed:
            raise typer.Exit(1)


def _table(name: str, figures: dict[str, Any]) -> Table:
    table = Table(title=name, title_justify="left", show_header=False, box=None)
    for path, value in _flat(figures):
        if path.count(".") < _SHOWN_DEPTH:
            table.add_row(path, value if isinstance(value, str) else f"{value:.4g}")
    return table


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, float | str]]:
    found: list[tuple[str, float | str]] = []
    for key, value in figures.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            told: float | str = "-" if value is None else str(value) if isinstance(value, bool) else value
            found.append((prefix + key, told))
    return found


if __name__ == "__main__":
    alone(evaluate)
