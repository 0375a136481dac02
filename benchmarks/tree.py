"""CPU seconds and memory of a command and all its child processes, sampled while the command runs."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_SERVICES = ("raylet", "gcs_server", "dashboard", "runtime_env", "log_monitor", "monitor.py")


@dataclass
class Usage:
    """CPU seconds and memory of all processes without Ray's services, and CPU seconds of these services."""

    cpu_s: float = 0.0
    services_cpu_s: float = 0.0
    peak_mb: float = 0.0  # largest sum of proportional set sizes at one moment
    peak_by_kind_mb: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0


def run(
    command: Sequence[str],
    *,
    period_s: float = 0.5,
    memory: bool = False,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Usage:
    """Run `command` to its end. Raises `CalledProcessError` if it fails."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
    )
    sampler = _Sampler(process.pid, memory=memory)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(period_s):
            sampler.sample()

    thread = threading.Thread(target=watch)
    began = time.monotonic()
    thread.start()
    _, errors = process.communicate()
    done.set()
    thread.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
    sampler.usage.wall_s = time.monotonic() - began
    sampler.usage.cpu_s = sum(t for t, service in sampler.cpu.values() if not service)
    sampler.usage.services_cpu_s = sum(t for t, service in sampler.cpu.values() if service)
    return sampler.usage


class _Sampler:
    def __init__(self, pid: int, *, memory: bool):
        self._root = psutil.Process(pid)
        self._memory = memory
        self.cpu: dict[tuple[int, float], tuple[float, bool]] = {}
        self.usage = Usage()

    def sample(self) -> None:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return
        total, by_kind = 0.0, {}
        for p in processes:
            try:
                kind = _kind(p, self._root.pid)
                times = p.cpu_times()
                self.cpu[p.pid, p.create_time()] = (times.user + times.system, kind == "service")
                if self._memory and kind != "service":
                    mb = p.memory_full_info().pss / 2**20
                    total += mb
                    by_kind[kind] = by_kind.get(kind, 0.0) + mb
            except psutil.Error:  # the process has ended
                continue
        if total > self.usage.peak_mb:
            self.usage.peak_mb, self.usage.peak_by_kind_mb = total, by_kind


def _kind(process: psutil.Process, root: int) -> str:
    command = " ".join(process.cmdline())
    if "curation.decode" in command:
        return "children"
    if process.pid == root:
        return "driver"
    if "ray::" in command or "default_worker.py" in command:
        return "workers"
    if any(s in command for s in _SERVICES):
        return "service"
    return "other"
