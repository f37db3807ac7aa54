"""Extractors: their numbers against torch-fidelity, transformers and torchvision, and refusals.

No weights are downloaded: the networks are random ones, saved in the published ones' form.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torch_fidelity.datasets import ImagesPathDataset, TransformPILtoRGBTensor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from mmfusion.errors import UserError
from mmfusion.eval import clip
from mmfusion.eval.extractors import inception, make_extractor
from mmfusion.eval.extractors.dinov2 import _positions, prepared
from mmfusion.eval.features import extract
from mmfusion.eval.image_sets import open_images

SIZES = [(8, 8), (32, 32), (64, 64), (256, 256), (299, 299), (300, 200)]


def noise(seed: int, width: int = 16, height: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def refuse(spec: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        make_extractor(spec, "cpu")


# Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose activations neither vanish nor explode."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        network = fidelity.FeatureExtractorInceptionV3
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        made = network("random", ["2048"])
    torch.manual_seed(0)
    for part in made.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)  # type: ignore[arg-type]
    torch.save(made.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ours(weights: Path) -> Any:
    return make_extractor(f"inception:{weights}", "cpu")


@pytest.fixture(scope="module")
def theirs(weights: Path) -> Any:
    return create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        feature_extractor_weights_path=str(weights),
        verbose=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of all sizes, one grey, one with an alpha channel that hides nothing."""
    root = tmp_path_factory.mktemp("pictures")
    for number, (width, height) in enumerate(SIZES):
        PILImage.fromarray(noise(number, width, height)).save(root / f"{number}.png")
    PILImage.fromarray(noise(8, 32, 32)[:, :, 0]).save(root / "grey.png")
    opaque = np.concatenate([noise(9, 64, 64), np.full((64, 64, 1), 255, np.uint8)], 2)
    PILImage.fromarray(opaque).save(root / "rgba.png")
    return root


def entering(network: Any) -> list[torch.Tensor]:
    """What enters the first convolution from now on, picture by picture."""
    seen: list[torch.Tensor] = []
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.extend(x[0].clone()))
    return seen


def test_inception_is_that_of_torch_fidelity(
    ours: Any, theirs: Any, folder: Path, weights: Path
) -> None:
    assert ours.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert ours.name == ours.kind == "inception"
    assert "not the published" in ours.doubt
    pictures = open_images(str(folder))
    entered, expected_entered = entering(ours.network), entering(theirs)
    made = ours(list(pictures))
    files = [str(folder / name) for name in sorted(p.name for p in folder.iterdir())]
    read = ImagesPathDataset(files, TransformPILtoRGBTensor())
    expected = get_featuresdict_from_dataset(read, theirs, 1, False, True, False)
    assert len(entered) == len(expected_entered) == len(files) == 8
    # Ours went by sizes: 32 x 32 and 64 x 64 have two pictures each.
    order = [0, 1, 6, 2, 7, 3, 4, 5]
    assert all(torch.equal(entered[i], expected_entered[n]) for i, n in enumerate(order))
    for name, key in (("features", "2048"), ("logits", "logits_unbiased")):
        reference = expected[key].numpy()
        assert reference.std() > 1e-2  # or equality would say nothing
        np.testing.assert_allclose(made[name], reference, rtol=1e-4, atol=1e-5 * reference.std())
        assert made[name].dtype == np.float32
    assert made["features"].shape == (8, 2048)
    assert made["logits"].shape == (8, 1008)


def test_spatial_features_are_the_first_channels_of_tensorflows_mixed_6_conv(
    ours: Any, theirs: Any
) -> None:
    blocks = [name for name, _ in theirs.named_children() if name.startswith("Mixed")]
    assert blocks[6] == "Mixed_6d"  # mixed, mixed_1, ... mixed_6
    kept = {}
    theirs.Mixed_6c.register_forward_hook(lambda _, x, y: kept.update(before=y))
    picture = noise(3, 40, 40)
    theirs(torch.from_numpy(picture).permute(2, 0, 1)[None])
    block = theirs.Mixed_6d.branch1x1
    expected = torch.relu(block.bn(block.conv(kept["before"])))[0]  # (192, 17, 17)
    found = ours([picture])["spatial"]
    assert found.shape == (1, 2023)
    cells = found.reshape(17, 17, 7)
    np.testing.assert_allclose(cells, expected[:7].permute(1, 2, 0).numpy(), rtol=1e-4, atol=1e-5)
    assert cells.std() > 1e-2


