"""Training and sampling of the two-stage text-to-video model. The package does not import Ray or the other
packages. It only knows the schema of the shards that the other packages write.

`api` has the commands as functions, for Python and for the command line: `from generation import train`
(docs/python.md).

Every room may use the modules beside the rooms: `config`, `presets` and `configuring` (the configuration of a
stage, and where it comes from), `allowed` (which code it may run), `json_schema` (its keys, for editors),
`run` (the folder of a run), `disk` (files that appear whole or not at all), `lock` (one writer in a folder),
`cache` (tensors by their origin), `draws` (random numbers by key), `device` (peak, precision, memory),
`media` (frames and video files) and `progress` (lines on the terminal).

These are the rooms in order. A room imports only rooms of the lines before its own line:

data, models              clips of the shards as batches; networks and their weights
text, codecs              captions as token states; video as latents and back
process                   the mathematics: diffusion, flow, guidance, degradation, both objectives
train, sample, published  the training loop; previews and final videos; conversion of published checkpoints
evaluate, report          figures about a run; pages and pictures of the results
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generation.api import enhance, evaluate, frames, rows, sample, train

__all__ = ("enhance", "evaluate", "frames", "rows", "sample", "train")

_OF_SHARDS = {"rows": "clips", "frames": "frames"}  # these come without PyTorch


def __getattr__(name: str) -> Any:
    """A function of `api`, which is imported only now: processes that only decode need nothing of it."""
    if name in _OF_SHARDS:
        return getattr(import_module("generation.data.shards"), _OF_SHARDS[name])
    if name in __all__:
        return getattr(import_module("generation.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _CallableRoom(ModuleType):
    """A room that has the name of a function of `api`: to call the room is to call the function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module("generation.api"), name)(*arguments, **options)


for _room in ("evaluate", "sample", "train"):
    import_module(f"generation.{_room}").__class__ = _CallableRoom  # its map alone is imported
