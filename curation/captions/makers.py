"""The captioners by name, and what a worker does around one: checks, and a second try for what fails them.

What they import to work they import when they work. No Ray here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from captioning.base import Captioner, NoCaptions
from captioning.sidecar import Sidecar

if TYPE_CHECKING:
    from curation.config.schema import Config

CaptionerName = Literal["none", "sidecar", "transformers", "endpoint"]
_PLACES = {
    "transformers": ("captioning.vlm", "Transformers"),
    "endpoint": ("captioning.endpoint", "Endpoint"),
    "rewrite": ("captioning.rewrite", "Rewrite"),
}


def captioner_class(name: str) -> type[Any]:
    """Of the section `captions.NAME`: its fields are the section's keys."""
    module, attribute = _PLACES[name]
    made: type[Any] = getattr(importlib.import_module(module), attribute)
    return made


def make_captioner(config: Config) -> Captioner:
    """The one whose captions are trained on."""
    captions = config.captions
    if captions.captioner == "sidecar":
        return Sidecar(captions.caption_column)
    if captions.captioner == "none":
        return NoCaptions()
    made: Captioner = getattr(captions, captions.captioner)
    return made


def make_rewriter(config: Config) -> Captioner | None:
    """What turns those captions into others, which are kept beside them."""
    made: Captioner | None = config.captions.rewrite
    return made


def second_try(captioner: Captioner) -> Captioner | None:
    """The same captioner with another seed; None for one that draws nothing."""
    again = getattr(captioner, "again", None)
    made: Captioner | None = again() if again is not None else None
    return made


def is_local(config: Config, step: str) -> bool:
    """Does the model of this step run in our own workers?"""
    made = make_captioner(config) if step == "caption" else make_rewriter(config)
    return getattr(made, "concurrency", None) is None


def batch_clips(config: Config, step: str) -> int:
    """How many clips a captioner is handed at once: a model's own batch; of a server enough that a slow
    answer holds up few of the concurrent ones."""
    made = make_captioner(config) if step == "caption" else make_rewriter(config)
    concurrency = getattr(made, "concurrency", None)
    return int(min(64, 4 * concurrency) if concurrency else getattr(made, "batch_clips", 8))
