"""The captioners by name. The module of a captioner is imported when that captioner is asked for."""

from __future__ import annotations

import importlib
from typing import Any, Literal

CaptionerName = Literal["none", "sidecar", "transformers", "endpoint"]
_PLACES = {
    "transformers": ("captioning.local.vlm", "Transformers"),
    "endpoint": ("captioning.server.endpoint", "Endpoint"),
    "rewrite": ("captioning.rewrite", "Rewrite"),
}


def captioner_class(name: str) -> type[Any]:
    """Of the section `captions.NAME`: its fields are the section's keys."""
    module, attribute = _PLACES[name]
    made: type[Any] = getattr(importlib.import_module(module), attribute)
    return made
