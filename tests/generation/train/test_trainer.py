"""The training loop: exact resume, logs, validation, samples and errors."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from generation import run as runs
from generation.config import Config
from generation.data import plan, shards
from generation.data.shards import Index
from generation.media import read_video
from generation.process import stage1
from generation.train import checkpoint, start
from generation.train.metrics import Metrics
from generation.train.trainer import NotFinite, losses_of
from tests.generation.tiny_runs import ALONE, dataset, different, kept, open_trainer, tiny, train

LORA = {"rank": 4, "alpha": 8}
LONG, SHORT = {"frames": 9, "height": 16, "width": 24}, {"frames": 5, "height": 16, "width": 24}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """RUN/stage1 of a small training, as a base for LoRA."""
    return str(train(tiny(train={"steps": 3}), data, tmp_path_factory.mktemp("base")).folder)


# ---- resume


def _lora(base: str, **sections: Any) -> Config:
    return tiny(transformer={"pretrained": base}, lora=LORA, **sections)


@pytest.mark.parametrize("kind", ["full", "accumulated", "lora", "stage2", "workers"])
def test_a_training_that_is_stopped_and_resumed_ends_with_the_same_bits(
    kind: str, data: Path, base: str, tmp_path: Path
) -> None:
    config = {
        "full": tiny(),
        "accumulated": tiny(train={"accumulate": 2}),
        "lora": _lora(base, train={"accumulate": 2}),
        "stage2": tiny("stage2", train={"accumulate": 2}),
        "workers": tiny(data={"workers": 2}),
    }[kind]
    straight = train(config, data, tmp_path / "straight")
    train(config, data, tmp_path / "stopped", 7, 13)
    shutil.copytree(tmp_path / "stopped", tmp_path / "astray", symlinks=True)
    stopped = train(config, data, tmp_path / "stopped")
    assert different(straight.folder, stopped.folder) == []
    tensors, state, losses = kept(stopped.folder)
    assert (state["step"], len(losses), len(set(losses))) == (20, 20, 20)
    assert {n.rpartition("/")[2] for n in tensors if n.startswith("optimizer/")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }

    # Without one of the batches, every result would differ.
    path = tmp_path / "astray" / config.stage / "checkpoints" / "step-0000013" / "state.json"
    about = json.loads(path.read_text())
    about["position"]["index"] += 1
    path.write_text(json.dumps(about))
    found = set(different(straight.folder, train(config, data, tmp_path / "astray").folder))
    assert {"losses", "state"} <= found
    assert {n for n in tensors if not n.endswith("/step")} <= found


def test_another_seed_is_another_training(data: Path, base: str, tmp_path: Path) -> None:
    for name, config in {"full": tiny, "lora": lambda **kw: _lora(base, **kw)}.items():
        few = {"train": {"steps": 3}}
        one = train(config(**few), data, tmp_path / f"{name} 0")
        other = train(config(**few, seed=1), data, tmp_path / f"{name} 1")
        drawn = {n for n in kept(one.folder)[0] if n.startswith("optimizer/") and not n.endswith("/step")}
        assert drawn | {"losses"} <= set(different(one.folder, other.folder))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stop_between_or_within_phases_changes_nothing(stage: str, data: Path, tmp_path: Path) -> None:
    phases: list[dict[str, Any]] = [
        {"steps": 9, "data": {"buckets": [SHORT], "crop": "random"}},
        {"steps": 5, "data": {"buckets": [LONG]}, "degradation": {"noise_steps": [100, 200]}},
        {"steps": 4},
    ]
    config = tiny(stage, phases=phases)
    assert config.steps == 18
    straight = train(config, data, tmp_path / "straight")
    stopped = train(config, data, tmp_path / "stopped", 7, 9, 13, 14, 18)
    assert different(straight.folder, stopped.folder) == []
    assert kept(straight.folder)[1]["position"] == {"phase": 2, "epoch": 0, "index": 4}
    without = train(tiny(stage, train={"steps": 18}), data, tmp_path / "without")
    assert "losses" in different(straight.folder, without.folder)


def test_what_is_cached_has_the_same_bits(data: Path, tmp_path: Path) -> None:
    steps = {"steps": 14}  # the second epoch begins at 12
    plain = train(tiny(train=steps), data, tmp_path / "plain")
    for name in ("cache_latents", "cache_text"):
        config = tiny(train={**steps, name: name == "cache_latents"})
        assert different(plain.folder, train(config, data, tmp_path / name).folder) == [], name
    fixed = tiny("stage2", degradation={"variants": 2}, train=steps)
    cached = tiny("stage2", degradation={"variants": 2}, train={**steps, "cache_latents": True})
    a, b = train(fixed, data, tmp_path / "fixed"), train(cached, data, tmp_path / "fixed and cached", 9, 14)
    assert different(a.folder, b.folder) == []
    assert list((b.folder / "cache" / "latents").rglob("*.safetensors"))


def test_when_asked_to_stop_the_step_ends_and_is_kept(data: Path, tmp_path: Path) -> None:
    config = tiny(train={"steps": 8})
    straight = train(config, data, tmp_path / "straight")
    asked = iter([False] * 4 + [True])
    trainer = open_trainer(config, data, tmp_path / "stopped")
    assert trainer.fit(should_stop=lambda: next(asked)) is False
    assert checkpoint.steps(trainer.folder / "checkpoints") == [5]
    again = open_trainer(config, data, tmp_path / "stopped")
    assert again.resume() == 5
    assert again.fit() is True
    assert different(straight.folder, again.folder) == []


def test_after_a_crash_the_log_goes_on_from_the_checkpoint(data: Path, tmp_path: Path) -> None:
    config = tiny(train={"checkpoint_every": 5, "log_every": 1, "validate_every": 3, "steps": 12})

    def crash(metrics: Metrics) -> None:
        if metrics.step == 9:
            raise MemoryError("as it may happen")

    trainer = open_trainer(config, data, tmp_path / "crashed")
    with pytest.raises(MemoryError):
        trainer.fit(on_step=crash)
    log = trainer.folder / "log.jsonl"
    assert len(log.read_text().splitlines()) == 9
    with log.open("a") as file:
        file.write('{"step": 10, "loss": 0.')  # cut off in the middle of a line
    again = open_trainer(config, data, tmp_path / "crashed")
    assert again.resume() == 5
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5]
    again.fit()
    validated = [json.loads(x)["step"] for x in (again.folder / "validation.jsonl").read_text().splitlines()]
    assert validated == [3, 6, 9, 12]
    assert different(train(config, data, tmp_path / "straight").folder, again.folder) == []


@pytest.mark.parametrize("what", ["_validate", "_show"])
def test_validation_and_samples_that_a_crash_cut_short_are_made_again(
    what: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(train={"steps": 6, "checkpoint_every": 2, "validate_every": 2, "sample_every": 2})
    straight = train(config, data, tmp_path / "straight").folder
    trainer = open_trainer(config, data, tmp_path / "crashed")
    whole = getattr(trainer, what)

    def crash(*arguments: Any) -> None:
        if trainer.step == 4:
            raise MemoryError("as it may happen")
        whole(*arguments)

    monkeypatch.setattr(trainer, what, crash)
    with pytest.raises(MemoryError):
        trainer.fit()
    again = train(config, data, tmp_path / "crashed").folder
    assert (again / "validation.jsonl").read_text() == (straight / "validation.jsonl").read_text()
    shown = sorted(path.name for path in (straight / "samples").iterdir())
    assert len(shown) == 3
    assert sorted(path.name for path in (again / "samples").iterdir()) == shown
    assert different(straight, again) == []


def test_weights_that_a_crash_left_behind_are_written_again(data: Path, tmp_path: Path) -> None:
    trainer = train(tiny(train={"steps": 4}), data, tmp_path)
    weights = trainer.folder / "weights"
    before = (weights / "weights.json").read_text()
    shutil.rmtree(weights)
    assert train(tiny(train={"steps": 4}), data, tmp_path).step == 4
    assert (weights / "weights.json").read_text() == before


# ---- errors of a resume


def test_another_dataset_is_refused_and_taken_up_with_the_next_epoch(data: Path, tmp_path: Path) -> None:
    other = dataset(tmp_path / "other data", clips=30, seed=5)
    run = tmp_path / "run"
    train(tiny(), data, run, 7)
    with pytest.raises(ValueError, match=r"the dataset has changed since step 7.*--new-data"):
        train(tiny(), other, run, 9)
    trainer = open_trainer(tiny(), other, run)
    assert trainer.resume(new_data=True) == 7
    assert (trainer.position.epoch, trainer.position.index) == (1, 0)
    trainer.fit(9)
    assert kept(trainer.folder)[1]["position"] == {"phase": 0, "epoch": 1, "index": 2}
    train(tiny(), other, run, 11)  # from now on the run uses this dataset


def test_the_columns_of_a_dataset_are_read_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [{"steps": 2}, {"steps": 2, "data": {"random_start": False}}, {"steps": 2}]
    config = tiny(phases=phases)
    train(config, data, tmp_path, 1)
    asked: list[str] = []

    def read_index(dataset: str, columns: Collection[str]) -> Index:
        asked.append(dataset)
        return shards.read_index(dataset, columns)

    monkeypatch.setattr(plan, "read_index", read_index)
    trainer = open_trainer(config, data, tmp_path)
    trainer.stage.check_data(str(data), ALONE)
    assert trainer.resume() == 1
    trainer.fit()
    assert asked == [str(data)] * 2  # the first and the last phase have the same data


def test_another_number_of_processes_is_refused(data: Path, tmp_path: Path) -> None:
    folder = train(tiny(), data, tmp_path, 4).folder
    state = folder / "checkpoints" / "step-0000004" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "world": 3}))
    with pytest.raises(ValueError, match="trained by 3 processes, and now there are 1; --new-data"):
        train(tiny(), data, tmp_path, 6)
    assert train(tiny(), data, tmp_path, 6, new_data=True).position.epoch == 1


def test_a_changed_configuration_is_refused_and_the_keys_named(data: Path, tmp_path: Path) -> None:
    train(tiny(), data, tmp_path, 3)
    changed = tiny(seed=4, train={"clip_norm": 0.5}, data={"buckets": [LONG]})
    with pytest.raises(ValueError, match="another configuration") as caught:
        start.begin(tmp_path, changed)
    for text in ("seed: 0 -> 4", "train.clip_norm: 1.0 -> 0.5", "data.buckets: "):
        assert text in str(caught.value)
    harmless = {"steps": 6, "keep_last": 1, "checkpoint_every": 2, "log_every": 1, "validate_every": 2}
    again = train(tiny(train=harmless, data={"workers": 1}, sampling={"steps": 9}), data, tmp_path)
    assert (again.step, len(losses_of(again.folder))) == (6, 6)
    assert different(train(tiny(train={"steps": 6}), data, tmp_path / "straight").folder, again.folder) == []


def test_without_a_checkpoint_any_configuration_can_be_taken(tmp_path: Path) -> None:
    folder = start.begin(tmp_path, tiny())
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "_step-0000001").mkdir()  # left by a process that was killed while it wrote
    assert start.check(tmp_path, tiny(seed=4)) == []
    start.begin(tmp_path, tiny(seed=4))
    assert runs.read_config(tmp_path, "stage1") == tiny(seed=4)


def test_a_checkpoint_of_another_model_is_refused(data: Path, base: str, tmp_path: Path) -> None:
    train(tiny(), data, tmp_path, 2)
    shutil.rmtree(tmp_path / "stage1" / "weights")
    (tmp_path / "stage1" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"to another model: only one of the two has norm_final.bias, "):
        train(_lora(base), data, tmp_path, 3)


# ---- what a step computes


def test_two_halves_are_as_good_as_one_batch(data: Path, tmp_path: Path) -> None:
    """With one bucket, both trainings get the same clips at the same places of the plan."""
    one = {"data": {"buckets": [LONG]}}
    whole = train(tiny(train={"steps": 3, "batch_size": 4}, **one), data, tmp_path / "whole")
    halves = train(
        tiny(train={"steps": 3, "batch_size": 2, "accumulate": 2}, **one), data, tmp_path / "halves"
    )
    half = train(tiny(train={"steps": 3, "batch_size": 2}, **one), data, tmp_path / "half")
    expected, found = torch.tensor(losses_of(whole.folder)), torch.tensor(losses_of(halves.folder))
    assert torch.allclose(found, expected, rtol=1e-5)
    assert not torch.allclose(torch.tensor(losses_of(half.folder)), expected, rtol=1e-2)
    a, b = kept(whole.folder)[0], kept(halves.folder)[0]
    for name in a:
        if name.endswith("/exp_avg"):  # this is a sum of the gradients
            assert torch.allclose(b[name], a[name], rtol=1e-3, atol=1e-7), name


def test_gradient_checkpointing_changes_no_loss(data: Path, tmp_path: Path) -> None:
    plain = train(tiny(train={"steps": 6}), data, tmp_path / "plain")
    saving = train(
        tiny(train={"steps": 6}, transformer={"gradient_checkpointing": True}), data, tmp_path / "saving"
    )
    assert saving.model.is_gradient_checkpointing  # type: ignore[truthy-function]
    assert losses_of(saving.folder) == pytest.approx(losses_of(plain.folder), rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora", "stage2"])
def test_bfloat16_trains(kind: str, data: Path, base: str, tmp_path: Path) -> None:
    def config(precision: str) -> Config:
        half: dict[str, Any] = {"train": {"steps": 6, "precision": precision}}
        return (
            _lora(base, **half)
            if kind == "lora"
            else tiny("stage2" if kind == "stage2" else "stage1", **half)
        )

    exact = train(config("fp32"), data, tmp_path / "fp32")
    coarse = train(config("bf16"), data, tmp_path / "bf16")
    expected, found = losses_of(exact.folder), losses_of(coarse.folder)
    assert found != expected
    assert found == pytest.approx(expected, rel=0.05)
    frozen = {p.dtype for p in coarse.model.parameters() if not p.requires_grad}
    assert frozen == ({torch.bfloat16} if kind == "lora" else set())
    assert {t.dtype for t in kept(coarse.folder)[0].values()} == {torch.float32}
    resumed = train(config("bf16"), data, tmp_path / "resumed", 4, 6)
    assert different(coarse.folder, resumed.folder) == []


def test_the_average_is_the_weighted_sum_of_all_weights(data: Path, tmp_path: Path) -> None:
    """Weight k has the factor (1 - d_k) d_(k+1) … d_n, with d_n = min(decay, (1 + n) / (10 + n))."""
    trainer = open_trainer(tiny(train={"ema_decay": 0.5}), data, tmp_path)
    name = "transformer_blocks.1.ff.net.2.weight"
    history = [trainer.trained[name].detach().double().clone()]
    for n in range(1, 13):
        trainer.fit(n)
        history.append(trainer.trained[name].detach().double().clone())
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 13)]
    assert min(decays) < 0.5 == max(decays)
    expected = math.prod(decays) * history[0]
    for k, weights in enumerate(history[1:]):
        expected = expected + (1 - decays[k]) * math.prod(decays[k + 1 :]) * weights
    assert torch.allclose(trainer.ema[name].double(), expected, rtol=0, atol=1e-7)
    assert (history[-1] - expected).abs().max() > 1e-5
    saved = load_file(trainer.folder / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(saved[name], trainer.ema[name])


def test_without_an_average_the_weights_themselves_are_exported(data: Path, tmp_path: Path) -> None:
    trainer = train(tiny(train={"steps": 3, "ema_decay": 0}), data, tmp_path)
    saved = load_file(trainer.folder / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == trainer.trained.keys()
    assert all(torch.equal(saved[n], p) for n, p in trainer.trained.items())


def test_the_rate_warms_up_and_is_what_the_optimiser_takes(data: Path, tmp_path: Path) -> None:
    trainer = open_trainer(tiny(train={"warmup_steps": 5, "weight_decay": 0}), data, tmp_path)
    name = "proj_out.weight"
    before = trainer.trained[name].detach().clone()
    trainer.fit(1)
    # The first step of Adam has the size of the learning rate, for every gradient.
    step = (trainer.trained[name].detach() - before).abs()
    assert float(step.max()) == pytest.approx(1e-3 / 5, rel=1e-3)
    trainer.fit(8)
    rates = [json.loads(line)["learning_rate"] for line in (trainer.folder / "log.jsonl").open()]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 1e-3, 1e-3])


def test_the_rate_falls_to_nothing_at_the_end_also_after_a_stop(data: Path, tmp_path: Path) -> None:
    config = tiny(train={"steps": 8, "warmup_steps": 2, "decay_steps": 4})
    trainer = train(config, data, tmp_path, 6, 8)
    rates = [json.loads(line)["learning_rate"] for line in (trainer.folder / "log.jsonl").open()]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


# ---- values that are not finite


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_before_anything_is_updated(
    what: str, data: Path, tmp_path: Path
) -> None:
    config = tiny(train={"accumulate": 2, "steps": 9})
    train(config, data, tmp_path, 6)
    trainer = open_trainer(config, data, tmp_path)
    trainer.resume()
    name = "transformer_blocks.0.attn1.to_q.weight"
    if what == "loss":
        with torch.no_grad():
            trainer.trained["patch_embed.proj.bias"][0] = math.nan
    else:
        trainer.trained[name].register_hook(lambda gradient: gradient * math.inf)
    before = {n: p.detach().clone() for n, p in trainer.trained.items()}
    loader = trainer.stage.loader(str(data), config.data, 0, ALONE)
    epoch, index = trainer.position.epoch, trainer.position.index
    clips = [c for b in itertools.islice(loader.batches(epoch, index), 2) for c in b.clip_ids]
    with pytest.raises(NotFinite) as caught:
        trainer.fit()
    text = str(caught.value)
    assert text.startswith("step 7: the loss is ")
    assert f"The clips of this step: {', '.join(sorted(clips))}. " in text
    assert len(clips) == 4
    assert all(torch.equal(p.nan_to_num(), before[n].nan_to_num()) for n, p in trainer.trained.items())
    assert checkpoint.steps(trainer.folder / "checkpoints") == [6]
    again = train(config, data, tmp_path)
    assert different(train(config, data, tmp_path / "straight").folder, again.folder) == []


def test_a_clip_that_cannot_be_read_is_named(data: Path, tmp_path: Path) -> None:
    from tests.generation import synthetic

    def change(k: int, row: synthetic.Row) -> synthetic.Row:
        return {**row, **synthetic.video(b"no video")} if k == 3 else row

    broken = synthetic.write_dataset(tmp_path / "broken", 12, distinct=2, change=change)
    config = tiny(train={"steps": 6}, data={"max_bad_fraction": 0.5, "validation_fraction": 0})
    said: list[str] = []
    trainer = open_trainer(config, broken, tmp_path / "run")
    trainer.fit(say=said.append)
    clip = synthetic.row(3, b"", 1, 8, 1, 1)["clip_id"]
    assert [line for line in said if f"clip {clip} of " in line and "took its place" in line]


# ---- logs, validation and samples


def _events(folder: Path) -> Iterator[Any]:
    """The events of TensorBoard files. A record is length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event()
            event.ParseFromString(content[12 : 12 + length])
            yield event
            content = content[16 + length :]


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for event in _events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_gets_scalars_and_losses_by_time(data: Path, tmp_path: Path) -> None:
    config = tiny(train={"steps": 10, "batch_size": 1, "log_every": 1, "validate_every": 4})
    trainer = train(config, data, tmp_path, 6, 10)
    scalars = _scalars(trainer.folder)
    losses = dict(enumerate(losses_of(trainer.folder), 1))
    assert scalars["train/loss"] == pytest.approx(losses)
    for name in ("grad_norm", "learning_rate", "samples_per_s", "data_wait", "tflops_per_s"):
        assert scalars[f"train/{name}"].keys() == losses.keys()
    assert "train/mfu" not in scalars  # the peak of a CPU is not known
    assert scalars["validation/loss"].keys() == {4, 6, 8, 10}  # the last step of a start is validated, too
    for step, loss in losses.items():
        at = stage1.training_time(config.objective, step - 1, config.seed, 0, 0)  # one sample a step
        (tag,) = [t for t in scalars if t.startswith("loss_by_time/") and step in scalars[t]]
        assert tag == f"loss_by_time/{int(at * 8) / 8:.3f}"
        assert scalars[tag][step] == pytest.approx(loss)


