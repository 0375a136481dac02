"""The commands train, sample, enhance and convert. They parse options, call `generation`, and report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from curation.commands.working import ended_in_order
from curation.config.schema import ConfigError
from generation.config import Config as GenerationConfig
from generation.configuring import stage_config
from generation.progress import note
from jobs.common import generation_errors, lease, no_room, one_writer, out

Stage = Annotated[
    Literal["vae", "stage1", "stage2"], typer.Argument(metavar="STAGE", help="vae, stage1 or stage2")
]
RunOption = Annotated[str, typer.Option("--run", metavar="RUN", help="the folder of a trained run")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU if there is one")]
Offload = Annotated[
    Literal["none", "model", "block"],
    typer.Option(
        help="model: only network or codec is on the GPU; block: only one block of the network is on the GPU"
    ),
]
Guidance = Annotated[
    Literal["auto", "together", "apart"],
    typer.Option(
        "--guidance-batch", help="both predictions in one batch (together), or with half the memory (apart)"
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="compile the network's blocks, which takes minutes")]
Seed = Annotated[int | None, typer.Option(help="default: 0, or the seed of the preview")]


def train(
    stage: Stage,
    data: Annotated[str, typer.Option("--data", metavar="DATASET", help="a dataset with shards")],
    out_: Annotated[str, typer.Option("--out", metavar="RUN", help="folder to make or to continue")],
    preset: Annotated[
        str, typer.Option(help="tiny, small, flashvideo, flashvideo-released; or one of them with -fast")
    ] = "tiny",
    config: Annotated[str | None, typer.Option(help="a YAML file with changes to the preset")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. train.learning_rate=1e-4")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="train up to this step")] = None,
    workers: Annotated[int, typer.Option(min=1, help="number of processes; above 1 by Ray Train")] = 1,
    device: Device = None,
    new_data: Annotated[
        bool, typer.Option("--new-data", help="resume with a changed dataset or number of workers")
    ] = False,
) -> None:
    """Train a stage on a dataset's shards, or resume its training."""

    with generation_errors():
        from generation import api

        if workers == 1:
            api.train(
                stage,
                data,
                out_,
                preset=preset,
                config=config,
                set=set_ or (),
                steps=steps,
                device=device,
                new_data=new_data,
                lock=lease,
            )
            return
        settings = api.training_config(stage, preset, config, set_ or (), steps)
        dataset = os.path.abspath(data) if "://" not in data else data
        _train_on_ray(settings, dataset, Path(os.path.abspath(out_)), workers, steps, device, new_data)


def _train_on_ray(
    settings: GenerationConfig,
    dataset: str,
    run: Path,
    workers: int,
    steps: int | None,
    device: str | None,
    new_data: bool,
) -> None:
    from curation.cluster.private import private_ray
    from curation.config.schema import Config as CurationConfig

    plain = CurationConfig()
    private_ray(plain)
    from curation.cluster import session
    from jobs.training import train_on_ray

    with one_writer(run / settings.stage, "train") as lease, session.session(plain):
        import ray

        there = int(ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0
        if there < workers and (there or device == "cuda"):
            raise ConfigError(
                f"--workers {workers}: there are {there} GPUs, and each worker needs one; use fewer "
                "workers, or --device cpu"
            )
        gpus = there > 0
        train_on_ray(
            settings,
            dataset,
            run,
            workers,
            stop_at=steps,
            new_data=new_data,
            gpus=gpus,
            check=lease.check,
        )


def sample(
    run: RunOption,
    out_: Annotated[
        str,
        typer.Option("--out", metavar="DIR", help="folder for the results, with a subfolder for each prompt"),
    ],
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]")] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="one prompt a line")
    ] = None,
    preview_only: Annotated[bool, typer.Option("--preview-only", help="only Stage I")] = False,
    frames: Annotated[int | None, typer.Option(min=1, help="number of frames, 4n + 1")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="size of the preview")] = None,
    final_size: Annotated[str | None, typer.Option(metavar="WxH", help="size of the final video")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="evaluations of Stage I")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance of Stage I; 1: none")] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", metavar="PROMPT", help="what the video must not show")
    ] = None,
    seed: Seed = None,
    enhance_steps: Annotated[int | None, typer.Option(min=1, help="evaluations of Stage II")] = None,
    enhance_guidance: Annotated[
        float | None, typer.Option(min=0, help="guidance of Stage II; 1: none")
    ] = None,
    noise_step: Annotated[
        int | None, typer.Option(min=0, max=999, help="amount of noise at the start of Stage II")
    ] = None,
    device: Device = None,
    offload: Offload = "none",
    guidance_batch: Guidance = "auto",
    compile_: Compile = False,
) -> None:
    """Make a video of each prompt: a preview, then the final one."""

    with generation_errors():
        from generation import api

        made = api.sample(
            given_prompts(prompt, prompts),
            run,
            out_,
            preview_only=preview_only,
            frames=frames,
            size=_size(size, "--size"),
            final_size=_size(final_size, "--final-size"),
            steps=steps,
            guidance=guidance,
            negative_prompt=negative,
            seed=seed,
            enhance_steps=enhance_steps,
            enhance_guidance=enhance_guidance,
            noise_step=noise_step,
            device=device,
            offload=offload,
            guidance_batch=guidance_batch,
            compile=compile_,
            lock=lease,
        )
        for path in made:
            out.print(str(path), markup=False)


