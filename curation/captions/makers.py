"""The captioners by name, and what a worker does around one: checks, and a second try for what fails them.

What they import to work they import when they work. No Ray here.
"""

from __future__ import annotations

from typing import Literal

from captioning.base import Captioner, NoCaptions
from captioning.sidecar import Sidecar
from curation.config.schema import Config
from curation.store.address import refusal


def make_captioner(config: Config) -> Captioner:
    """The one whose captions are trained on."""
    captions = config.captions
    if captions.captioner == "sidecar":
        return Sidecar(captions.caption_column, refusal)
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


Step = Literal["caption", "rewrite"]


def worker(config: Config, step: Step) -> Captioner:
    made = make_captioner(config) if step == "caption" else make_rewriter(config)
    assert made is not None
    return made
