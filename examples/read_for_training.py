"""Read a dataset in a training loop of your own: captions and batches of frames.

Run it as

    python read_for_training.py DATASET
"""

import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from generation import frames, rows

LENGTH, SIDE = 8, 64  # frames of a sample, and pixels of its sides


class Clips(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, dataset: str) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        # One row group is in memory at a time; another seed gives another order.
        for row in rows(self.dataset, seed=0):
            if row["frames"] < LENGTH:
                continue
            video = torch.from_numpy(frames(row, range(LENGTH)))  # (T, H, W, 3) uint8
            video = video.permute(0, 3, 1, 2) / 127.5 - 1
            yield row["caption"] or "", torch.nn.functional.interpolate(video, (SIDE, SIDE))


if __name__ == "__main__":
    for captions, videos in DataLoader(Clips(sys.argv[1]), batch_size=2):
        print(tuple(videos.shape), list(captions))
