"""The configured captioner and rewriter, the second try after a failed check, and the size of batches.

A captioner imports its heavy libraries only when it starts to work. This module does not use Ray.
"""

from __future__ import annotations

from typing import Literal

from captioning.base import Captioner, NoCaptions
from captioning.sidecar import Sidecar
from curation.config.schema import Config
from curation.store.address import refusal


def make_captioner(config: Config) -> Captioner:
    """The captioner whose captions are trained on."""
    captions = config.captions
    if captions.captioner == "sidecar":
        return Sidecar(captions.caption_column, refusal, by_row=config.spans.by == "list")
    if captions.captioner == "none":
        return NoCaptions()
    made: Captioner = captions.of_ones_own or getattr(captions, captions.captioner)
    return made


def make_rewriter(config: Config) -> Captioner | None:
    """The rewriter, which makes new captions from the captioner's captions. Both are kept."""
    made: Captioner | None = config.captions.rewrite
    return made


def second_try(captioner: Captioner) -> Captioner | None:
    """The same captioner with another seed. None for a captioner without random numbers."""
    again = getattr(captioner, "again", None)
    made: Captioner | None = again() if again is not None else None
    return made


def is_local(config: Config, step: str) -> bool:
    """Does the model of this step run in the workers of reelmill, and not on a server?"""
    made = make_captioner(config) if step == "caption" else make_rewriter(config)
    return getattr(made, "concurrency", None) is None


def batch_clips(config: Config, step: str) -> int:
    """The number of clips that a captioner gets at once.

    A model gets its own batch size. A server gets up to four times its concurrency, so that one slow answer
    delays few other requests.
    """
    made = make_captioner(config) if step == "caption" else make_rewriter(config)
    concurrency = getattr(made, "concurrency", None)
    return int(min(64, 4 * concurrency) if concurrency else getattr(made, "batch_clips", 8))


Step = Literal["caption", "rewrite"]


def worker(config: Config, step: Step) -> Captioner:
    made = make_captioner(config) if step == "caption" else make_rewriter(config)
    assert made is not None
    return made
