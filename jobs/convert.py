"""`python -m jobs.convert CHECKPOINT --out FOLDER`: `reelmill convert`."""

import typer

from jobs.cli import leave
from jobs.generate import convert

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command()(convert)

if __name__ == "__main__":
    leave(app)