def test_bits_do_not_depend_on_the_number_of_cores_nor_much_on_the_batch(
    ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "batch", 2)
    np.savez(tmp_path / "s.npz", arr_0=np.stack([noise(n) for n in range(6)]))
    pictures, before, made = open_images(str(tmp_path / "s.npz")), torch.get_num_threads(), []
    try:
        for cores in (1, 3):
            torch.set_num_threads(cores)
            made.append(extract(pictures, ours, tmp_path / f"work{cores}"))
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    alone = ours([noise(5)])
    for name in ours.gives:
        assert np.array_equal(made[0][name], made[1][name]), name
        np.testing.assert_allclose(made[0][name][5], alone[name][0], rtol=2e-4, atol=1e-4)


class Payload:
    """What a hostile checkpoint would hold."""

    ran = False

    def __setstate__(self, state: Any) -> None:
        Payload.ran = True

    def __reduce__(self) -> Any:
        return Payload, (), {"x": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"PK\x03\x04 cut", "cannot be read"),
        ({"fc.weight": Payload()}, "Payload"),
        ({"fc.weight": torch.zeros(2)}, "not torch-fidelity's"),
        ({"fc.weight": "text"}, "not torch-fidelity's"),
    ],
)
def test_bad_weights_are_refused_and_never_run(tmp_path: Path, content: Any, why: str) -> None:
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    refuse(f"inception:{path}", rf"{path}.*{why}")
    assert not Payload.ran


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that stands for the published weights; torch's hub cache is empty."""
    content = b"weights"
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(inception, "URL", (tmp_path / name).as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / name


def test_published_weights_are_fetched_once_and_checked(published: Path) -> None:
    path = inception._published()
    assert path == published.parent / "hub/checkpoints" / published.name
    assert path.read_bytes() == b"weights"
    published.unlink()
    assert inception._published() == path
    path.write_bytes(b"cut")
    refuse("inception", f"{path} is damaged; delete it")


def test_published_weights_that_cannot_be_had(published: Path) -> None:
    published.write_bytes(b"others")  # their hash is not that of the name
    refuse("inception", r"cannot be had from file:.*give `inception:FILE`")
    published.unlink()
    refuse("inception", r"cannot be had from file:.*give `inception:FILE`")


# DINOv2


def dinov2(folder: Path, **changes: Any) -> Dinov2Model:
    torch.manual_seed(0)
    given = {"image_size": 224, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 2}
    model = Dinov2Model(Dinov2Config(**{**given, "num_attention_heads": 2, **changes})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def test_dinov2_gives_the_class_token_after_the_norm(tmp_path: Path) -> None:
    dinov2(tmp_path / "larger", image_size=518)
    larger = make_extractor(f"dinov2:{tmp_path}/larger", "cpu")
    assert larger([noise(1)])["features"].shape == (1, 16)
    model = dinov2(tmp_path)
    extractor = make_extractor(f"dinov2:{tmp_path}", "cpu")
    pictures = [noise(1, 40, 60), noise(2, 300, 280)]
    found = extractor(pictures)["features"]
    expected = [
        model(prepared(PILImage.fromarray(p))[None]).pooler_output[0].detach() for p in pictures
    ]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert (extractor.name, extractor.sha256) == ("dinov2", digest)


def test_another_config_of_dinov2_is_another_extractor(tmp_path: Path) -> None:
    """Heads and epsilons are in no tensor: the weights' digest stays."""
    dinov2(tmp_path)
    spec = f"dinov2:{tmp_path}"
    first, again = make_extractor(spec, "cpu"), make_extractor(spec, "cpu")
    assert first.identity == again.identity
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"num_attention_heads": 4}, {"layer_norm_eps": 1e-2}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        other = make_extractor(spec, "cpu")
        assert other.sha256 == first.sha256
        assert other.identity != first.identity
        assert not np.array_equal(other([noise(1)])["features"], first([noise(1)])["features"])


@pytest.mark.parametrize("size", [(8, 8), (224, 224), (300, 200), (512, 512)])
def test_dinov2_prepares_as_dgm_eval_does(size: tuple[int, int]) -> None:
    """Squeezed by PIL to 8 bits: ToTensor and Normalize by hand."""
    picture = PILImage.fromarray(noise(4, *size))
    small = np.asarray(picture.resize((224, 224), PILImage.Resampling.BICUBIC), np.float64) / 255
    expected = (small - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(prepared(picture), expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_dinov2_positions_are_interpolated_as_in_metas_code() -> None:
    """On a ramp, cell i of 16 lies at (i + 1/2) 37 / 16.1 - 1/2, and not at ... / 16."""
    ramp = torch.arange(37.0)[None, :, None].expand(37, 37, 1).reshape(1, -1, 1)
    places = torch.cat([torch.full((1, 1, 1), -5.0), ramp], 1)
    found = _positions(places, 16)
    assert found.shape == (1, 257, 1)
    assert found[0, 0, 0] == -5
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    inner = slice(1, 15)  # away from the border; torch's bicubic kernel bends lines by 0.05
    found = found[0, 1:, 0].reshape(16, 16)
    torch.testing.assert_close(found[3, inner], expected[inner], rtol=0, atol=0.06)
    assert (found[3] - (torch.arange(16) + 0.5) * 37 / 16 + 0.5)[inner].abs().max() > 0.15
    assert _positions(places, 37) is places


def test_dinov2_refuses_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTModel(ViTConfig(intermediate_size=8, **sizes)).save_pretrained("vit")
    dinov2(Path("patches"), patch_size=15, image_size=30)
    short = dinov2(Path("short"))
    tensors = {k: v for k, v in short.state_dict().items() if k != "layernorm.weight"}
    short.save_pretrained("short", state_dict=tensors)
    dinov2(Path("cut"))
    Path("cut/model.safetensors").write_bytes(b"cut")
    Path("empty").mkdir()
    for source, why in {
        "": "no such folder",
        "nowhere": "no such folder",
        "empty": "",
        "vit": "a vit",
        "patches": "15 pixels do not fill 224",
        "short": "no layernorm.weight",
        "cut": "",
        "facebook/dinov2-large": "no network",
    }.items():
        refuse(f"dinov2:{source}", f"dinov2:{source}: not .*facebook/dinov2-large.*{why}")


# Pixels, CLIP


def test_pixels() -> None:
    extractor = make_extractor("pixels")
    pictures = [noise(1, 3, 2), np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)]
    found = extractor(pictures)["features"]
    assert found.shape == (3, 18)
    np.testing.assert_allclose(found[0], pictures[0].reshape(-1) / 127.5 - 1, atol=1e-6)
    assert (found[1] == -1).all()
    assert (found[2] == 1).all()
    assert (extractor.name, extractor.sha256) == ("pixels", "")


def test_clip_embeddings_are_taken_before_they_are_normalised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clip:
        name, sha256, version, unsure = "ViT-B-32", "ab", "cd", "of unknown origin"

        def embed_images(self, pictures: list, normalised: bool = True) -> np.ndarray:
            assert not normalised
            return np.stack([np.asarray(p, np.float32).mean((0, 1)) for p in pictures])

    asked = []
    monkeypatch.setattr(clip, "Clip", lambda *given: asked.append(given) or Clip())
    extractor = make_extractor("clip:ViT-B-32:file.pt", "cpu")
    assert asked == [("ViT-B-32:file.pt", "cpu")]
    assert (extractor.name, extractor.kind, extractor.sha256) == ("clip:ViT-B-32", "clip", "ab")
    assert extractor.doubt == "of unknown origin"
    assert extractor.identity == ("clip:ViT-B-32", "ab", "cd", extractor.batch, "cpu")
    pictures = [noise(1), noise(2, 5, 5)]
    found = extractor(pictures)["features"]
    np.testing.assert_allclose(found, np.stack([p.mean((0, 1)) for p in pictures]), rtol=1e-5)
    monkeypatch.undo()
    refuse("clip", "expected MODEL:WEIGHTS")


@pytest.mark.parametrize("spec", ["", "vgg", "pixels:8", "Inception"])
def test_no_such_extractor(spec: str) -> None:
    refuse(spec, f"features {spec}: no such extractor; choose from")
