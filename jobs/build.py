"""`python -m jobs.build SOURCES… --out …`: `reelmill build`, for `ray job submit`."""

import typer

from jobs.cli import build

if __name__ == "__main__":
    typer.run(build)
