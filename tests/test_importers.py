"""Official checkpoints as exported models, and what is refused of them."""

import argparse
import codecs
import datetime
import functools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from material import make_vae
from torch import Tensor

from benchmarks.parity.cases import Case
from benchmarks.parity.cases import weights as weights_of
from mmfusion import Pipeline, UserError
from mmfusion.config import ModelConfig
from mmfusion.export import read
from mmfusion.importers.causalfusion import Options, import_causalfusion
from mmfusion.importers.checkpoint import read as read_checkpoint

SMALL = Case("small", 32, 2, 4, 4, label_tokens=4, classes=10)
LARGE = Case("large", 48, 3, 2, 8, label_tokens=16, classes=20)
ODD = Case("odd", 44, 1, 11, 3, label_tokens=7, classes=13, patch=2, channels=3, mlp_ratio=2.45)
WIDE = replace(SMALL, patch=2)


def write(path: Path, held: Any, **options: Any) -> Path:
    torch.save(held, path, **options)
    return path


def official(weights: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """A checkpoint with what else a training run saves; "model" is another model's weights."""
    arguments = argparse.Namespace(lr=8e-4, num_classes=None, model="CausalFusion-XL")
    other = {name: tensor + 1 for name, tensor in weights.items()}
    return {
        "model": other,
        "ema": weights,
        "opt": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "train_steps": 12,
        "args": arguments,
        **more,
    }


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., tuple[ModelConfig, dict[str, Tensor]]]:
    """Save a checkpoint, import it, and read what the exported folder holds."""

    def call(held: Any, **options: Any) -> tuple[ModelConfig, dict[str, Tensor]]:
        path = write(tmp_path / "official.pt", held)
        import_causalfusion(path, tmp_path / "out", Options(**options))
        config, decoder, tokenizer = read(tmp_path / "out")
        assert tokenizer is None
        return config, decoder.state_dict()

    return call


def refused(path: Path, folder: Path, *named: str, **options: Any) -> None:
    """The import fails with a line that names all this, and leaves nothing behind."""
    with pytest.raises(UserError) as error:
        import_causalfusion(path, folder / "out", Options(**options))
    for name in named:
        assert name in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("case", "options", "patch", "channels"),
    [
        (SMALL, {}, 1, 16),
        (LARGE, {}, 1, 16),
        (ODD, {"patch": 2}, 2, 3),
        (ODD, {"channels": 3}, 2, 3),
        (ODD, {"channels": 12}, 1, 12),
        (WIDE, {}, 2, 16),
        (WIDE, {"channels": 4}, 4, 4),
    ],
)
def test_sizes_are_read_off_the_tensors(
    bring: Callable, case: Case, options: dict, patch: int, channels: int
) -> None:
    config, weights = bring(official(weights_of(case)), **options)
    d, image = config.decoder, config.image
    assert (d.width, d.depth, d.heads) == (case.width, case.depth, case.heads)
    assert (d.label_tokens, len(config.classes)) == (case.label_tokens, case.classes)
    assert int(d.width * d.mlp_ratio) == int(case.width * case.mlp_ratio)
    assert (d.norm, d.mlp, d.position, d.time_term) == ("layer", "gelu", "learned", False)
    assert (image.patch, image.latent_channels, image.grid) == (patch, channels, (case.side,) * 2)
    assert config.row_length == case.label_tokens + 2 * case.side**2  # room to train, too
    assert image.size == case.side * patch * 16
    assert image.latent_scale == (0.2325 if channels == 16 else None)  # else the autoencoder's own
    assert (image.codec, image.vae) == ("vae", "data/vae/mar-kl16")
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_every_weight_finds_its_place(bring: Callable) -> None:
    given = weights_of(ODD)
    _, ours = bring(official(given), patch=2)
    assert sum(w.numel() for w in ours.values()) == sum(w.numel() for w in given.values())
    table = given["y_embedder.embedding_table.weight"]
    for label in range(ODD.classes + 1):
        for token in range(ODD.label_tokens):
            row = ours["label.weight"][label * ODD.label_tokens + token]
            assert torch.equal(row, table[label, token * ODD.width : (token + 1) * ODD.width])
    pairs = {
        "grid_position.weight": given["pos_embed"][0],
        "label_position.weight": given["cond_pos_embed"][0],
        "latent_in.bias": given["x_proj.bias"],
        "timestep.2.weight": given["t_embedder.mlp.2.weight"],
        "norm.weight": given["final_layer.0.weight"],
        "latent_out.weight": given["final_layer.1.weight"],
        "blocks.0.norm2.bias": given["blocks.0.norm2.bias"],
        "blocks.0.attention.qkv.weight": given["blocks.0.attn.qkv.weight"],
        "blocks.0.attention.q_norm.weight": given["blocks.0.attn.q_norm.weight"],
        "blocks.0.attention.k_norm.weight": given["blocks.0.attn.k_norm.weight"],
        "blocks.0.attention.out.weight": given["blocks.0.attn.proj.weight"],
        "blocks.0.mlp.up.bias": given["blocks.0.mlp.fc1.bias"],
        "blocks.0.mlp.down.bias": given["blocks.0.mlp.fc2.bias"],
    }
    for name, tensor in pairs.items():
        assert torch.equal(ours[name], tensor), name


