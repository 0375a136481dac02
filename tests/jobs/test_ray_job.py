"""`ray job submit … -- python -m jobs.build …` on a real cluster of one node, started for the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from curation.dataset import Dataset
from curation.verify import accounting, verify
from tests import render

ROOT = Path(__file__).parents[2]
CONFIG = """
spans: {min_seconds: 1, max_seconds: 2, trim_seconds: 0.1}
filters: {duration: {}, resolution: {}, motion: {}}
rules: {duration.seconds: {min: 1}}
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` reaches the cluster."""
    port, dashboard = _free_port(), _free_port()
    # Ray puts sockets below it, whose names must be short.
    temp = Path("/tmp") / f"rm{os.getpid()}"
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    environment.pop("RAY_ADDRESS", None)
    ray = str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    start += ["--object-store-memory=200000000", f"--temp-dir={temp}", "--disable-usage-stats"]
    subprocess.run(start, check=True, env=environment, capture_output=True, timeout=120)
    try:
        yield environment
    finally:
        # Ours alone, not every Ray here: what names our folder, and what that has started.
        ours = [p for p in psutil.process_iter(["cmdline"]) if str(temp) in " ".join(p.info["cmdline"] or [])]
        for process in {q for p in ours for q in (p, *p.children(recursive=True))}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(temp, ignore_errors=True)


@pytest.mark.slow
def test_a_ray_job_builds_a_dataset(cluster: dict[str, str], tmp_path: Path) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    for i in range(3):
        render.write_video(
            footage / f"{i}.mp4", render.scenes([50, 40], (160, 96), fps=25, seed=2 * i), fps=25
        )
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    out = tmp_path / "dataset"
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "jobs.build"]
    for _ in range(20):
        result = subprocess.run(
            [*command, str(footage), "--out", str(out), "--config", str(config)],
            cwd=_sources_only(tmp_path),
            env=cluster,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if "No available agent" not in result.stderr:  # a new cluster needs some seconds for it
            break
        time.sleep(3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "sources 3 = measured 3 + failed 0" in result.stdout
    dataset = Dataset(str(out))
    assert verify(dataset, decode=True) == []
    assert accounting(dataset).accepted >= 6


def _sources_only(tmp_path: Path) -> Path:
    """The packages that a job's working directory carries, without environments and data."""
    folder = tmp_path / "working"
    shutil.rmtree(folder, ignore_errors=True)
    for package in ("curation", "filters", "captioning", "generation", "jobs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
