"""`python -m jobs.build SOURCES… --out …`: `reelmill build`, for `ray job submit`."""

import typer

from jobs.cli import build, leave

if __name__ == "__main__":
    leave(lambda: typer.run(build))