def test_ema_is_preferred_and_a_choice_is_kept(bring: Callable, tmp_path: Path) -> None:
    given = weights_of(SMALL)
    held, bias = official(given), given["x_proj.bias"]

    def found(held: Any, **options: Any) -> Tensor:
        return bring(held, **options)[1]["latent_in.bias"]

    assert torch.equal(found(held), bias)
    assert torch.equal(found(held, weights="ema"), bias)
    assert torch.equal(found(held, weights="model"), bias + 1)
    del held["ema"]
    assert torch.equal(found(held), bias + 1)
    assert torch.equal(found(given), bias)  # a bare state dict
    half = found({f"module.{name}": tensor.bfloat16() for name, tensor in given.items()})
    assert torch.equal(half, bias.bfloat16().float())
    path = write(tmp_path / "a.pt", held)
    refused(path, tmp_path / "new", "'ema'", "'model'", "--weights", weights="ema")
    bare = write(tmp_path / "b.pt", given)
    refused(bare, tmp_path / "new", "'model'", "--weights", weights="model")


def test_no_null_class_means_no_guidance(bring: Callable) -> None:
    """Trained without class dropout: as many rows as classes, which the arguments tell."""
    given = weights_of(SMALL)
    config, _ = bring(official(given, args=argparse.Namespace(num_classes=SMALL.classes)))
    assert (len(config.classes), config.diffusion.dropout) == (SMALL.classes, 0.1)
    assert config.generation.class_to_image.guidance > 1
    config, ours = bring(official(given, args=argparse.Namespace(num_classes=SMALL.classes + 1)))
    assert (len(config.classes), config.diffusion.dropout) == (SMALL.classes + 1, 0.0)
    assert config.generation.class_to_image.guidance == 1
    table = ours["label.weight"]
    assert len(table) == (SMALL.classes + 2) * SMALL.label_tokens
    assert not table[-SMALL.label_tokens :].any()


def test_class_names(bring: Callable, tmp_path: Path) -> None:
    held = official(weights_of(SMALL))
    assert bring(held)[0].classes == [str(n) for n in range(SMALL.classes)]
    names = [f"bird {n}" for n in range(SMALL.classes)]
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(names))
    assert bring(held, classes=file)[0].classes == names
    file.write_text(json.dumps(names[:-2]))
    path = write(tmp_path / "c.pt", held)
    with pytest.raises(UserError, match=r"11 rows.*classes\.json has 8"):
        import_causalfusion(path, tmp_path / "new", Options(classes=file))
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        import_causalfusion(path, tmp_path / "new", Options(classes=tmp_path / "none.json"))
    held["args"] = argparse.Namespace(num_classes=99)
    path = write(tmp_path / "d.pt", held)
    with pytest.raises(UserError, match=r"11 rows.*arguments say 99"):
        import_causalfusion(path, tmp_path / "new")


# What is refused


@pytest.mark.parametrize("name", sorted(weights_of(ODD)))
def test_each_missing_or_misshapen_tensor_is_named(tmp_path: Path, name: str) -> None:
    weights = weights_of(ODD)
    tensor = weights.pop(name)
    refused(write(tmp_path / "a.pt", weights), tmp_path, f"{name} is missing", patch=2)
    weights[name] = tensor[None]
    refused(write(tmp_path / "b.pt", weights), tmp_path, f" {name} ", "expected (", patch=2)
    assert tensor.ndim
    if name not in ("cond_pos_embed", "y_embedder.embedding_table.weight"):
        return
    weights[name] = tensor[..., :-1]
    refused(write(tmp_path / "c.pt", weights), tmp_path, f" {name} ", "expected (", patch=2)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_shapes_that_do_not_fit_each_other(tmp_path: Path) -> None:
    def case(name: str, change: Callable[[Tensor], Any], *named: str) -> None:
        weights = weights_of(SMALL)
        weights[name] = change(weights[name])
        refused(write(tmp_path / "a.pt", weights), tmp_path, *named)

    case("blocks.1.mlp.fc2.weight", lambda t: t.T, "blocks.1.mlp.fc2.weight", "(32, 128)")
    case("blocks.1.attn.k_norm.bias", lambda t: t[1:], "blocks.1.attn.k_norm.bias", "(8,)")
    case("pos_embed", lambda t: t[:, 1:], "pos_embed has 15 tokens", "square")
    case("pos_embed", lambda t: t[..., 1:], "pos_embed", "(1, 16, 32)")
    case("blocks.0.attn.q_norm.weight", lambda t: t[:5], "do not divide", "32")
    case("x_proj.weight", lambda t: t.to_sparse(), "x_proj.weight", "dense")
    case("x_proj.bias", lambda t: t.int(), "x_proj.bias", "real")
    case("x_proj.bias", lambda t: "no tensor", "x_proj.bias")
    case("x_proj.bias", lambda t: t / 0, "x_proj.bias", "finite")
    case("y_embedder.embedding_table.weight", lambda t: t[:1], "1 rows")


