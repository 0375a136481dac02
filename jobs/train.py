"""`python -m jobs.train STAGE --data … --out …`: `reelmill train`, for `ray job submit` and `torchrun`."""

import typer

from jobs.cli import leave
from jobs.generate import train

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command()(train)

if __name__ == "__main__":
    leave(app)
