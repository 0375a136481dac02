"""Distances become the probability of a hard cut and of a gradual transition, for each frame.

The network has three layers, `INPUTS` inputs and two outputs. It is the mean of two networks that
`python -m benchmarks.likeness.train` trained on films that are spliced from real single shots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from curation.decode.likeness.compare import COARSE, FINE, INPUTS, KINDS, Vectors, rows

COEFFICIENTS = Path(__file__).with_name("network.npz")


@dataclass(frozen=True)
class Network:
    """`weights` and `biases` of the layers, in order: (in, out) and (out,) float32."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """(n, 2): that a hard cut lies before the frame, and that the frame is of a gradual transition.

        inputs: (n, `INPUTS`), see `compare.windows`.
        """
        return self._rest(inputs @ self.weights[0])

    def of_stretch(self, fine: np.ndarray, coarse: np.ndarray, own: np.ndarray, stride: int) -> np.ndarray:
        """The same for successive frames, from rows that begin and end 8 strides before and after them.

        The inputs of neighbouring frames are largely the same rows, and are not copied for each frame.
        """
        reach = -int(COARSE[0]) * stride
        n = len(own) - 2 * reach
        near, far = reach + FINE, reach + COARSE * stride
        parts = [fine[a : a + n, : KINDS * i] for i, a in enumerate(near)]
        parts += [coarse[a : a + n, : KINDS * i] for i, a in enumerate(far)]
        parts += [own[a : a + n] for a in (*near, *far)]
        x = np.zeros((n, self.weights[0].shape[1]), np.float32)
        first = 0
        for part in parts:
            last = first + part.shape[1]
            x += part @ self.weights[0][first:last]
            first = last
        return self._rest(x)

    def _rest(self, x: np.ndarray) -> np.ndarray:
        for weight, bias in zip(self.weights[1:], self.biases[:-1], strict=True):
            x = np.maximum(x + bias, 0) @ weight
        found: np.ndarray = 1 / (1 + np.exp(-(x + self.biases[-1])))
        return found


@cache
def network() -> Network:
    """The network that comes with reelmill."""
    with np.load(COEFFICIENTS) as kept:
        layers = range(len(kept.files) // 2)
        of = Network(
            tuple(kept[f"weight{i}"].astype(np.float32) for i in layers),
            tuple(kept[f"bias{i}"].astype(np.float32) for i in layers),
        )
    assert of.weights[0].shape[0] == INPUTS
    return of


class Stream:
    """Gives the probabilities of the frames of a source in blocks, while their vectors come in.

    A frame has its own when 8 strides of frames follow it, and a block of frames is complete.
    """

    def __init__(self, stride: int, block: int = 64):
        self._stride = stride
        self._block = block
        self._reach = -int(COARSE[0]) * stride  # frames of a window on each side
        self._new: list[np.ndarray] = []  # vectors of frames that were not compared yet
        self._before: Vectors | None = None  # of the frames that were
        self._rows: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._last: np.ndarray | None = None

    @property
    def lag_frames(self) -> int:
        return self._reach + self._block

    def push(self, vector: np.ndarray) -> np.ndarray:
        """Add the vector of the next frame. Returns the probabilities (n, 2) of the next frames, if any."""
        if self._last is None:  # before the first frame is the first frame
            self._new += [vector] * self._reach
        self._last = vector
        self._new.append(vector)
        return self._run() if len(self._new) >= self._block else np.empty((0, 2), np.float32)

    def finish(self) -> np.ndarray:
        """The probabilities of the remaining frames. After the last frame is the last frame."""
        if self._last is None:
            return np.empty((0, 2), np.float32)
        self._new += [self._last] * self._reach
        return self._run()

    def _run(self) -> np.ndarray:
        vectors = Vectors.of(np.stack(self._new))
        old = 0
        if self._before is not None:
            vectors = self._before.then(vectors, 2 * self._reach)
            old = len(vectors.mean) - len(self._new)
        found = rows(vectors, old, self._stride)
        if self._rows is not None:
            fine, coarse, own = (np.concatenate(pair) for pair in zip(self._rows, found, strict=True))
            found = fine, coarse, own
        self._before, self._new = vectors, []
        ready = max(0, len(found[0]) - 2 * self._reach)
        self._rows = found[0][ready:], found[1][ready:], found[2][ready:]
        return network().of_stretch(*found, self._stride) if ready else np.empty((0, 2), np.float32)