def test_a_tensor_too_many(tmp_path: Path) -> None:
    weights = weights_of(SMALL)
    weights["blocks.0.adaLN.weight"] = torch.zeros(3)
    refused(write(tmp_path / "a.pt", weights), tmp_path, "blocks.0.adaLN.weight")
    weights = weights_of(SMALL)
    weights |= {n.replace("s.1.", "s.999999999."): t for n, t in weights.items() if "s.1." in n}
    refused(write(tmp_path / "b.pt", weights), tmp_path, "blocks.2.norm1.weight is missing")


@pytest.mark.parametrize(
    "options", [{}, {"patch": 3}, {"channels": 5}, {"patch": 2, "channels": 4}, {"channels": 6}]
)
def test_an_open_patch_names_the_flags(tmp_path: Path, options: dict) -> None:
    path = write(tmp_path / "a.pt", weights_of(ODD))
    refused(path, tmp_path, "12 numbers", "--patch", "--channels", **options)


@pytest.mark.parametrize("held", [{}, {"ema": {}}, {"ema": 3}, {"model": [1]}, {"weight": 1}, [1]])
def test_what_is_no_checkpoint_of_this_kind(tmp_path: Path, held: Any) -> None:
    refused(write(tmp_path / "a.pt", held), tmp_path, "a.pt")


def test_damaged_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.pt", official(weights_of(SMALL))).read_bytes()
    cut = tmp_path / "cut.pt"
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        cut.write_bytes(whole[:size])
        refused(cut, tmp_path, "cut.pt")
    cut.write_text("no checkpoint at all\n" * 100)
    refused(cut, tmp_path, "cut.pt")
    cut.write_text("hello")  # torch says 101
    refused(cut, tmp_path, "never run (KeyError)")
    refused(tmp_path / "none.pt", tmp_path, "none.pt: no such file")
    refused(tmp_path, tmp_path, "is a folder; give the file in it")


