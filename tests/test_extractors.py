"""Extractors: their numbers against torch-fidelity, transformers and torchvision, and refusals.

No weights are downloaded: the networks are random ones, saved in the published ones' form.
"""

import hashlib
import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torch_fidelity.datasets import ImagesPathDataset, TransformPILtoRGBTensor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset
from torchvision import transforms as T
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from mmfusion.cli import main
from mmfusion.errors import UserError
from mmfusion.eval.clip import model
from mmfusion.eval.distances.frechet import frechet_distance
from mmfusion.eval.extractors import inception, make_extractor
from mmfusion.eval.extractors.dinov2 import _positions, prepared
from mmfusion.eval.features import extract
from mmfusion.eval.pictures import open_pictures

SIZES = [(8, 8), (32, 32), (64, 64), (256, 256), (299, 299), (300, 200)]


def noise(seed: int, width: int = 16, height: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


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
        Picture.fromarray(noise(number, width, height)).save(root / f"{number}.png")
    Picture.fromarray(noise(8, 32, 32)[:, :, 0]).save(root / "grey.png")
    opaque = np.concatenate([noise(9, 64, 64), np.full((64, 64, 1), 255, np.uint8)], 2)
    Picture.fromarray(opaque).save(root / "rgba.png")
    return root


def entering(network: Any) -> list[torch.Tensor]:
    """What enters the first convolution from now on, picture by picture."""
    seen: list[torch.Tensor] = []
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.extend(x[0].clone()))
    return seen


def test_inception_is_that_of_torch_fidelity(ours: Any, theirs: Any, folder: Path) -> None:
    pictures = open_pictures(str(folder))
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


def test_a_batch_changes_nothing(ours: Any) -> None:
    pictures = [noise(1), noise(2, 24, 10), noise(3)]
    together = ours(pictures)
    for number, picture in enumerate(pictures):
        alone = ours([picture])
        for name in ("features", "spatial", "logits"):
            np.testing.assert_allclose(together[name][number], alone[name][0], rtol=2e-4, atol=1e-4)


def test_bits_do_not_depend_on_the_number_of_cores(
    ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "batch", 2)
    np.savez(tmp_path / "s.npz", arr_0=np.stack([noise(n) for n in range(6)]))
    pictures, before, made = open_pictures(str(tmp_path / "s.npz")), torch.get_num_threads(), []
    try:
        for cores in (1, 3):
            torch.set_num_threads(cores)
            made.append(extract(pictures, ours, tmp_path / f"work{cores}"))
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    one, three = made
    for name in ("features", "spatial", "logits"):
        assert np.array_equal(getattr(one, name), getattr(three, name)), name
    alone = ours([noise(5)])["spatial"][0]
    np.testing.assert_allclose(one.spatial[5], alone, rtol=2e-4, atol=1e-4)


def test_the_weights_digest_is_that_of_the_file(ours: Any, weights: Path) -> None:
    assert ours.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert ours.name == ours.kind == "inception"


def test_the_command_with_inception_weights_and_a_reference_file(
    weights: Path, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FID against moments of torch-fidelity's features is the distance between those."""
    made, real = ([noise(first + n) for n in range(5)] for first in (0, 10))
    (tmp_path / "made").mkdir()
    for number, picture in enumerate(made):
        Picture.fromarray(picture).save(tmp_path / f"made/{number}.png")
    stacks = (torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) for some in (made, real))
    a, b = (theirs(stack)[0].double().numpy() for stack in stacks)
    np.savez(
        tmp_path / "ref.npz", arr_0=np.stack(real), mu=b.mean(0), sigma=np.cov(b, rowvar=False),
        mu_s=np.zeros(2023), sigma_s=np.eye(2023),
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main([
            "eval", "fid", str(tmp_path / "made"), str(tmp_path / "ref.npz"), "--metrics", "fid",
            "--features", f"inception:{weights}", "--work", str(tmp_path / "work"),
            "-o", str(tmp_path / "figures.json"),
        ])  # fmt: skip
    assert end.value.code == 0
    figure = json.loads((tmp_path / "figures.json").read_text())["fid"]
    assert figure["value"] == pytest.approx(frechet_distance(a, b), rel=1e-4)
    assert figure["extractor_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "moments" in capsys.readouterr().out


class Payload:
    """What a hostile checkpoint would hold."""

    ran = False

    def __setstate__(self, state: Any) -> None:
        Payload.ran = True

    def __reduce__(self) -> Any:
        return Payload, (), {"x": 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b"PK\x03\x04 cut", "cannot be read"),
        ({"fc.weight": Payload()}, "holds code"),
        ({"fc.weight": torch.zeros(2)}, "not torch-fidelity's Inception weights"),
        ({"fc.weight": [1, 2]}, "fc.weight is no tensor"),
        (OrderedDict(), "not torch-fidelity's Inception weights"),
    ],
)
def test_bad_weights_are_refused_and_never_run(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=told) as error:
        make_extractor(f"inception:{path}", "cpu")
    assert str(path) in str(error.value)
    assert not Payload.ran


