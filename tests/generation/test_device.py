"""The free memory of a device, for a process and in a container."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from generation.device import available, left_in_container

CPU = torch.device("cpu")


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = available(CPU)
    assert 50e6 < alone <= psutil.virtual_memory().total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available(CPU) == pytest.approx(alone / 4, rel=0.3)  # other processes start and end meanwhile


def _group(folder: Path, limit: str, used: int, **stat: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in stat.items()))
    return folder


def test_a_containers_limit_counts_but_not_files_that_were_read(tmp_path: Path) -> None:
    assert left_in_container(tmp_path / "nowhere") is None
    assert left_in_container(_group(tmp_path, "max", 5)) is None
    found = left_in_container(_group(tmp_path, "1000", 900, anon=200, inactive_file=500, active_file=150))
    assert found == 750
    (tmp_path / "memory.stat").write_text("not what it should be\n")
    assert left_in_container(tmp_path) is None
