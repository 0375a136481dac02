"""`python -m jobs.build SOURCES… --out …`: `reelmill build`, for `ray job submit`."""

import typer

from jobs.cli import build, leave

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command()(build)

if __name__ == "__main__":
    leave(app)