def enhance(
    source: Annotated[str, typer.Argument(metavar="PREVIEW|VIDEO")],
    run: RunOption,
    out_: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="default: final.mp4 beside a preview")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="what the video shows; needed for a video file")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="size of the result")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="number of frames, 4n + 1; default: all frames")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, help="frame rate of a video file; default: the file's own rate")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="number of evaluations")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance; 1: none")] = None,
    noise_step: Annotated[
        int | None, typer.Option(min=0, max=999, help="amount of noise at the start")
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", metavar="PROMPT", help="what the video must not show")
    ] = None,
    seed: Seed = None,
    device: Device = None,
    offload: Offload = "none",
    guidance_batch: Guidance = "auto",
    compile_: Compile = False,
) -> None:
    """Make the final video from a preview, or a larger video from any video file, with Stage II."""

    with generation_errors():
        from generation import api

        path = api.enhance(
            source,
            run,
            out_,
            prompt=prompt,
            size=_size(size, "--size"),
            frames=frames,
            fps=fps,
            steps=steps,
            guidance=guidance,
            noise_step=noise_step,
            negative_prompt=negative,
            seed=seed,
            device=device,
            offload=offload,
            guidance_batch=guidance_batch,
            compile=compile_,
            lock=lease,
        )
        out.print(str(path), markup=False)


def convert(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="stage1.pt, stage2.pt, 3d-vae.pt, mp_rank_00_….pt")
    ],
    out_: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="folder to make; it must not exist")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="make a stage of this run, for sampling")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="with --run: the preset of the stage; default: flashvideo-released")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="with --run: e.g. codec.model=FOLDER"),
    ] = None,
    lora_alpha: Annotated[
        float, typer.Option(help="a LoRA in the file is merged with the factor ALPHA / RANK")
    ] = 1.0,
    positions: Annotated[
        Literal["rotary", "absolute"] | None,
        typer.Option(help="positions of a transformer, if its file does not contain them"),
    ] = None,
) -> None:
    """Convert a published file of CogVideoX or FlashVideo to a folder that can be trained and loaded."""

    with generation_errors(), ended_in_order(), places():
        if (out_ is None) == (run is None):
            raise ConfigError("name a new folder with --out, or a run with --run, not both")
        from generation.published import convert as published

        if out_ is not None:
            if preset or set_:
                raise ConfigError("--preset and --set need --run")
            made = published.convert(
                Path(checkpoint), Path(os.path.abspath(out_)), lora_alpha, positions, note
            )
        else:
            assert run is not None
            found = published.recognise(Path(checkpoint), lora_alpha, positions)
            for line in found.told():
                note(line)
            overrides = [*(set_ or []), "lora=null", "transformer.pretrained=null"]
            settings = stage_config(found.stage, preset or "flashvideo-released", None, overrides)
            place = Path(os.path.abspath(run))
            # Beside the stage's folder, which appears whole or not at all.
            with one_writer(place, "convert", f"_lease-{found.stage}.json"):
                made = published.into_run(found, settings, place)
        out.print(str(made), markup=False)


@contextlib.contextmanager
def places() -> Iterator[None]:
    """Turn the error for a place that cannot be written into one line."""
    try:
        yield
    except OSError as error:
        if no_room(error) or not error.filename:
            raise
        raise ConfigError(
            f"{error.filename}: cannot be made ({error.strerror}); name another place"
        ) from error


def given_prompts(prompt: str | None, path: str | None) -> list[str]:
    """The prompt, or the prompts of a file with one prompt a line. Raises `ConfigError`."""
    if (prompt is None) == (path is None):
        raise ConfigError("give a PROMPT, or a file of prompts with --prompts, not both")
    if prompt is not None:
        texts = [prompt.strip()]
    else:
        assert path is not None
        try:
            texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise ConfigError(f"--prompts {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"--prompts {path}: the file is not text in UTF-8") from error
        texts = [text for text in texts if text]
    if not texts or not all(texts):
        raise ConfigError(f"{path or 'PROMPT'}: contains no prompt; write one prompt a line")
    return texts


def _size(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ConfigError(f"{option} {text}: write WIDTHxHEIGHT in pixels, such as 480x256")
    return int(width), int(height)
