"""Footage for benchmarks: real clips, repeated without encoding."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.video.stream import VideoStream


def loop(source: Path, target: Path, seconds: float) -> float:
    """Repeat the first video stream of `source` by copying its packets. Returns the bit rate in Mb/s."""
    with cast(InputContainer, av.open(str(source))) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.dts is not None]
        base = Fraction(stream.time_base or 0)
        step = packets[1].dts - packets[0].dts  # constant rate
        length = step * len(packets)
        with av.open(str(target), "w") as out:
            copy = cast(VideoStream, out.add_stream_from_template(stream))
            rounds = int(seconds / float(length * base)) + 1
            for k in range(rounds):
                for packet in packets:
                    data = av.Packet(bytes(packet))
                    data.pts, data.dts = packet.pts + k * length, packet.dts + k * length
                    data.time_base, data.stream = base, copy
                    data.is_keyframe = packet.is_keyframe
                    out.mux(data)
    return target.stat().st_size * 8 / 1e6 / float(rounds * length * base)
