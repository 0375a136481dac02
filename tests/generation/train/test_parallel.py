"""Two processes with a gloo group: sharded training equals training of one process, and resumes bit for bit.

Functions without `test_` run in both processes. The tests compare the files that these functions write.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from generation.config import Config
from generation.data.loader import Batch, Loader
from generation.device import uses_bf16
from generation.media import read_video
from generation.models.cogvideox import load
from generation.train import parallel
from generation.train.parallel import World, join
from generation.train.trainer import Trainer, losses_of
from tests.generation import synthetic
from tests.generation.tiny_runs import (
    ALONE,
    dataset,
    different,
    kept,
    on_two_ranks,
    open_trainer,
    tiny,
    train,
)

_HERE = "tests.generation.train.test_parallel"
STEPS = {"steps": 6, "accumulate": 2}


def _configs(base: Path) -> dict[str, Config]:
    lora: dict[str, Any] = {
        "transformer": {"pretrained": str(base)},
        "lora": {"rank": 4, "alpha": 8},
    }
    return {
        "full": tiny(train=STEPS),
        "lora": tiny(train=STEPS, **lora),
        "stage2": tiny("stage2", train=STEPS, data={"workers": 1}),
        "half": tiny(train={**STEPS, "precision": "bf16"}),
        "half lora": tiny(train={**STEPS, "precision": "bf16"}, **lora),
        "vae": tiny(
            "vae",
            train={**STEPS, "sample_every": 3, "validate_every": 3},
            vae_loss={"discriminator_start": 2},
            phases=[{"steps": 4}, {"steps": 2, "decoder_only": True}],
        ),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), clips=40)


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(train={"steps": 3}), data, tmp_path_factory.mktemp("base")).folder


@pytest.fixture(scope="module")
def trained(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ranks: runs with and without stops, and a mark of success from each rank."""
    folder = tmp_path_factory.mktemp("two ranks")
    train(tiny(train={"steps": 6}), data, folder / "of one", 4)
    on_two_ranks(f"{_HERE}:on_each", data, base, folder)
    assert {p.name for p in folder.glob("done *")} == {"done 0", "done 1"}
    return folder


def on_each(data: str, base: str, folder: str) -> None:
    torch.set_num_threads(1)
    world = join("cpu")
    assert (world.size, world.first) == (2, world.rank == 0)
    _collectives(world)
    _bfloat16_keeps_times(world, Path(base))
    _another_number_of_processes(world, Path(data), Path(folder))
    _averaged_weights_are_shown(world, Path(data), Path(folder))
    _bad_clips_of_any_rank_are_told(world, Path(folder))
    _trainings(world, Path(data), Path(base), Path(folder))
    (Path(folder) / f"done {world.rank}").touch()


def _trainings(world: World, data: Path, base: Path, folder: Path) -> None:
    for name, config in _configs(base).items():
        straight = train(config, data, folder / name / "straight", world=world)
        assert all(isinstance(p, DTensor) for p in straight.trained.values())
        assert not all(p.to_local().shape == p.shape for p in straight.trained.values())
        train(config, data, folder / name / "stopped", 3, 6, world=world)
    shown = tiny(train={**STEPS, "sample_every": 3, "validate_every": 4})
    train(shown, data, folder / "full" / "shown", world=world)


@pytest.mark.parametrize("name", ["full", "lora", "stage2", "half", "half lora", "vae"])
def test_a_sharded_training_that_is_stopped_and_resumed_ends_with_the_same_bits(
    name: str, trained: Path
) -> None:
    stage = name if name in ("stage2", "vae") else "stage1"
    straight, stopped = trained / name / "straight" / stage, trained / name / "stopped" / stage
    assert different(straight, stopped) == []
    tensors, state, losses = kept(stopped)
    assert (state["step"], state["world"], len(set(losses))) == (6, 2, 6)
    assert {t.dtype for t in tensors.values()} == {torch.float32}


class _BothRanks(Loader):
    """The batches of both ranks, in turn."""

    other: Loader

    def batches(self, epoch: int = 0, index: int = 0) -> Iterator[Batch]:
        pairs = zip(super().batches(epoch, index), self.other.batches(epoch, index), strict=False)
        yield from itertools.chain.from_iterable(pairs)

    def close(self) -> None:
        super().close()
        self.other.close()


