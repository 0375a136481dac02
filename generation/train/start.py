"""How a training takes possession of its folder: its configuration is written down, or compared."""

from __future__ import annotations

from pathlib import Path

from generation.config import Config, differences
from generation.disk import write_text
from generation.run import read_config
from generation.train.checkpoint import steps


def check(run: Path, config: Config) -> list[str]:
    """What has changed since an earlier start of this training, and may: `key: old -> new`.

    Raises `ValueError` when the folder holds a training of another configuration.
    """
    folder = run / config.stage
    if not (folder / "config.json").exists():
        return []
    before = read_config(run, config.stage)
    changed = differences(before, config)
    if changed and steps(folder / "checkpoints"):
        raise ValueError(
            f"{folder} holds a training of another configuration; take another --out, or go on "
            f"with the same one. Changed: {'; '.join(changed)}"
        )
    return differences(before, config, harmless=True)


def begin(run: Path, config: Config) -> Path:
    """The folder of a stage's training, its configuration written down. Raises `ValueError`: see `check`."""
    check(run, config)
    folder = run / config.stage
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    return folder


def take_sampling(run: Path, config: Config) -> None:
    """Write down the `sampling` of a training that is over. The rest stays: it tells how the weights came to
    be."""
    before = read_config(run, config.stage)
    if before.sampling != config.sampling:
        now = before.model_copy(update={"sampling": config.sampling})
        write_text(run / config.stage / "config.json", now.model_dump_json(indent=1))
