"""Divides CPUs and GPUs among the kinds of workers, so that all workers fit on the cluster together."""

from __future__ import annotations

import ray
import ray.data
import ray.exceptions

from curation.captions.makers import Step, is_local, make_rewriter
from curation.config.schema import Config, ConfigError


class cpu_shares:
    """CPUs and GPUs per worker, so that measuring and every model fit on the cluster together."""

    def __init__(self, config: Config):
        run = config.run
        total = max(1.0, cluster("CPU"))
        models = len(config.model_scorers)
        gpus = cluster("GPU")
        share = gpus / max(1, models * run.model_workers)  # 0 without GPUs
        self.model_gpus = run.model_gpus if run.model_gpus is not None else min(1.0, share)
        # On a machine with fewer CPUs than stages, each stage takes a part of a CPU.
        self.model_cpus = min(run.model_cpus, total / (models + 1) / run.model_workers)
        left = total - self.model_cpus * models * run.model_workers
        self.measure_cpus = min(run.measure_cpus, left)
        self.measure_workers = run.measure_workers or max(1, int(left / self.measure_cpus + 1e-6))


class caption_shares:
    """CPUs and GPUs for captioning. The models get their share first; the clip readers get the rest."""

    def __init__(self, config: Config, step: Step):
        run = config.run
        total, gpus = max(1.0, cluster("CPU")), cluster("GPU")
        local = is_local(config, step)
        # A single actor can keep a server's limit on concurrent requests.
        self.workers = run.caption_workers if local else 1
        share = min(1.0, gpus / self.workers)
        self.gpus = (share if run.caption_gpus is None else run.caption_gpus) if local else 0.0
        self.cpus = min(run.caption_cpus, total / 2 / self.workers)
        left = total - self.cpus * self.workers
        self.reader_cpus = min(1.0, left)
        # Four readers decode about as fast as a model on one GPU, or a server, can caption.
        self.readers = min(
            run.caption_readers or 4 * self.workers, max(1, int(left / self.reader_cpus + 1e-6))
        )


def check_shares(config: Config) -> None:
    """Raises `ConfigError` if a worker takes more than any machine has. Ray would wait forever for a machine
    that has enough."""
    steps: list[Step] = ["caption"] if config.captions.by_model else []
    if make_rewriter(config) is not None:
        steps.append("rewrite")
    asked = []
    for step in steps:
        shares = caption_shares(config, step)
        remedy = "run.caption_gpus=0 captions on CPUs; null takes what is there"
        asked.append(("caption_gpus", "GPU", shares.gpus, "each captioning worker", remedy))
        asked.append(("caption_cpus", "CPU", shares.cpus, "each captioning worker", "set it to at most that"))
    if config.model_scorers:
        remedy = "run.model_gpus=0 scores on CPUs; null takes what is there"
        who = f"each worker of {', '.join(config.model_scorers)}"
        asked.append(("model_gpus", "GPU", cpu_shares(config).model_gpus, who, remedy))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, resource, taken, who, remedy in asked:
        most = max((float(node.get(resource, 0.0)) for node in nodes), default=0.0)
        if taken > most:
            raise ConfigError(
                f"run.{key}: {who} takes {taken:g} {resource}s, and no machine of this cluster has more than "
                f"{most:g} (all together: {cluster(resource):g}); {remedy}"
            )


def cluster(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0.0))
