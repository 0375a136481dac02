"""Facts about a device: its peak speed, the precision of its computations, and its free memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

# Dense bf16 peaks in FLOP/s, from the makers' data sheets. The keys are parts of device names.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A10": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's bfloat16 peak in FLOP/s. None where the peak is unknown, as for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether networks compute in bfloat16. With `auto`: on a GPU that supports bfloat16."""
    auto = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16" or (precision == "auto" and auto)


def available(device: torch.device) -> float:
    """Bytes that this process may use on a device. On a CPU: its share of the machine or container."""
    if device.type == "cuda":
        # Free memory plus the memory that this process holds: estimates count both.
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    import psutil

    free = float(psutil.virtual_memory().available)
    left = left_in_container(Path("/sys/fs/cgroup"))
    return min(free, left if left is not None else free) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def left_in_container(group: Path) -> float | None:
    """Bytes that a control group (version 2) has left. None: there is no limit, or reading it failed."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = float((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        stat = {name: float(value) for name, value in map(str.split, lines)}
        # Cached pages of files count as used, but the kernel frees them when a process needs memory.
        return float(limit) - used + stat.get("inactive_file", 0.0) + stat.get("active_file", 0.0)
    except (OSError, ValueError):
        return None


def gigabytes(size: float) -> str:
    """A size in bytes as text, in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def free(device: torch.device) -> None:
    """Release unused memory, between two stages."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