def test_weights_that_are_not_finite_are_found(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["Mixed_7c.branch1x1.conv.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    extractor = make_extractor(f"inception:{tmp_path / 'nan.pth'}", "cpu")
    with pytest.raises(UserError, match="not finite"):
        extractor([noise(1)])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that stands for the published weights; torch's hub cache is empty."""
    content = b"weights"
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(inception, "URL", (tmp_path / name).as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / name


def test_published_weights_are_fetched_once(published: Path) -> None:
    path = inception._published()
    assert path == published.parent / "hub/checkpoints" / published.name
    assert path.read_bytes() == b"weights"
    published.unlink()
    assert inception._published() == path


def test_published_weights_that_cannot_be_had(published: Path) -> None:
    published.write_bytes(b"others")  # their hash is not that of the name
    with pytest.raises(UserError, match=r"cannot be had from file:.*give `inception:FILE`"):
        make_extractor("inception", "cpu")
    published.unlink()
    with pytest.raises(UserError, match=r"cannot be had from file:.*give `inception:FILE`"):
        make_extractor("inception", "cpu")


def test_damaged_weights_in_the_cache(published: Path) -> None:
    inception._published().write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged; delete it"):
        make_extractor("inception", "cpu")


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
    model = dinov2(tmp_path)
    extractor = make_extractor(f"dinov2:{tmp_path}", "cpu")
    pictures = [noise(1, 40, 60), noise(2, 300, 280)]
    found = extractor(pictures)["features"]
    expected = [
        model(prepared(Picture.fromarray(p))[None]).pooler_output[0].detach() for p in pictures
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
    picture = Picture.fromarray(noise(4, *size))
    expected = T.Compose([
        T.Resize((224, 224), T.InterpolationMode.BICUBIC),
        T.ToTensor(),
        T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])(picture)  # fmt: skip
    assert torch.equal(prepared(picture), expected)


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


def test_dinov2_takes_pictures_smaller_than_its_own(tmp_path: Path) -> None:
    dinov2(tmp_path, image_size=518)
    extractor: Any = make_extractor(f"dinov2:{tmp_path}", "cpu")
    assert extractor.network.embeddings.position_embeddings.shape == (1, 257, 16)
    assert extractor([noise(1)])["features"].shape == (1, 16)


def test_dinov2_refuses_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            make_extractor(f"dinov2:{spec}", "cpu")

    refuse("", "no such folder")
    refuse(str(tmp_path / "nowhere"), "no such folder")
    refuse(str(tmp_path), "no \\*.safetensors weights")
    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "vit")
    refuse(str(tmp_path / "vit"), "not a DINOv2 model .*a vit")
    dinov2(tmp_path / "odd", patch_size=16, image_size=32)
    dinov2(tmp_path / "patches", patch_size=15, image_size=30)
    refuse(str(tmp_path / "patches"), "patches of 15 pixels do not fill 224")
    short = dinov2(tmp_path / "short")
    state = short.state_dict()
    del state["layernorm.weight"]
    short.save_pretrained(tmp_path / "short", state_dict=state)
    refuse(str(tmp_path / "short"), "no layernorm.weight")
    (tmp_path / "odd/model.safetensors").write_bytes(b"cut")
    refuse(str(tmp_path / "odd"), "not a DINOv2 model")

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    refuse("facebook/dinov2-large", "the hub gave: no network")


# Modules, pixels, CLIP


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(-1)


def script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is going out of use
        torch.jit.script(module).save(str(path))
    return path


class Several(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean(-1).mean(-1), x


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pool": x.mean(-1).mean(-1)}


class OneRow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0)


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.zeros(7, 7)


class Saves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "stolen")
        return x


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    pictures = [noise(1, 6, 4), noise(2, 6, 4)]
    stacked = np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2)
    extractor = make_extractor(f"module:{script(Mean(), tmp_path / 'mean.pt')}", "cpu")
    expected = stacked.mean(-1).reshape(2, -1)  # rows of 6 pixels in 0..255
    np.testing.assert_allclose(extractor(pictures)["features"], expected, rtol=1e-6)
    for module in (Several(), Named()):
        extractor = make_extractor(f"module:{script(module, tmp_path / 'other.ts')}", "cpu")
        found = extractor(pictures)["features"]
        np.testing.assert_allclose(found, stacked.mean((2, 3)), rtol=1e-5)
    with pytest.raises(UserError, match="6 x 4 and 4 x 6 pixels; make them one size with --size"):
        extractor([noise(1, 4, 6)])


def test_modules_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, told: str) -> None:
        with pytest.raises(UserError, match=told):
            make_extractor(f"module:{path}", "cpu")([noise(1)])

    monkeypatch.chdir(tmp_path)
    refuse(tmp_path / "nowhere.pt", "no such file")
    torch.save(Payload(), tmp_path / "pickled.pt")
    refuse(tmp_path / "pickled.pt", "not a TorchScript.*pickled modules are never loaded")
    assert not Payload.ran
    torch.export.save(torch.export.export(Mean(), (torch.zeros(1, 3, 4, 4),)), "exported.pt2")
    refuse(tmp_path / "exported.pt2", "torch reads with pickle; save it with `torch.jit.trace")
    refuse(
        script(OneRow(), tmp_path / "row.pt"), r"gives \(3, 16, 16\); expected features \(1, d\)"
    )
    refuse(script(Fails(), tmp_path / "fails.pt"), r"fails on float32 pictures \(1, 3, 16, 16\)")
    refuse(script(Saves(), tmp_path / "saves.pt"), "asks for save, which is refused")
    assert not (tmp_path / "stolen").exists()


