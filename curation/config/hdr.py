"""Which sources `cut.hdr` concerns, by the transfer that a row of `sources` names."""

from __future__ import annotations

from typing import Literal

HdrMode = Literal["tonemap", "reject", "keep"]
HDR_NAMES = {"smpte2084": "PQ", "arib-std-b67": "HLG"}  # ffmpeg's name -> the usual name


def hdr_name(transfer: str | None) -> str | None:
    """`PQ` or `HLG`. None: the source is SDR, or was measured by a version that did not note it."""
    return HDR_NAMES.get(transfer or "")
