"""Captions per second of the pipeline, compared with a bare loop of `model.generate`.

The pipeline runs through Ray, from the shards to the driver. The bare loop uses the same clips in batches of
the same size, with prepared inputs. The model is a LLaVA-OneVision with random weights. It is large enough
that generation takes most of the time, as in real models, and writes `--tokens` tokens for every clip. Both
ways run in turns, `--rounds` times, in a Ray worker on one thread (or on a GPU if there is one). The best
round of each counts, because other work of the machine only slows a round down. The pipeline's rate is
measured between the answers of the first and the last batch. The time for starting workers and loading the
model does not depend on the number of clips and is printed separately.

    OMP_NUM_THREADS=1 python -m benchmarks.captioning [--clips 64] [--batch 8] [--tokens 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from captioning.base import CaptionRequest
from captioning.local.vlm import Transformers
from curation import pipeline
from curation.captions import wanted
from curation.cluster import session
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode.pictures import pictures
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from tests import render
from tests.captioning import tiny_vlm

CONFIG = """
spans: {min_seconds: 0.8, max_seconds: 1.2, trim_seconds: 0.0}
filters: {duration: {}}
rules: {duration.seconds: {min: 0.8}}
cut: {preset: ultrafast}
shards: {target_mb: 4, row_group_mb: 0.25}
captions: {captioner: none}
run: {object_store_mb: 256}
"""
PER_SOURCE = 12
SIZE = (160, 96)


def write_sources(folder: Path, clips: int) -> None:
    folder.mkdir()
    for k in range(-(-clips // PER_SOURCE)):
        lengths = [20] * min(PER_SOURCE, clips - k * PER_SOURCE)
        frames = render.scenes(lengths, SIZE, fps=20, seed=100 * k)
        render.write_video(folder / f"{k}.mp4", frames, fps=20)


def write_model(folder: Path) -> Path:
    """A model with tens of millions of weights. Only its end token ends an answer."""
    small = tiny_vlm.language
    size = {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "initializer_range": 0.05,
    }
    tiny_vlm.language = lambda vocabulary, **other: small(vocabulary, **other) | size  # type: ignore[assignment]
    try:
        tiny_vlm.llava_onevision(folder)
    finally:
        tiny_vlm.language = small
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "eos_token_id": settings["eos_token_id"][0]}))
    return folder


def requests(dataset: Dataset, captioner: Transformers) -> list[CaptionRequest]:
    found = []
    for row in dataset.rows("shards"):
        seen, at = pictures(row["video"]["bytes"], row["duration_s"], captioner.pictures)
        times = {"start_s": row["start_s"], "end_s": row["end_s"], "times_s": tuple(at)}
        found.append(CaptionRequest(row["clip_id"], row["uri"], pictures=tuple(seen), **times))
    return found


class Bare:
    """A loop of `model.generate` without other work."""

    def __init__(self, location: str, captioner: Transformers):
        torch.set_num_threads(1)
        clips = requests(Dataset(location), captioner)
        captioner(clips[:1])  # loads the model
        loaded = captioner._load()
        self._model = loaded.generator.model
        self._tokens = captioner.max_tokens
        size = captioner.batch_clips
        groups = [clips[k : k + size] for k in range(0, len(clips), size)]
        self._batches = [self._moved(loaded.inputs(group)) for group in groups]
        self._clips = len(clips)

    def _moved(self, inputs: Any) -> dict[str, Any]:
        device, dtype = self._model.device, self._model.dtype
        return {
            k: v.to(device, dtype if v.is_floating_point() else None) if isinstance(v, torch.Tensor) else v
            for k, v in inputs.items()
        }

    def rate(self) -> float:
        began = time.perf_counter()
        for batch in self._batches:
            with torch.inference_mode():
                said = self._model.generate(**batch, max_new_tokens=self._tokens, do_sample=False)
            said.cpu()
        return self._clips / (time.perf_counter() - began)


def bare(dataset: Dataset, config: Config) -> float:
    """Captions per second, measured in a Ray worker, so that a busy machine affects both ways equally."""
    gpus = min(1.0, float(ray.cluster_resources().get("GPU", 0.0)))
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(Bare).remote(dataset.location, config.captions.transformers)
    rate: float = ray.get(actor.rate.remote())
    ray.kill(actor)
    return rate


def piped(dataset: Dataset, config: Config) -> tuple[float, float, float]:
    """Captions per second after the first answers; seconds until the first answers; seconds until the end."""
    todo = wanted.wanted(dataset, config, "caption")
    tasks = wanted.tasks(todo, config.captions.transformers.batch_clips)
    began = time.perf_counter()
    came: list[float] = []
    for row in pipeline.captioned(tasks, config, dataset.address(""), "caption"):
        if row["spent"] is not None:
            continue
        (made,) = row["captions"]
        assert made["caption.truncated"], "the answer is shorter than in the bare loop"
        came.append(time.perf_counter() - began)
    first = sum(at <= came[0] + 0.05 for at in came)  # answers of the first batch come together
    return (len(came) - first) / (came[-1] - came[0]), came[0], came[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_sources(folder / "footage", asked.clips)
        settings = {
            "model": str(write_model(folder / "model")),
            "prompt": "Say what there is to be seen.",  # each byte is a token
            "frames": 4,
            "side": 112,
            "max_tokens": asked.tokens,
            "batch_clips": asked.batch,
        }
        overrides = ["captions.captioner=transformers", f"captions.transformers={json.dumps(settings)}"]
        config = load_config(CONFIG, overrides)
        dataset = Dataset(str(folder / "d"))
        with session.session(config):
            pipeline.build(dataset, list_sources([str(folder / "footage")]), load_config(CONFIG), Progress())
            alone: list[float] = []
            through: list[float] = []
            for k in range(asked.rounds):
                alone.append(bare(dataset, config))
                rate, first, whole = piped(dataset, config)
                through.append(rate)
                print(
                    f"round {k + 1}: bare {alone[-1]:.2f} captions/s, pipeline {rate:.2f}; "
                    f"first answers after {first:.1f} s, all after {whole:.1f} s",
                    flush=True,
                )
    share = max(through) / max(alone)
    print(
        f"best of each: {100 * share:.1f} % of the bare loop: {'at least' if share >= 0.9 else 'below'} 90 %"
    )
    sys.exit(share < 0.9)


if __name__ == "__main__":
    main()