class Wakes(nn.Module):
    @torch.jit.export
    def __getstate__(self) -> bool:
        return self.training

    @torch.jit.export
    def __setstate__(self, state: bool) -> None:
        self.training = state
        torch.from_file("stolen", True, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_modules_program_is_looked_through_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading alone runs `__setstate__` and what arguments have by default."""

    def refuse(told: str) -> None:
        with pytest.raises(UserError, match=told):
            make_extractor("module:bad.pt", "cpu")
        assert not Path("stolen").exists()

    def edit(into: str, change: Callable[[str, bytes], tuple[str, bytes]]) -> None:
        with zipfile.ZipFile("good.pt") as given, zipfile.ZipFile(into, "w") as made:
            for name in given.namelist():
                made.writestr(*change(name, given.read(name)))

    monkeypatch.chdir(tmp_path)
    script(Wakes(), Path("bad.pt"))
    refuse("asks for __setstate__, which is refused")
    script(OneRow(), Path("good.pt"))
    default = b'x: Tensor=torch.from_file("stolen", True, 64)'
    edit("bad.pt", lambda n, d: (n, d.replace(b"x: Tensor", default) if n[-3:] == ".py" else d))
    refuse("asks for from_file, which is refused")
    edit("bad.pt", lambda n, d: (n, d.replace(b"__torch__", b"__torch__.torch.classes.a")))
    refuse("asks for torch.classes, which is refused")
    edit("bad.pt", lambda n, d: (n.replace("constants.pkl", "model.json"), d))  # an older form
    refuse("not a TorchScript .it has no program")
    edit("fine.pt", lambda n, d: (n, d))
    make_extractor("module:fine.pt", "cpu")


def test_pixels() -> None:
    extractor = make_extractor("pixels")
    pictures = [noise(1, 3, 2), np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)]
    found = extractor(pictures)["features"]
    assert found.shape == (3, 18)
    np.testing.assert_allclose(found[0], pictures[0].reshape(-1) / 127.5 - 1, atol=1e-6)
    assert (found[1] == -1).all()
    assert (found[2] == 1).all()
    assert (extractor.name, extractor.sha256) == ("pixels", "")
    with pytest.raises(UserError, match=r"pictures of 3 x 2 and 3 x 3 pixels.*--size"):
        extractor([noise(2, 3, 2), noise(1, 3, 3)])


def test_clip_embeddings_are_taken_before_they_are_normalised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clip:
        name, sha256, version, unsure = "ViT-B-32", "ab", "cd", "of unknown origin"

        def embed_pictures(self, pictures: list, normalised: bool = True) -> np.ndarray:
            assert not normalised
            return np.stack([np.asarray(p, np.float32).mean((0, 1)) for p in pictures])

    asked = []
    monkeypatch.setattr(model, "load_clip", lambda *given: asked.append(given) or Clip())
    extractor = make_extractor("clip:ViT-B-32:file.pt", "cpu")
    assert asked == [("ViT-B-32:file.pt", "cpu")]
    assert (extractor.name, extractor.kind, extractor.sha256) == ("clip:ViT-B-32", "clip", "ab")
    assert extractor.doubt == "of unknown origin"
    assert extractor.identity == ("clip:ViT-B-32", "ab", "cd", extractor.batch, "cpu")
    pictures = [noise(1), noise(2, 5, 5)]
    found = extractor(pictures)["features"]
    np.testing.assert_allclose(found, np.stack([p.mean((0, 1)) for p in pictures]), rtol=1e-5)
    with pytest.raises(UserError, match="name a model"):
        make_extractor("clip", "cpu")


@pytest.mark.parametrize("spec", ["", "vgg", "pixels:8", "Inception"])
def test_no_such_extractor(spec: str) -> None:
    with pytest.raises(UserError, match=f"features {spec}: no such extractor; choose from"):
        make_extractor(spec)
