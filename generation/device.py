"""What a device is and has: its peak, the precision that it computes in, the memory that is left."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

# Dense bf16 peaks, in FLOP/s, from the makers' data sheets, by a part of the device's name.
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
    """The device's peak in bfloat16; None where it is not known, as for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether networks compute in bfloat16; `auto`: where there is a GPU that can."""
    auto = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16" or (precision == "auto" and auto)


def available(device: torch.device) -> float:
    """Bytes that a process may take on a device: the GPU's, or its share of the machine's or container's."""
    if device.type == "cuda":
        # What is free, and what this process holds already: estimates are of all that it will hold.
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    import psutil

    free = float(psutil.virtual_memory().available)
    left = left_in_container(Path("/sys/fs/cgroup"))
    return min(free, left if left is not None else free) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def left_in_container(group: Path) -> float | None:
    """Bytes that a control group (version 2) has left; None: no limit, or none that can be read."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = float((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        stat = {name: float(value) for name, value in map(str.split, lines)}
        # Pages of files that were read count as used, and are given up when memory is wanted.
        return float(limit) - used + stat.get("inactive_file", 0.0) + stat.get("active_file", 0.0)
    except (OSError, ValueError):
        return None


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def free(device: torch.device) -> None:
    """Give memory back between stages."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