def test_progress_tells_rates_and_the_time_left(data: Path, tmp_path: Path) -> None:
    seen: list[Metrics] = []
    open_trainer(tiny(train={"accumulate": 2}), data, tmp_path).fit(12, on_step=seen.append)
    assert [m.step for m in seen] == [5, 10, 12]
    for m in seen:
        assert m.steps == 12
        assert m.samples_per_s > 0 < m.tflops_per_s
        assert 0 <= m.data_wait <= 1
        assert (m.seconds_left > 0) == (m.step < 12)


def test_the_validation_loss_depends_on_the_weights_alone(data: Path, tmp_path: Path) -> None:
    def validated(rate: float, where: str) -> list[float]:
        config = tiny("stage2", train={"steps": 8, "learning_rate": rate, "validate_every": 2})
        folder = train(config, data, tmp_path / where).folder
        return [json.loads(line)["loss"] for line in (folder / "validation.jsonl").open()]

    still = validated(1e-30, "still")  # too small to change a float32
    moving = validated(1e-3, "moving")
    assert len(still) == 4
    assert len(set(still)) == 1
    assert len(set(moving)) == 4
    without = tiny("stage2", train={"steps": 8})
    trained = train(without, data, tmp_path / "without").folder
    assert different(trained, tmp_path / "moving" / "stage2") == []


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_samples_are_a_playable_grid_and_leave_no_trace(stage: str, data: Path, tmp_path: Path) -> None:
    trainer = train(tiny(stage, train={"steps": 4, "sample_every": 2}), data, tmp_path / "shown")
    paths = sorted((trainer.folder / "samples").iterdir())
    assert [p.name for p in paths] == ["step-0000002.mp4", "step-0000004.mp4"]
    video = read_video(paths[-1])
    assert video.fps == 8
    assert len(video.frames) in {5, 9}
    assert video.frames.std() > 1
    assert (
        different(train(tiny(stage, train={"steps": 4}), data, tmp_path / "not").folder, trainer.folder) == []
    )


