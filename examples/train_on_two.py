"""Train the first stage on two processes of this machine; the model is sharded over them.

Run it as

    torchrun --nproc-per-node 2 train_on_two.py DATASET RUN [KEY=VALUE...]

Each process calls the same function. The first one prints and writes. After Ctrl-C or a crash the same
command goes on from the newest checkpoint.
"""

import sys

from generation import train

if __name__ == "__main__":
    dataset, run, *settings = sys.argv[1:]
    folder = train("stage1", data=dataset, out=run, preset="tiny", steps=4, set=settings)
    print(folder / "weights")