class Spelled:
    """A call that a pickle asks for."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> tuple:
        return self.function, self.given


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", ["args", "ema"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, zipped: bool, hidden: str) -> None:
    canary = tmp_path / "canary"
    held = official(weights_of(SMALL), **{hidden: Spelled(os.mkdir, str(canary))})
    path = write(tmp_path / "a.pt", held, _use_new_zipfile_serialization=zipped)
    refused(path, tmp_path, "a.pt", "never run")
    assert not canary.exists()
    torch.load(path, weights_only=False)  # or the canary was none
    assert canary.exists()


@pytest.mark.parametrize(
    "prefix",
    [
        "module._orig_mod.",
        "_orig_mod._orig_mod.module.",
        "_fsdp_wrapped_module.",
        "_forward_module.module.",
    ],
)
def test_wrappers_leave_no_trace_in_names(bring: Callable, tmp_path: Path, prefix: str) -> None:
    """Also of blocks that were compiled one by one, inside of what wrapped the whole."""
    given = weights_of(SMALL)
    inner = {f"{prefix}{n}".replace("s.1.", "s.1._orig_mod."): w for n, w in given.items()}
    _, ours = bring(official(inner))
    assert torch.equal(ours["latent_in.bias"], given["x_proj.bias"])
    assert torch.equal(ours["blocks.1.mlp.up.bias"], given["blocks.1.mlp.fc1.bias"])
    path = write(tmp_path / "a.pt", {**given, f"{prefix}x_proj.bias": given["x_proj.bias"] + 1})
    refused(path, tmp_path / "new", f"{prefix}x_proj.bias", "twice")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_of_other_classes_is_read(bring: Callable, tmp_path: Path, zipped: bool) -> None:
    arguments = argparse.Namespace(
        num_classes=np.int64(SMALL.classes),
        lr=np.float32(1e-4),
        beta=np.float64(0.9),
        amp=np.bool_(True),
        steps=np.uint16(9),
        seen=[np.int8(-3)],
        output=Path("/runs/é/a"),
        data=PureWindowsPath("D:\\data\\x"),
        posix=PurePosixPath("a/b"),
        none=None,
        name=np.str_("é"),
    )
    held = official(weights_of(SMALL), args=arguments, best=np.float16(0.5), folder=Path("runs"))
    held |= {"random": np.random.default_rng(0).permutation(3), "state": np.random.get_state()}
    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    held |= {"day": day, "more": SimpleNamespace(a=frozenset([np.complex64(1j)]))}
    path = write(tmp_path / "a.pt", held, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert vars(found["args"]) == {
        "num_classes": 10, "lr": float(np.float32(1e-4)), "beta": 0.9, "amp": True, "steps": 9,
        "seen": [-3], "output": "/runs/é/a", "data": "D:\\data\\x", "posix": "a/b", "none": None,
        "name": "é",
    }  # fmt: skip
    assert (found["best"], found["folder"]) == (0.5, "runs")
    assert (found["day"], found["more"]) == (day, held["more"])
    assert {type(value) for value in vars(found["args"]).values()} <= {
        int, float, bool, str, list, type(None)
    }  # fmt: skip
    config, _ = bring(held)  # as many rows as there are classes and one more
    assert len(config.classes) == SMALL.classes


class Mine:
    """Of the project that trained: it is not here."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("held", "named"),
    [
        (Mine(), f"{__name__}.Mine"),
        (Spelled(os.mkdir, "canary"), "mkdir"),
        (functools.partial(print, 1), "functools.partial"),
        (Fraction(1, 2), "fractions.Fraction"),
        (print, "print"),
        (np.datetime64("2026-01-01"), ""),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, held: Any, named: str, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    write(path, official(weights_of(SMALL), extra=held), _use_new_zipfile_serialization=zipped)
    refused(path, tmp_path, "a.pt", named)
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    for advice in ("weights_only", "safe_globals", "unsafe", "trust"):
        assert advice not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        Spelled(codecs.encode, "x" * 99, "zlib"),
        Spelled(codecs.encode, "x", "no_such_module"),
        Spelled(np.dtype, "O"),
        Spelled(np.dtype, [("a", "f4")]),
        Spelled(codecs.encode, 3),
        Spelled(np.float64(1).__reduce__()[0], np.dtype("V8"), b"12345678"),
        Spelled(np.float64(1).__reduce__()[0], np.dtype("f8"), b"123"),
        Spelled(np.float64(1).__reduce__()[0], np.dtype(">f8"), b"12345678"),
        Spelled(np.dtype, "f8", False, True, 1, 2, 3),
    ],
)
def test_what_is_let_through_makes_plain_data_alone(tmp_path: Path, call: Spelled) -> None:
    """No codec is looked up, no object made: it is refused in a line, or plain."""
    path = tmp_path / "a.pt"
    torch.save({"extra": call}, path)
    with suppress(UserError):
        found = read_checkpoint(path)["extra"]
        assert not callable(found)
        assert not isinstance(found, np.dtype)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_pickle_protocol_is_told(tmp_path: Path, protocol: int) -> None:
    held = official(weights_of(SMALL), best=np.float32(1))
    path = write(tmp_path / "a.pt", held, pickle_protocol=protocol)
    refused(path, tmp_path, "another pickle protocol than torch.save's own")


def test_a_number_of_another_byte_order_is_refused(tmp_path: Path) -> None:
    scalar = np.float64(1).__reduce__()[0]
    for order, sound in (("<", True), (">", False)):
        kind = np.dtype(f"{order}f8")
        torch.save({"extra": Spelled(scalar, kind, np.array(7, kind).tobytes())}, tmp_path / "a.pt")
        if sound:
            assert read_checkpoint(tmp_path / "a.pt")["extra"] == 7
        else:
            with pytest.raises(UserError, match=r"a\.pt"):
                read_checkpoint(tmp_path / "a.pt")


# Where it is written, and the command


def test_the_command(tmp_path: Path, command: Command) -> None:
    path = write(tmp_path / "a.pt", official(weights_of(ODD)))
    names = tmp_path / "names.json"
    names.write_text(json.dumps([f"bird {n}" for n in range(ODD.classes)]))
    vae = make_vae(tmp_path / "vae", levels=5, channels=3)
    arguments = ["--patch", 2, "--downsampling", 16, "--weights", "model"]
    arguments += ["--classes", names, "--vae", vae]
    code, said, _ = command("import", "causalfusion", path, tmp_path / "out", *arguments)
    assert not code
    for fact in ("width 44", "depth 1", "heads 11", "7 tokens", "13 classes", "bird 12", "patch 2"):
        assert fact in said
    pipeline = Pipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert pipeline.class_to_image(12, num_inference_steps=2).size == (96, 96)
    assert pipeline.decoder.latent_in.bias[0] == weights_of(ODD)["x_proj.bias"][0] + 1
    assert pipeline.read.label("bird 12").label == 12
