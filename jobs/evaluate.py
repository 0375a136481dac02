"""`reelmill evaluate`, and `python -m jobs.evaluate --run RUN --data DATASET`: measures a trained run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from curation.config.load import apply_overrides, explain
from curation.config.schema import ConfigError
from jobs.common import alone, err, generation_errors, one_writer, out
from jobs.configuring import read_yaml
from jobs.generate import Device, RunOption, chosen_device, evaluations, given_prompts, note, places

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
        from generation.evaluate.following import JudgeUnfit
        from generation.evaluate.parts import Evaluation
        from generation.report.page import write_page

        settings = evaluation_settings(read_yaml(Path(config)) if config else {}, set_ or [])
        texts = given_prompts(None, prompts) if prompts else None
        folder = Path(os.path.abspath(run))
        with evaluations() as on_step:
            evaluation = Evaluation(
                run=folder,
                data=_place(data),
                held_out=_place(held_out) if held_out else None,
                out=Path(os.path.abspath(out_)) if out_ else folder / "evaluation",
                settings=settings,
                wanted=tuple(part or ()),
                prompts=texts,
                device=chosen_device(device),
                say=note,
                on_step=on_step,
            )
            evaluation.check(bool(vbench))
            with one_writer(evaluation.out, "evaluate"):
                try:
                    content, verdicts = evaluation.write()
                except JudgeUnfit as error:
                    err.print(f"reelmill: {error}", markup=False)
                    raise typer.Exit(1) from error
                page = write_page(evaluation.out)
        for name, figures in content["figures"].items():
            out.print(_table(name, figures))
        for line in content["notes"]:
            out.print(line, markup=False)
        for verdict in verdicts:
            out.print(verdict.told, markup=False)
        out.print(f"figures  {evaluation.out / 'evaluation.json'}\npage     {page}", markup=False)
        if vbench:
            out.print(f"videos   {evaluation.export_vbench(Path(vbench))}", markup=False)
        if not all(verdict.passed for verdict in verdicts):
            raise typer.Exit(1)


def evaluation_settings(data: dict[str, Any], overrides: list[str]) -> Any:
    """`evaluate.settings.Settings` from plain data, then with `overrides`. Raises `ConfigError`."""
    from generation.evaluate.settings import Settings

    apply_overrides(data, overrides)
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(dict(e), Settings) for e in error.errors())) from error


def _place(dataset: str) -> str:
    return dataset if "://" in dataset else os.path.abspath(dataset)


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
