"""The times of decoded frames, from timestamps that may start again, or that stand in another order.

The packets for the decoder pass through `Clock.packet`, and its frames through `Clock.moments`. Correct
timestamps stay as they are. What is mended:

- Timestamps that start again, as in recordings that were joined byte by byte: the later frames go on where
  the last frame before the joint ends.
- Timestamps in the order of decoding, although the frames are shown in another order (pts = dts with
  B-frames): the n-th shown frame gets the n-th timestamp, like ffmpeg's best-effort timestamps.

A frame whose timestamp repeats or goes back for another reason is left out. The frame after it says so.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer

_MOST_HELD = 40  # frames that a decoder may hold back, to show them in another order
_JOINT_FRAMES = 64  # a joint that the packets show is seen among the next so many frames, or it is none
_BACK_SECONDS = 0.5  # a jump back by more is a new start, if the next frame goes on from there
_AHEAD_SECONDS = 10  # a jump ahead by more is a wrong timestamp, if the next frame is back again
_MOST_SHOWN_SECONDS = 1  # of the last frame before a joint: a broken header may declare days
_WITHOUT_INDEX = {"mpegts", "mpeg"}


@dataclass(frozen=True)
class Moment:
    """A frame and its time in seconds.

    starts_again: the timestamps start again with this frame.
    doubtful: the number of frames, from behind the last moment to this one, whose times are not known.
    """

    frame: av.VideoFrame
    time_s: float
    starts_again: bool
    doubtful: int


@dataclass(frozen=True)
class _Stamped:
    frame: av.VideoFrame
    raw_s: Fraction | None  # as the file has it, sorted. None: the frame has no timestamp


class Clock:
    """Gives the frames of one stream their times. `step_s`: how long a frame lasts that does not say so."""

    def __init__(self) -> None:
        self.step_s = Fraction(1, 25)
        self.left_out = 0  # frames whose timestamps repeat or go back
        self.restarts = 0
        self.retimed = 0  # frames that were timed by their order
        self.untimed = False  # frames without a timestamp were seen; their times are counted, so no seeking
        self._rising = True  # all timestamps so far rise in the order of decoding
        self._waiting: list[tuple[int, int]] = []  # epoch and timestamp of each packet in the decoder
        self.restart()

    def restart(self) -> None:
        """Forget the place in the stream, because the next packets come from another place."""
        self._epoch = 0  # of the last packet: how often the timestamps have started again
        self._last_pts: int | None = None  # of the last packet
        self._last_dts: int | None = None
        self._joint_frames = 0
        self._lost = False  # since the last key frame
        self._last_s: Fraction | None = None  # the time of the last moment
        self._last_step_s = self.step_s
        self._shift_s = Fraction(0)  # from the file's timestamps to times
        self._waiting.clear()

    def packet(self, packet: av.Packet) -> None:
        """Note a packet before the decoder gets it."""
        if not packet.size:
            return
        if _is_joint(packet, self._last_dts):
            self._epoch += 1
            self._joint_frames = _JOINT_FRAMES
            self._last_pts = None
        if packet.pts is None or (self._last_pts is not None and packet.pts <= self._last_pts):
            self._rising = False
            self._waiting.clear()
        elif self._rising and not packet.is_discard:
            heapq.heappush(self._waiting, (self._epoch, packet.pts))
        self._last_pts = packet.pts
        self._last_dts = packet.dts if packet.dts is not None else self._last_dts

    def lost(self, packet: av.Packet) -> None:
        """Note that the decoder has refused a packet."""
        self._lost = True
        if packet.pts is not None and (entry := (self._epoch, packet.pts)) in self._waiting:
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)

    @property
    def needs_order(self) -> bool:
        """Does the time of a frame depend on the frames before? Then there is no seeking."""
        return self.untimed or self.restarts > 0 or self.retimed > 0

    def moments(self, frames: Iterator[av.VideoFrame], reorders: Callable[[], bool]) -> Iterator[Moment]:
        """The moments of the frames, with strictly rising times. reorders: does the decoder show frames in
        another order than that of the packets?"""
        ahead: deque[_Stamped] = deque()

        def following() -> _Stamped | None:
            if not ahead and (frame := next(frames, None)) is not None:
                ahead.append(self._stamped(frame, reorders=reorders()))
            return ahead[0] if ahead else None

        doubtful = 0
        while (stamped := following()) is not None:
            ahead.popleft()
            raw_s, again = stamped.raw_s, False
            if self._last_s is None:
                self._last_s = raw_s or Fraction(0)
            elif raw_s is None:
                self._last_s += _duration(stamped.frame) or self.step_s
            else:
                last_s = self._last_s - self._shift_s  # in the file's timestamps
                again = raw_s <= last_s and self._starts_again(raw_s, last_s, following)
                if not again and (raw_s <= last_s or _is_stray(raw_s, last_s, following)):
                    self.left_out += 1
                    doubtful += 1
                    continue
                if again:
                    self.restarts += 1
                    self._joint_frames = 0
                    self._shift_s = self._last_s + self._last_step_s - raw_s
                self._last_s = raw_s + self._shift_s
            yield self._moment(stamped.frame, self._last_s, again, doubtful)
            doubtful = 0

    def _moment(self, frame: av.VideoFrame, time_s: Fraction, again: bool, doubtful: int) -> Moment:
        self._joint_frames = max(0, self._joint_frames - 1)
        self._last_step_s = min(_duration(frame) or self.step_s, Fraction(_MOST_SHOWN_SECONDS))
        if frame.pts is not None and frame.time_base is not None:
            frame.pts = round(time_s / Fraction(frame.time_base))  # for whoever reads the frame
        unsure = self._lost and self._rising and self.retimed > 0
        return Moment(frame, float(time_s), again, doubtful + unsure)

    def _starts_again(
        self, raw_s: Fraction, last_s: Fraction, following: Callable[[], _Stamped | None]
    ) -> bool:
        if self._joint_frames:
            return True
        if last_s - raw_s <= _BACK_SECONDS:
            return False
        after = following()
        return after is not None and after.raw_s is not None and raw_s < after.raw_s <= last_s

    def _stamped(self, frame: av.VideoFrame, *, reorders: bool) -> _Stamped:
        own = frame.pts if frame.pts is not None else frame.dts
        if own is None or frame.time_base is None:
            self.untimed = self.untimed or own is None
            return _Stamped(frame, None)
        pts = self._sorted(own, is_key=frame.key_frame) if self._rising and reorders else own
        if not reorders:  # what was before this frame is not shown any more
            self._drop_before(own)
        self._lost = self._lost and not frame.key_frame
        if pts != own:
            self.retimed += 1
        return _Stamped(frame, pts * Fraction(frame.time_base))

    def _sorted(self, own: int, *, is_key: bool) -> int:
        """The smallest timestamp of the packets in the decoder."""
        if is_key:  # a packet before it whose frame was not shown was lost
            self._drop_before(own)
        while len(self._waiting) > _MOST_HELD:
            heapq.heappop(self._waiting)
        return heapq.heappop(self._waiting)[1] if self._waiting else own

    def _drop_before(self, own: int) -> None:
        if any(pts == own for _, pts in self._waiting):
            while self._waiting[0][1] != own:
                heapq.heappop(self._waiting)

    def notes(self) -> list[str]:
        """What was mended and left out, in words."""
        notes = []
        if self.restarts:
            times = "once" if self.restarts == 1 else f"{self.restarts} times"
            notes.append(f"the timestamps start again {times}: the later frames were timed from there on")
        if self.retimed:
            notes.append("the timestamps are in the order of decoding: frames were timed by their order")
        if self.left_out:
            notes.append(f"{self.left_out} frames were left out: their timestamps repeat or go back")
        return notes


def lacks_index(container: InputContainer) -> bool:
    """Are places found by their timestamps? Then equal timestamps may lead to the wrong one of two places."""
    return container.format.name in _WITHOUT_INDEX


def start_again(packets: Iterable[av.Packet]) -> bool:
    """Do the timestamps of a stream's packets start again?"""
    last_dts: int | None = None
    for packet in packets:
        if _is_joint(packet, last_dts):
            return True
        last_dts = packet.dts if packet.dts is not None else last_dts
    return False


def _is_joint(packet: av.Packet, last_dts: int | None) -> bool:
    """Another recording begins with a key frame, and is decoded before the end of the one before."""
    return last_dts is not None and packet.dts is not None and packet.dts < last_dts and packet.is_keyframe


def _is_stray(raw_s: Fraction, last_s: Fraction, following: Callable[[], _Stamped | None]) -> bool:
    if raw_s - last_s <= _AHEAD_SECONDS:
        return False
    after = following()
    return after is not None and after.raw_s is not None and last_s < after.raw_s < raw_s


def _duration(frame: av.VideoFrame) -> Fraction | None:
    if not frame.duration or frame.time_base is None:
        return None
    return frame.duration * Fraction(frame.time_base)
