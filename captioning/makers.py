"""The captioners by name. A captioner's module is imported when the captioner is first used."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

CaptionerName = Literal["none", "sidecar", "transformers", "endpoint"]
NAMES: tuple[str, ...] = get_args(CaptionerName)  # others are import paths: mypackage.mine:MyCaptioner
_PLACES = {
    "transformers": ("captioning.local.vlm", "Transformers"),
    "endpoint": ("captioning.server.endpoint", "Endpoint"),
    "rewrite": ("captioning.rewrite", "Rewrite"),
}


def captioner_class(name: str) -> type[Any]:
    """The class for the section `captions.NAME`. Its fields are the keys of the section."""
    module, attribute = _PLACES[name]
    made: type[Any] = getattr(importlib.import_module(module), attribute)
    return made