def test_samples_are_made_with_the_averaged_weights(data: Path, tmp_path: Path) -> None:
    trainer = open_trainer(tiny(train={"steps": 4, "sample_every": 4}), data, tmp_path)
    name, seen = "proj_out.weight", []

    def show(*_: object, **__: object) -> None:
        seen.append(trainer.trained[name].detach().clone())

    trainer.stage.show = show  # type: ignore[method-assign]
    trainer.fit()
    assert torch.equal(seen[0], trainer.ema[name])
    assert not torch.equal(seen[0], trainer.trained[name])


def test_a_failure_to_show_samples_ends_no_training(data: Path, tmp_path: Path) -> None:
    trainer = open_trainer(tiny(train={"steps": 4, "sample_every": 2}), data, tmp_path / "failing")
    (trainer.folder / "samples").write_text("no folder can be made here")
    said: list[str] = []
    assert trainer.fit(say=said.append) is True
    assert sum("samples could not be made: FileExistsError" in line for line in said) == 2
    plain = train(tiny(train={"steps": 4}), data, tmp_path / "plain")
    assert different(plain.folder, trainer.folder) == []


def test_looking_at_it_changes_nothing(data: Path, tmp_path: Path) -> None:
    """Validation and samples change nothing, in bfloat16 and without a cache of the text, too."""
    quiet = {"precision": "bf16", "cache_text": False, "validate_every": 0, "steps": 4}
    loud = {**quiet, "validate_every": 1, "sample_every": 2}
    for name, train_section in (("quiet", quiet), ("loud", loud)):
        train(tiny(train=train_section), data, tmp_path / name)
    assert (tmp_path / "loud" / "stage1" / "validation.jsonl").exists()
    assert not different(tmp_path / "quiet" / "stage1", tmp_path / "loud" / "stage1")