def _as_one(config: Config, data: Path, run: Path) -> Trainer:
    """A training of one process on the batches of two: a step has twice as many micro-batches."""
    doubled = config.model_copy(
        update={"train": config.train.model_copy(update={"accumulate": 2 * config.train.accumulate})}
    )
    trainer = open_trainer(doubled, data, run)
    of_rank = trainer.stage.loader

    def loader(dataset: str, data: Any, phase: int, world: World) -> Loader:
        first, second = (of_rank(dataset, data, phase, World(rank, 2, world.device)) for rank in range(2))
        first.__class__, first.other = _BothRanks, second  # type: ignore[attr-defined]
        return first

    trainer.stage.loader = loader  # type: ignore[method-assign]
    trainer.fit()
    return trainer


@pytest.mark.parametrize("name", ["full", "lora", "stage2", "vae"])
def test_two_processes_learn_what_one_does_from_the_same_clips(
    name: str, trained: Path, data: Path, base: Path, tmp_path: Path
) -> None:
    config = _configs(base)[name]
    one = _as_one(config, data, tmp_path)
    two = trained / name / "straight" / config.stage
    expected, found = losses_of(one.folder), losses_of(two)
    assert found == pytest.approx(expected, rel=1e-5)
    a, b = kept(one.folder)[0], kept(two)[0]
    assert a.keys() == b.keys()
    for key in a:
        if "/exp_avg" not in key:
            assert torch.allclose(a[key], b[key], rtol=0, atol=3e-4), key
        elif key.endswith("exp_avg"):
            assert torch.allclose(a[key], b[key], rtol=0.02, atol=0.01 * float(a[key].abs().max())), key
    alone = train(config, data, tmp_path / "with its own clips")
    assert losses_of(alone.folder) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(("half", "exact"), [("half", "full"), ("half lora", "lora")])
def test_sharded_bfloat16_is_close_to_float32(
    half: str, exact: str, trained: Path, data: Path, base: Path, tmp_path: Path
) -> None:
    found = losses_of(trained / half / "straight" / "stage1")
    assert found != losses_of(trained / exact / "straight" / "stage1")
    assert found == pytest.approx(losses_of(trained / exact / "straight" / "stage1"), rel=0.03)
    assert found == pytest.approx(losses_of(_as_one(_configs(base)[half], data, tmp_path).folder), rel=0.02)


def test_validation_and_samples_leave_no_trace(trained: Path) -> None:
    """Sampling exchanges trained and averaged weights, and no gathered copy of the averages may remain."""
    shown = trained / "full" / "shown" / "stage1"
    assert different(trained / "full" / "straight" / "stage1", shown) == []
    assert sorted(p.name for p in (shown / "samples").iterdir()) == ["step-0000003.mp4", "step-0000006.mp4"]
    assert read_video(shown / "samples" / "step-0000006.mp4").frames.std() > 1
    assert [json.loads(line)["step"] for line in (shown / "validation.jsonl").open()] == [4, 6]


def test_the_exported_weights_are_whole_and_averaged(trained: Path) -> None:
    folder = trained / "full" / "straight" / "stage1"
    model = load(folder / "weights" / "transformer")
    tensors = kept(folder)[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[f"ema/{name}"]), name
        assert parameter.shape == tensors[f"optimizer/{name}/exp_avg"].shape


# ---- single functions, in two processes


def _collectives(world: World) -> None:
    assert parallel.gathered({"rank": world.rank}, world) == [{"rank": 0}, {"rank": 1}]
    values = torch.tensor([1.0, 3.0]) * (world.rank + 1)
    assert parallel.mean(values, world).tolist() == [1.5, 4.5]
    assert values.tolist() == [1.0 * (world.rank + 1), 3.0 * (world.rank + 1)]

    def action() -> int:
        if world.rank == 1:
            raise ValueError("wrong here")
        return 7

    with pytest.raises(ValueError, match=r"^wrong here$"):
        parallel.together(action, world)
    assert parallel.together(lambda: world.rank, world) == world.rank

    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
    wanted = {n: torch.arange(float(p.numel())).reshape(p.shape) for n, p in model.named_parameters()}
    parallel.shard(model, [model[0]], world, bf16=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parallel.placed(wanted[name], parameter))
            assert torch.equal(parallel.whole(parameter), wanted[name])
    found = parallel.gathered_tensors(dict(model.named_parameters()), world)
    assert found.keys() == (wanted.keys() if world.first else set())


