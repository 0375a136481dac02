"""The start of a training in its folder: its configuration is written there, or compared."""

from __future__ import annotations

import shutil
from pathlib import Path

from generation import allowed
from generation.cache import TensorCache
from generation.config import Config, differences
from generation.disk import write_text
from generation.run import read_config
from generation.train import checkpoint
from generation.train.checkpoint import steps


def check(run: Path, config: Config) -> list[str]:
    """The allowed changes since an earlier start of this training, as lines `key: old -> new`.

    Raises `ValueError` when the folder holds a training of another configuration.
    """
    folder = run / config.stage
    if not (folder / "config.json").exists():
        return []
    before = read_config(run, config.stage)
    changed = differences(before, config)
    if changed and steps(folder / "checkpoints"):
        raise ValueError(
            f"{folder} holds a training of another configuration; take another --out, or resume "
            f"with the same configuration. Changed: {'; '.join(changed)}"
        )
    return differences(before, config, harmless=True)


def begin(run: Path, config: Config) -> Path:
    """Make the folder of a stage's training and write config.json. Raises `ValueError` as `check` does."""
    check(run, config)
    folder = run / config.stage
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    allowed.remember(run, config.codec.kind)
    return folder


def tidy(run: Path, config: Config) -> None:
    """Remove what a killed training left unfinished in its folder. No other training may be at work there."""
    folder = run / config.stage
    checkpoint.clean(folder / "checkpoints", config.train.keep_last)
    for name in ("_weights", "_old-weights"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for cache in (folder / "cache").glob("*"):
        if not cache.is_symlink():  # trainings of other folders may write to it
            TensorCache(cache).clean()


def take_sampling(run: Path, config: Config) -> None:
    """Write the `sampling` of a finished training to its config.json.

    The other keys do not change, as they say how the weights were trained.
    """
    before = read_config(run, config.stage)
    if before.sampling != config.sampling:
        now = before.model_copy(update={"sampling": config.sampling})
        write_text(run / config.stage / "config.json", now.model_dump_json(indent=1))
