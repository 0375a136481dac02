"""LPIPS, CLIP and features by their real libraries, with small networks of random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from huggingface_hub import errors
from PIL import Image
from torch import Tensor, nn

from generation import draws
from generation.evaluate import networks
from generation.evaluate.networks import ClipSimilarity, lpips, open_features
from generation.media import from_uint8, to_uint8

CPU = torch.device("cpu")


def _clip(*key: int | str, batch: int = 2, frames: int = 3, height: int = 36, width: int = 40) -> Tensor:
    """Clips of soft colours, (B, 3, T, H, W) within [-0.6, 0.6]."""
    rough = draws.normal((batch * frames, 3, 5, 7), "clip", *key).clamp(-2, 2) * 0.3
    fine = F.interpolate(rough, (height, width), mode="bilinear")
    return fine.reshape(batch, frames, 3, height, width).transpose(1, 2)


def _noisy(video: Tensor, level: float) -> Tensor:
    return video + level * draws.normal(video.shape, "noise")


# ---- LPIPS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty TORCH_HOME, without access to the internet."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    networks._lpips_metric.cache_clear()
    yield tmp_path
    networks._lpips_metric.cache_clear()


def _write_backbone(name: str, home: Path) -> dict[str, Tensor]:
    """Write random features under the name that torchvision looks for. The classifier is expanded zeros."""
    file = {"alexnet": "alexnet-owt-7be5be79.pth", "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth"}[name]
    with torch.device("meta"):
        shapes = getattr(torchvision.models, name)(weights=None).state_dict()
    state = {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
    for key, value in shapes.items():
        if key.startswith("features"):
            fan = math.prod(value.shape[1:]) or 1
            state[key] = draws.normal(value.shape, key) * (2 / fan) ** 0.5
    path = home / "hub" / "checkpoints" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


def test_lpips_is_0_for_the_same_and_grows_with_noise(home: Path) -> None:
    _write_backbone("squeezenet1_1", home)
    true = _clip()
    found = [lpips(_noisy(true, level), true, "squeeze") for level in (0, 0.02, 0.1, 0.4)]
    assert found[0].tolist() == [0, 0]
    for less, more in pairwise(found):
        assert bool((more > less * 1.5 + 1e-6).all())


def test_lpips_is_the_mean_over_the_frames_of_each(home: Path) -> None:
    """This holds for more frames than a batch, too."""
    _write_backbone("squeezenet1_1", home)
    true = _clip(frames=11)
    made = _noisy(true, 0.2)
    made[1] = true[1]
    found = lpips(made, true, "squeeze")
    alone = torch.cat([lpips(made[:1, :, k : k + 1], true[:1, :, k : k + 1], "squeeze") for k in range(11)])
    assert alone.std() > 0
    assert found.tolist() == pytest.approx([float(alone.mean()), 0], rel=1e-4)


def test_lpips_cuts_off_what_cannot_be_shown(home: Path) -> None:
    _write_backbone("squeezenet1_1", home)
    true = torch.ones(1, 3, 2, 20, 20)
    assert lpips(true + 3, true, "squeeze").tolist() == [0]


def test_lpips_is_its_formula(home: Path) -> None:
    """For AlexNet: unit length over channels at each pixel, weighted squared differences, sum over layers."""
    state = _write_backbone("alexnet", home)
    published = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    heads = torch.load(published, map_location="cpu", weights_only=True)
    layers = torchvision.models.alexnet(weights=None).features
    layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if "features" in k})
    true = _clip(frames=1)
    made = _noisy(true, 0.1)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected = torch.zeros(2)
    a, b = ((v[:, :, 0].clamp(-1, 1) - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for v in (made, true))
    with torch.no_grad():
        for k, layer in enumerate(layers[:12]):
            a, b = layer(a), layer(b)
            if k in (1, 4, 7, 9, 11):
                head = heads[f"lin{(1, 4, 7, 9, 11).index(k)}.model.1.weight"]
                difference = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square()
                expected += F.conv2d(difference, head).mean((1, 2, 3))
    assert lpips(made, true, "alex").tolist() == pytest.approx(expected.tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("net", "size", "least", "others"),
    [
        ("alex", (30, 64), 31, "vgg or squeeze or null"),
        ("squeeze", (64, 16), 17, "vgg or null"),
        ("vgg", (15, 15), 16, "null"),
    ],
)
def test_pictures_too_small_are_told_the_least_size(
    net: networks.Net, size: tuple[int, int], least: int, others: str
) -> None:
    video = torch.zeros(1, 3, 1, *size)
    with pytest.raises(ValueError, match=rf"lpips: {net} .* at least {least} pixels .*write {others}$"):
        lpips(video, video, net)


@pytest.mark.parametrize(
    ("net", "name", "least"), [("squeeze", "squeezenet1_1", 17), ("alex", "alexnet", 31)]
)
def test_pictures_of_the_least_size_are_taken(net: networks.Net, name: str, least: int, home: Path) -> None:
    _write_backbone(name, home)
    true = _clip(frames=1, height=least, width=least)
    assert bool((lpips(_noisy(true, 0.3), true, net) > 0).all())


@pytest.mark.parametrize(
    ("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("squeeze", "squeezenet1_1-b8a52dc0.pth")]
)
def test_missing_weights_name_the_file_its_place_and_the_way_out(
    net: networks.Net, file: str, home: Path
) -> None:
    video = torch.zeros(1, 3, 1, 32, 32)
    place = home / "hub" / "checkpoints" / file
    with pytest.raises(ValueError, match=rf"lpips: .*{net} .*\(no network\).*{file} at {place}, .*=null"):
        lpips(video, video, net)
    assert networks.lpips_weights("vgg")[1] == place.with_name("vgg16-397923af.pth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 and no more"])
def test_damaged_weights_are_told_in_the_same_way(content: bytes, home: Path) -> None:
    _, path = networks.lpips_weights("squeeze")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    video = torch.zeros(1, 3, 1, 32, 32)
    with pytest.raises(ValueError, match=r"lpips: the weights of squeeze cannot be loaded"):
        lpips(video, video, "squeeze")


def test_an_unknown_network_is_refused() -> None:
    video = torch.zeros(1, 3, 1, 32, 32)
    with pytest.raises(ValueError, match=r"lpips: resnet is not one of alex, vgg, squeeze"):
        lpips(video, video, "resnet")  # type: ignore[arg-type]


# ---- CLIP

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAME = "reelmill-test-clip"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration for open_clip, weights.pt, and a folder `local` with both."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "configs").mkdir()
    (folder / "configs" / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "configs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = open_clip.create_model(NAME)
    torch.save(net.state_dict(), folder / "weights.pt")
    (folder / "local").mkdir()
    (folder / "local" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}})
    )
    torch.save(net.state_dict(), folder / "local" / "open_clip_pytorch_model.bin")
    return folder


def _by_hand(weights: Path, videos: Tensor, prompts: list[str], places: list[int]) -> list[float]:
    """The similarity with explicit preprocessing: short side to 32 pixels, middle cropped, normalised."""
    net = open_clip.create_model(NAME)
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.eval()
    mean, std = np.array(open_clip.OPENAI_DATASET_MEAN), np.array(open_clip.OPENAI_DATASET_STD)
    found = []
    for video, prompt in zip(to_uint8(videos), prompts, strict=True):
        with torch.no_grad():
            text = net.encode_text(open_clip.SimpleTokenizer(context_length=16)([prompt]))[0].numpy()
        cosines = []
        for place in places:
            picture = Image.fromarray(video[place])
            scale = 32 / min(picture.size)
            w, h = int(picture.width * scale), int(picture.height * scale)
            left, top = round((w - 32) / 2), round((h - 32) / 2)
            picture = picture.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
            x = ((np.asarray(picture) / 255 - mean) / std).transpose(2, 0, 1)
            with torch.no_grad():
                image = net.encode_image(torch.tensor(x[None], dtype=torch.float32))[0].numpy()
            cosines.append(image @ text / np.linalg.norm(image) / np.linalg.norm(text))
        found.append(float(np.mean(cosines)))
    return found


PROMPTS = ["a red circle moving left", "Rain, at night.", ""]


def _videos(frames: int, height: int = 40, width: int = 64) -> Tensor:
    """Videos rounded to levels of 255, as on disk."""
    return from_uint8(to_uint8(1.5 * _clip("clip", batch=3, frames=frames, height=height, width=width)))


@pytest.mark.parametrize(
    ("frames", "places"),
    [(9, [1, 3, 5, 7]), (4, [0, 1, 2, 3]), (16, [2, 6, 10, 14]), (2, [0, 0, 1, 1]), (1, [0])],
)
def test_clip_similarity_is_the_mean_cosine_of_four_frames(
    tiny: Path, frames: int, places: list[int]
) -> None:
    videos = _videos(frames)
    expected = _by_hand(tiny / "weights.pt", videos, PROMPTS, places)
    found = ClipSimilarity(NAME, str(tiny / "weights.pt"), CPU)(videos, PROMPTS)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 1e-3  # values differ enough for the line above
    assert found.abs().max() <= 1


def test_many_videos_are_as_one_by_one(tiny: Path) -> None:
    similar = ClipSimilarity(NAME, str(tiny / "weights.pt"), CPU)
    videos = torch.cat([_videos(5)] * 3 + [_videos(5).flip(-1)])
    prompts = [f"{prompt} {k}" for k in range(4) for prompt in PROMPTS]
    alone = [float(similar(v[None], [p])[0]) for v, p in zip(videos, prompts, strict=True)]
    assert similar(videos, prompts).tolist() == pytest.approx(alone, abs=1e-5)


def test_a_prompt_longer_than_the_model_takes_is_read_from_its_beginning(tiny: Path) -> None:
    similar = ClipSimilarity(NAME, str(tiny / "weights.pt"), CPU)
    long = " ".join(["a red circle moving left"] * 20)
    assert torch.allclose(similar(_videos(4)[:1], [long]), similar(_videos(4)[:1], [long + " and back"]))


def test_a_local_folder_gives_the_same(tiny: Path) -> None:
    local = ClipSimilarity(f"local-dir:{tiny / 'local'}", None, CPU)
    named = ClipSimilarity(NAME, str(tiny / "weights.pt"), CPU)
    assert torch.equal(local(_videos(4), PROMPTS), named(_videos(4), PROMPTS))


@pytest.mark.parametrize(
    ("model", "pretrained", "told"),
    [
        ("ViT-X", "openai", r"clip\.model: ViT-X is not a model of open_clip"),
        ("hf-hub:a/b", None, r"clip\.model: .* `hf download NAME --local-dir FOLDER`"),
        ("local-dir:/nowhere", None, r"clip\.model: /nowhere has no open_clip_config"),
        ("ViT-B-32", "nothing", r"clip\.pretrained: nothing is not a file, .* its tags are: openai, "),
        ("ViT-B-32", None, r"clip\.pretrained: None is not a file, and not a tag"),
        (NAME, "/nowhere/weights.pt", r"clip\.pretrained: /nowhere/weights\.pt .* its tags are: none"),
    ],
)
def test_what_is_not_there_is_named_by_its_key(
    tiny: Path, model: str, pretrained: str | None, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        ClipSimilarity(model, pretrained, CPU)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 and no more"])
def test_damaged_files_are_named_by_their_key(tiny: Path, content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"clip\.pretrained: {tmp_path / name} cannot be used as"):
        ClipSimilarity(NAME, str(tmp_path / name), CPU)


@pytest.mark.parametrize("state", [{}, {"other": torch.zeros(1)}, torch.zeros(1)])
def test_files_of_something_else_are_named_by_their_key(tiny: Path, state: object, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"clip\.pretrained: .* or write clip=null"):
        ClipSimilarity(NAME, str(tmp_path / "weights.pt"), CPU)


@pytest.mark.parametrize("config", ["{", "{}", '{"model_cfg": {}}', '{"model_cfg": {"embed_dim": 8}}'])
def test_a_folder_without_what_it_takes_is_named_by_its_key(config: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(ValueError, match=r"clip\.model: .* cannot be used"):
        ClipSimilarity(f"local-dir:{tmp_path}", None, CPU)


def test_a_folder_without_weights_is_no_random_network(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny / "local" / "open_clip_config.json").read_bytes())
    with pytest.raises(ValueError, match=r"clip\.model: .* cannot be used"):
        ClipSimilarity(f"local-dir:{tmp_path}", None, CPU)


def test_a_tag_that_cannot_be_fetched_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(repo: str, name: str) -> str:
        asked.append(name)
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(ValueError, match=r"clip\.pretrained: openai.*no network.*HF_HOME.*clip=null"):
        ClipSimilarity("ViT-B-32", "openai", CPU)
    assert len(asked) == 1  # the other files would fail, too


def test_a_tag_is_the_first_file_that_the_hub_has_with_the_activation_it_was_trained_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer: Any = SimpleNamespace(headers={}, request=None)

    def fetched(repo: str, name: str) -> str:
        if name.endswith(".safetensors"):
            raise errors.RemoteEntryNotFoundError("not there", response=answer)
        return f"/cache/{repo}/{name}"

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    _, weights, options = networks._find_clip("ViT-B-32", "openai")
    assert weights == "/cache/timm/vit_base_patch32_clip_224.openai/open_clip_pytorch_model.bin"
    assert options["force_quick_gelu"] is True
    assert networks._find_clip("ViT-B-32", "laion2b_s34b_b79k")[2]["force_quick_gelu"] is False
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: f"/cached/{name}")
    assert networks._find_clip("ViT-B-32", "openai")[1] == "/cached/open_clip_model.safetensors"


# ---- features


class Levels(nn.Module):
    """An extractor of a user: mean colours, times a weight."""

    def __init__(self, weights: str | None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(weights or 1)))
        self.drop = nn.Dropout(0.5)

    def forward(self, videos: Tensor) -> Tensor:
        return self.drop(videos.mean((2, 3, 4))).to(torch.bfloat16) * self.scale


def flat(weights: str | None) -> object:
    return lambda videos: videos.flatten(1)


def wrong(weights: str | None) -> object:
    return {
        "videos": lambda videos: videos,
        "list": lambda videos: [1],
        "one": lambda videos: videos.flatten(1)[:1],
        "nothing": None,
    }[str(weights)]


def silent(weights: str | None) -> object:
    raise ValueError


HERE = "tests.generation.evaluate.test_networks"


def test_features_of_a_module_and_of_a_function() -> None:
    videos = torch.full((20, 3, 2, 4, 4), 0.5)
    found = open_features(f"{HERE}:Levels", "2", CPU)(videos)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert torch.equal(found, torch.ones(20, 3, dtype=torch.float64))
    videos = _clip(batch=20)
    assert torch.equal(open_features(f"{HERE}:flat", None, CPU)(videos), videos.flatten(1).double())


@pytest.mark.parametrize(
    ("name", "weights", "told"),
    [
        ("no.such:thing", None, "No module named 'no'"),
        ("inception", None, "No module named 'inception'"),
        ("", None, "Empty module name"),
        (f"{HERE}:Nothing", None, "no attribute 'Nothing'"),
        (f"{HERE}:Levels", "much", "could not convert"),
        (f"{HERE}:silent", None, "ValueError"),
        (f"{HERE}:test_features_of_a_module_and_of_a_function", None, "takes 0 positional"),
    ],
)
def test_extractors_that_cannot_be_had_name_the_key_and_the_remedy(
    name: str, weights: str | None, told: str
) -> None:
    with pytest.raises(ValueError, match=rf"extractor: {name} cannot be loaded \(.*{told}.*whose factory"):
        open_features(name, weights, CPU)


@pytest.mark.parametrize(
    ("weights", "told"),
    [("videos", r"\(2, 3, 3, 36, 40\)"), ("list", "list"), ("one", r"\(1, \d+\)"), ("nothing", "None")],
)
def test_extractors_that_give_something_else_are_told_so(weights: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"extractor: {HERE}:wrong returns {told}.* for 2 videos"):
        open_features(f"{HERE}:wrong", weights, CPU)(_clip())
