"""Train the network of `shots.detector: similarity` on films that are spliced from real single shots.

python -m benchmarks.likeness.train --data ../shared/data

`--data` holds the labelled footage (`film/truth.json`, `video/ground_truth.json`). `--more` names a folder of
files that hold one shot each. `--without A.mp4 B.mp4` leaves files out, to see how the network does on files
from which it has learnt nothing: `python -m benchmarks.shots --coefficients OUT`.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.likeness.shots import SingleShot, single_shots
from benchmarks.likeness.splice import Film, film
from curation.decode.likeness.compare import COARSE, Vectors, rows, windows
from curation.decode.likeness.describe import describe
from curation.decode.likeness.network import COEFFICIENTS

HIDDEN = (64, 32)
BATCH = 512
_NEAR_CUT = 9  # frames beside a change: all of them are learnt from
_STRIDES, _OFTEN = (2, 3, 6), 0.8  # strides beside 4, which most films have


def inputs(of: Film, frames: np.ndarray, stride: int) -> np.ndarray:
    """The inputs (frames, `INPUTS`) for some frames of a film."""
    channels = of.pictures.transpose(0, 3, 1, 2)
    vectors = np.stack([describe(*map(np.ascontiguousarray, picture)) for picture in channels])
    reach = -int(COARSE[0]) * stride
    vectors = np.concatenate([np.repeat(vectors[:1], reach, 0), vectors, np.repeat(vectors[-1:], reach, 0)])
    return windows(*rows(Vectors.of(vectors), 0, stride), frames + reach, stride)


def targets(of: Film) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(targets, weights, near): (n, 2) for cuts and gradual transitions, and (n,) frames near a change."""
    n = len(of.pictures)
    target, weight, near = np.zeros((n, 2)), np.ones((n, 2)), np.zeros(n, bool)
    for first, last in of.gradual:
        target[first : last + 1, 1] = 1
        near[max(0, first - 12) : last + 13] = True
        for edge in (first, last):
            weight[max(0, edge - 1) : edge + 2, 1] = 0.4
        if last - first <= 5:  # a short one may pass for a cut
            weight[first : last + 2, 0] = 0
    cuts = [k for k in of.cuts if k < n]
    for k in cuts:
        weight[max(0, k - 1) : k + 2] *= (0, 0.5)
        near[max(0, k - _NEAR_CUT) : k + _NEAR_CUT] = True
    target[cuts, 0] = 1
    weight[cuts, 0] = 1
    return target, weight, near


def examples(of: Film, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs float16, targets, weights) of the frames near a change, and of some of the others."""
    target, weight, near = targets(of)
    n = len(near)
    luma = of.pictures[..., 0].reshape(n, -1).astype(np.int16)
    moves = np.append(0, np.abs(np.diff(luma, axis=0)).mean(1)) > 4
    moves = np.convolve(moves, np.ones(5), "same") > 0
    chosen = near | (moves & (random.random(n) < 0.5)) | (random.random(n) < 0.12)
    frames = np.flatnonzero(chosen)
    stride = 4 if random.random() < _OFTEN else int(random.choice(_STRIDES))
    found = inputs(of, frames, stride).astype(np.float16)
    return found, target[frames].astype(np.float32), weight[frames].astype(np.float32)


def member(shots: list[SingleShot], number: int, films: int, epochs: int) -> list[nn.Linear]:
    """A network that is trained on films of its own."""
    random = np.random.default_rng(number)
    made = []
    for k in range(films):
        made.append(examples(film(shots, number * 1_000_000 + k), random))
        if (k + 1) % 100 == 0:
            print(f"member {number + 1}: {k + 1} of {films} films", flush=True)
    x, target, weight = (np.concatenate(part) for part in zip(*made, strict=True))
    del made
    print(f"{len(x)} frames: {target[:, 0].sum():.0f} cuts, {target[:, 1].sum():.0f} of gradual", flush=True)
    return fit(x, target, weight, epochs, number)


def together(members: list[list[nn.Linear]]) -> dict[str, np.ndarray]:
    """The coefficients of one network whose logits are the means of the members' logits."""
    weights = [[of.weight.detach().T for of in layers] for layers in members]
    biases = [[of.bias.detach() for of in layers] for layers in members]
    share = 1 / len(members)
    whole = [
        (torch.cat([w[0] for w in weights], 1), torch.cat([b[0] for b in biases])),
        (torch.block_diag(*(w[1] for w in weights)), torch.cat([b[1] for b in biases])),
        (torch.cat([w[2] for w in weights]) * share, sum(b[2] for b in biases) * share),
    ]
    kept = {f"weight{i}": weight.numpy().astype(np.float16) for i, (weight, _) in enumerate(whole)}
    return kept | {f"bias{i}": bias.numpy().astype(np.float32) for i, (_, bias) in enumerate(whole)}


def fit(x: np.ndarray, target: np.ndarray, weight: np.ndarray, epochs: int, seed: int) -> list[nn.Linear]:
    """The layers of a network. Inputs are standardised by the first one."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    some = x[np.sort(random.choice(len(x), min(len(x), 40_000), replace=False))].astype(np.float32)
    mean, scale = torch.from_numpy(some.mean(0)), 1 / torch.from_numpy(some.std(0) + 0.02)
    sizes = (x.shape[1], *HIDDEN, 2)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    of_kind = torch.tensor([2.0, 1.0])
    for epoch in range(epochs):
        order, total = random.permutation(len(x)), 0.0
        for k in range(len(x) // BATCH):
            chosen = np.sort(order[k * BATCH : (k + 1) * BATCH])
            batch = torch.from_numpy(x[chosen].astype(np.float32))
            batch = nn.functional.dropout(batch + 0.015 * torch.randn_like(batch), 0.05)
            losses = nn.functional.binary_cross_entropy_with_logits(
                network((batch - mean) * scale), torch.from_numpy(target[chosen]), reduction="none"
            )
            loss = (losses * torch.from_numpy(weight[chosen]) * of_kind).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / (len(x) // BATCH):.5f}", flush=True)
    with torch.no_grad():
        layers[0].weight *= scale
        layers[0].bias -= layers[0].weight @ mean
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--more", type=Path)
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--films", type=int, default=2400, help="for each member")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=COEFFICIENTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    shots = single_shots(args.data, args.more, frozenset(args.without))
    print(f"{len(shots)} single shots of {len({s.file for s in shots})} files", flush=True)
    members = [member(shots, number, args.films, args.epochs) for number in range(args.members)]
    np.savez_compressed(args.out, **together(members))


if __name__ == "__main__":
    main()
