"""`aesthetics`: published heads on published embeddings, and the whole computation with a tiny encoder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from filters import aesthetics
from filters.aesthetics import Aesthetics, affine, load_head
from filters.base import ClipInfo, Frames, MissingModel, measure_key
from tests.filters.tiny import WIDTH, write_encoder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shared(path: str) -> Path:
    """A file of the shared data beside the repository. Skips the test if the file is absent."""
    found = Path(__file__).parents[2].parent / "shared" / "data" / path
    if not found.exists():
        pytest.skip(f"no shared data: {path}")
    return found


# Published scores of the ratings 0..9, from the same source as the embeddings.
LINEAR_L14 = [-2.4579, -0.1379, 1.8951, 3.5849, 5.0997, 6.4701, 7.7870, 9.0480, 10.2264, 11.3044]
LINEAR_B32 = [-1.4700, 0.2728, 1.9900, 3.6114, 5.0874, 6.3926, 7.6682, 8.9155, 9.9166, 11.0056]
MLP_L14 = [1.6555, 2.3593, 3.0698, 3.6725, 4.2380, 4.7010, 5.0731, 5.3654, 5.5767, 5.7468]


@pytest.mark.parametrize(
    ("file", "kind", "expected"),
    [
        ("sa_0_4_vit_l_14_linear.pth", "l14", LINEAR_L14),
        ("sa_0_4_vit_b_32_linear.pth", "b32", LINEAR_B32),
        ("sac+logos+ava1-l14-linearMSE.pth", "l14", MLP_L14),
    ],
)
def test_published_heads_give_published_scores(file, kind, expected):
    head = load_head(str(shared(f"aesthetic/{file}")))
    folder = shared("aesthetic/rating_embeddings")
    x = np.concatenate([np.load(folder / f"{kind}_rating{k}.npy") for k in range(10)])
    np.testing.assert_allclose(x @ head.weight + head.bias, expected, atol=1e-3)


def mlp_state(prefix: str, indices: tuple[int, ...], sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = {}
    for i, inputs, outputs in zip(indices, sizes[:-1], sizes[1:], strict=True):
        state[f"{prefix}.{i}.weight"] = (
            rng.standard_normal((outputs, inputs)).astype(np.float32) / inputs**0.5
        )
        state[f"{prefix}.{i}.bias"] = rng.standard_normal(outputs).astype(np.float32)
    return state


@pytest.mark.parametrize(
    ("prefix", "indices", "width"),
    [("layers", (0, 2, 4, 6, 7), 768), ("scoring_head", (0, 2, 4, 6, 8), 1152)],
)
def test_the_affine_map_of_a_head_equals_its_layers_in_sequence(prefix, indices, width):
    state = mlp_state(prefix, indices, (width, 1024, 128, 64, 16, 1))
    x = np.random.default_rng(1).standard_normal((5, width))
    y = x
    for i in indices:
        y = y @ state[f"{prefix}.{i}.weight"].T + state[f"{prefix}.{i}.bias"]
    head = affine(state)
    np.testing.assert_allclose(x @ head.weight + head.bias, y[:, 0], rtol=1e-6)


def test_head_with_layers_in_other_places_is_refused():
    # A head with activations has other layer numbers. Its scores would be wrong without the activations.
    with pytest.raises(ValueError, match=r"filters\.aesthetics\.head"):
        affine(mlp_state("layers", (0, 3, 6, 9, 11), (768, 1024, 128, 64, 16, 1)))


# From frames to scores with a small encoder of random weights.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    """The arguments of `Aesthetics` that name the encoder and the head on disk."""
    return write_encoder(tmp_path_factory.mktemp("tiny"))


def clip(images: list[np.ndarray]) -> Frames:
    h, w = images[0].shape[:2] if images else (9, 16)
    return Frames(ClipInfo(4.0, 100, 25.0, w, h), images=images)


def pictures(n: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """`n` smooth random (H, W, 3) pictures, which resizing changes little."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)) for _ in range(n)]
    return [np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in coarse]


