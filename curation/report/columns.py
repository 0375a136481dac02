"""What the columns mean, and the templates of the pages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2

from curation.captions.checks import COLUMNS
from curation.config.schema import Config
from curation.report.words import clock, duration, number, share
from filters import SCORERS
from filters.base import Column


def known_columns(config: Config) -> dict[str, Column]:
    """What is known of the columns: from the filters here, and from what dataset.json records of others."""
    filters = [*SCORERS.values(), *config.filters.values()]
    return {column.name: column for filter_ in filters for column in filter_.columns} | COLUMNS


def describe(column: str, about: Mapping[str, Column]) -> str:
    known = about.get(column, Column(column))
    meaning = known.meaning or column
    return f"{meaning} ({known.unit})" if known.unit else meaning


def rendered(template: str, **values: Any) -> str:
    """The HTML text of a page: a template of this folder with its values."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: files("curation.report").joinpath(name).read_text("utf-8")),
    )
    environment.filters.update(clock=clock, duration=duration, number=number, share=share)
    return environment.get_template(template).render(**values)