def _bfloat16_keeps_times(world: World, base: Path) -> None:
    """Network times are up to 1000, where bfloat16 has only every fourth number."""
    model = load(base / "weights" / "transformer")
    seen: list[torch.Tensor] = []
    model.time_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[operator,union-attr]
    parallel.shard(model, list(model.transformer_blocks), world, bf16=True)  # type: ignore[arg-type]
    config: Any = model.config
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        from generation.models.cogvideox import predict

        latents = torch.zeros(1, config.in_channels, 2, 4, 6)
        predict(model, latents, torch.zeros(1, 3, config.text_embed_dim), None, torch.tensor([937.25]))
    assert [(t.dtype, t.tolist()) for t in seen] == [(torch.float32, [937.25])]


def _another_number_of_processes(world: World, data: Path, folder: Path) -> None:
    config = tiny(train={"steps": 6})
    with pytest.raises(ValueError, match="by 1 processes, and now there are 2; --new-data"):
        train(config, data, folder / "of one", world=world)
    trainer = train(config, data, folder / "of one", world=world, new_data=True)
    assert (trainer.step, trainer.position.epoch, trainer.position.index) == (6, 1, 2)


def _averaged_weights_are_shown(world: World, data: Path, folder: Path) -> None:
    trainer = open_trainer(
        tiny(train={"steps": 4, "validate_every": 2, "sample_every": 2}), data, folder / "shown", world
    )
    norm = trainer.model.norm_final
    used: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    show = trainer.stage.show

    def shown(*arguments: Any, **named: Any) -> None:
        expected.append(parallel.whole(trainer.trained["norm_final.weight"]))
        handle = norm.register_forward_pre_hook(  # type: ignore[operator,union-attr]
            lambda module, _: used.append(module.weight.detach().clone())
        )
        show(*arguments, **named)
        handle.remove()

    trainer.stage.show = shown  # type: ignore[method-assign]
    trainer.fit()
    assert len(expected) == 2
    assert torch.equal(expected[1], parallel.whole(trainer.ema["norm_final.weight"]))
    half = len(used) // 2
    assert half
    assert all(torch.equal(w, expected[0]) for w in used[:half])
    assert all(torch.equal(w, expected[1]) for w in used[half:])
    assert not torch.equal(expected[1], parallel.whole(trainer.trained["norm_final.weight"]))


def _bad_clips_of_any_rank_are_told(world: World, folder: Path) -> None:
    def change(k: int, row: synthetic.Row) -> synthetic.Row:
        return {**row, **synthetic.video(b"no video")} if k in {2, 9} else row

    broken = folder / f"broken {world.rank}"  # each process has its own file, as the bytes differ
    synthetic.write_dataset(broken, 12, distinct=2, change=change)
    config = tiny(train={"steps": 3}, data={"max_bad_fraction": 0.5, "validation_fraction": 0})
    said: list[str] = []
    open_trainer(config, broken, folder / "bad", world).fit(say=said.append)
    for number in (2, 9):
        clip = synthetic.row(number, b"", 1, 8, 1, 1)["clip_id"]
        assert [line for line in said if f"clip {clip} of " in line], said


# ---- one process


def test_one_process_shards_and_gathers_nothing() -> None:
    model = torch.nn.Linear(3, 2)
    parallel.shard(model, [], ALONE, bf16=True)
    assert type(model) is torch.nn.Linear
    assert parallel.gathered(5, ALONE) == [5]
    assert parallel.mean(torch.tensor(3.0), ALONE) == 3
    parallel.wait(ALONE)
    parallel.forget_gathered(model)
    copy = parallel.whole(model.weight)
    assert torch.equal(copy, model.weight)
    assert copy.data_ptr() != model.weight.data_ptr()
    assert not copy.requires_grad


def test_a_device_that_is_not_here_is_refused() -> None:
    assert join("cpu") == ALONE
    with pytest.raises(ValueError, match="device tpu: take cpu or cuda"):
        join("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no GPU that PyTorch can use here"):
            join("cuda")


def test_bfloat16_is_for_who_asks_and_for_gpus() -> None:
    cpu = torch.device("cpu")
    assert [uses_bf16(p, cpu) for p in ("auto", "fp32", "bf16")] == [False, False, True]