def by_hand(tiny: dict[str, str], images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and unit embeddings (N, D) by explicit preprocessing: resize, crop, normalise."""
    net = open_clip.create_model(tiny["model"])
    net.load_state_dict(torch.load(tiny["pretrained"], weights_only=True))
    mean, std = np.array(open_clip.OPENAI_DATASET_MEAN), np.array(open_clip.OPENAI_DATASET_STD)
    x = []
    for image in images:
        pil = Image.fromarray(image)
        scale = 32 / min(pil.size)
        w, h = int(pil.width * scale), int(pil.height * scale)
        pil = pil.resize((w, h), Image.Resampling.BICUBIC)
        left, top = round((w - 32) / 2), round((h - 32) / 2)
        pil = pil.crop((left, top, left + 32, top + 32))
        x.append(((np.asarray(pil) / 255 - mean) / std).transpose(2, 0, 1))
    with torch.no_grad():
        e = net.eval().encode_image(torch.tensor(np.stack(x), dtype=torch.float32)).numpy()
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    head = torch.load(tiny["head"], weights_only=True)
    return e @ head["weight"].numpy()[0] + head["bias"].numpy()[0], e


def test_scores_equal_the_explicit_computation(tiny):
    images = pictures(4, (96, 54))
    scores, e = by_hand(tiny, images)
    (got,) = Aesthetics(**tiny)([clip(images)])
    assert got.values["aesthetics.mean"] == pytest.approx(scores.mean(), abs=1e-4)
    assert got.values["aesthetics.min"] == pytest.approx(scores.min(), abs=1e-4)
    assert got.values["aesthetics.min"] <= got.values["aesthetics.mean"]
    assert scores.min() < scores.mean() - 1e-3  # otherwise the previous line proves nothing
    assert got.embedding.dtype == np.float16
    mean = e.mean(axis=0)
    np.testing.assert_allclose(got.embedding, mean / np.linalg.norm(mean), atol=1e-3)
    assert np.linalg.norm(got.embedding.astype(np.float64)) == pytest.approx(1, abs=1e-3)


def test_a_batch_of_clips_scores_as_single_clips_do(tiny):
    clips = [clip(pictures(n, size, seed=n)) for n, size in [(4, (96, 54)), (1, (40, 80)), (2, (64, 64))]]
    clips.insert(1, clip([]))
    scorer = Aesthetics(**tiny, batch_size=3)  # batches do not end where clips end
    together, alone = scorer(clips), [scorer([c])[0] for c in clips]
    for a, b in zip(together, alone, strict=True):
        assert a.values == pytest.approx(b.values, abs=1e-5)
        if a.embedding is not None:
            np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-3)
    assert together[1].values == {"aesthetics.mean": None, "aesthetics.min": None}
    assert together[1].embedding is None


def test_local_folder_gives_the_same_scores(tiny):
    images = pictures(2, (96, 54))
    local = Path(tiny["pretrained"]).parent / "local"
    scorer = Aesthetics(model=f"local-dir:{local}", head=tiny["head"])
    scorer.check()
    assert scorer([clip(images)])[0].values == pytest.approx(Aesthetics(**tiny)([clip(images)])[0].values)


def test_check_accepts_existing_files_and_builds_no_model(tiny, monkeypatch):
    monkeypatch.setattr(aesthetics, "load_encoder", None)
    Aesthetics(**tiny).check()


def test_check_names_both_keys_when_the_widths_differ(tiny, tmp_path):
    torch.save(torch.nn.Linear(WIDTH + 1, 1).state_dict(), tmp_path / "wide.pth")
    scorer = Aesthetics(**{**tiny, "head": str(tmp_path / "wide.pth")})
    with pytest.raises(ValueError, match=r"filters\.aesthetics\.model.*24.*filters\.aesthetics\.head.*25"):
        scorer.check()
    with pytest.raises(ValueError, match=r"filters\.aesthetics\.head"):
        scorer([clip(pictures(1, (64, 64)))])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"pretrained": "/nowhere/weights.pt"}, "filters.aesthetics.pretrained"),
        ({"head": "/nowhere/head.pth"}, "filters.aesthetics.head"),
        ({"model": "local-dir:/nowhere"}, "filters.aesthetics.model"),
    ],
)
def test_errors_for_missing_files_name_the_setting(tiny, change, key):
    with pytest.raises(MissingModel, match=key.replace(".", r"\.")):
        Aesthetics(**{**tiny, **change}).check()


def test_unknown_model_is_a_wrong_value(tiny):
    with pytest.raises(ValueError, match=r"filters\.aesthetics\.model = 'ViT-X'"):
        Aesthetics(**{**tiny, "model": "ViT-X"}).check()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": "ViT-L-14", "pretrained": "openai"}, "filters.aesthetics.pretrained"),
        ({"model": "hf-hub:nobody/nothing"}, "filters.aesthetics.model"),
        ({"head": "laion-linear-l14"}, "filters.aesthetics.head"),
    ],
)
def test_without_a_network_check_fails_quickly_and_names_a_remedy(tiny, change, key, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    start = time.monotonic()
    with pytest.raises(
        MissingModel, match=key.replace(".", r"\.") + r".*no network.*filters\.aesthetics: null"
    ):
        Aesthetics(**{**tiny, **change}).check()
    assert time.monotonic() - start < 10


def test_a_named_head_is_downloaded_once_and_verified(tmp_path, monkeypatch):
    source = shared("aesthetic/sa_0_4_vit_b_32_linear.pth")
    name = "laion-linear-b32"
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    copy = tmp_path / source.name
    shutil.copy(source, copy)
    monkeypatch.setitem(aesthetics.HEADS, name, (copy.as_uri(), aesthetics.HEADS[name][1]))
    path = aesthetics.find_head(name)
    assert path.read_bytes() == source.read_bytes()
    copy.unlink()
    assert aesthetics.find_head(name) == path
    path.write_bytes(b"something else")
    copy.write_bytes(b"something else")
    with pytest.raises(MissingModel, match="not the expected file"):
        aesthetics.find_head(name)


def test_openai_weights_are_used_with_quickgelu(monkeypatch):
    monkeypatch.setattr(aesthetics, "hub_file", lambda *a: "weights.safetensors")
    encoder = aesthetics.find_encoder("ViT-L-14", "openai")
    assert encoder.options["force_quick_gelu"] is True
    assert encoder.width == 768
    assert aesthetics.find_encoder("ViT-L-14", "laion2b_s32b_b82k").options["force_quick_gelu"] is False


def test_the_key_depends_only_on_settings_that_change_the_numbers():
    key = measure_key(Aesthetics())
    assert measure_key(Aesthetics(device="cuda", batch_size=1)) == key
    assert measure_key(Aesthetics(head="laion-linear-l14")) != key
