"""What `Pipeline` is given: pictures of every kind, mistakes of every kind, models and folders."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import model_config, picture
from material import saved
from PIL import Image as PILImage
from PIL import ImageOps

from mmfusion import ImageSlot, Pipeline, TextSlot, UserError, grid
from mmfusion.codecs.image import flat, open_image, upright
from mmfusion.config.sampling import OF_PICTURES, OF_TEXTS
from mmfusion.decoder import Decoder
from mmfusion.errors import enough_memory
from mmfusion.export import SHIPPED, locate, model_digest
from mmfusion.generation.edit_masks import regenerated
from mmfusion.generation.prompt import PromptReader
from mmfusion.pretrained import computed_in
from mmfusion.sequence import Text

FAST: dict[str, Any] = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(model_folder, "cpu")


# Pictures: one entrance

SHAPE = PILImage.fromarray(np.arange(24, dtype=np.uint8).reshape(6, 4) * 10)
TURNED = {  # how upright pixels are stored under each EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[:, ::-1],
}


def stored(format: str, orientation: int) -> bytes:
    """`SHAPE` as a camera that was held so would store it."""
    grey = PILImage.fromarray(np.ascontiguousarray(TURNED[orientation](np.asarray(SHAPE))))
    large = grey.resize((grey.width * 16, grey.height * 16), PILImage.Resampling.NEAREST)
    exif = large.getexif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"webp": {"lossless": True}, "tiff": {}}.get(format, {})
    if format == "mpo":  # two frames, or it is a JPEG
        options = {"save_all": True, "append_images": [large], "quality": 100}
    return saved(large, format, exif=exif, **options)


def small(image: PILImage.Image) -> np.ndarray:
    return np.asarray(flat(image).convert("L").resize(SHAPE.size, PILImage.Resampling.BOX), int)


def test_a_prompt_is_one_line_as_captions_are() -> None:
    """Sentencepiece joins white space itself, other tokenizers do not."""
    reader = PromptReader(model_config(), SimpleNamespace(given=str), None)  # type: ignore[arg-type]
    assert reader.text(" a \n\t small\u2028dog ") == "a small dog"


def test_a_prompt_may_fill_a_row(pipe: Pipeline) -> None:
    most = pipe.config.row_length
    pipe.read.check_length([Text([5] * most)])
    with pytest.raises(UserError, match=f"takes {most + 1} tokens .* rows hold {most}"):
        pipe.read.check_length([Text([5] * (most + 1))])


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "mpo"])
@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_are_turned_upright_once(format: str, orientation: int) -> None:
    data, expected = stored(format, orientation), np.asarray(SHAPE, int)
    given = PILImage.open(io.BytesIO(data))
    ways = [given, PILImage.open(io.BytesIO(data)).convert("RGB"), ImageOps.exif_transpose(given)]
    ways += [upright(given), upright(upright(given)), flat(given)]
    if format != "tiff":  # which is not read from files and shards
        ways.append(open_image(data, "here"))
    for way in ways:
        assert small(way).shape == expected.shape
        assert abs(small(way) - expected).max() <= 2
    # What is made of an upright one does not turn once more, as training's mirrored pictures.
    mirrored = small(ImageOps.mirror(upright(given)))
    assert abs(mirrored - expected[:, ::-1]).max() <= 2
    assert np.array_equal(grid([given]), grid([upright(given)]))


def test_a_mask_and_its_picture_are_turned_too(pipe: Pipeline) -> None:
    """A 16 x 32 picture on its side, painted on in its upper token."""
    painted = np.zeros((32, 16), np.uint8)
    painted[8:12, :4] = 255
    exif = PILImage.Exif()
    exif[0x0112] = 6
    mask, image = (
        lazy(saved(PILImage.fromarray(np.ascontiguousarray(TURNED[6](pixels))), exif=exif))
        for pixels in (painted, painted // 3)
    )
    keep = pipe.read.edit(image, mask, {}).keep
    assert keep is not None
    assert (~keep).nonzero()[0].tolist() == [0]
    plain = PILImage.fromarray(painted // 3), PILImage.fromarray(painted)
    again = pipe.edit(*plain, label=1, seed=3, **FAST)
    assert np.array_equal(pipe.edit(image, mask, label=1, seed=3, **FAST), again)


def sixteen(values: np.ndarray) -> PILImage.Image:
    return PILImage.fromarray(values.astype(np.uint16))


def with_note(image: PILImage.Image, transparency: Any) -> PILImage.Image:
    image.info["transparency"] = transparency
    return image


def palette() -> PILImage.Image:
    image = PILImage.new("P", (8, 8), 1)
    image.putpalette([0, 0, 255, 90, 90, 90])
    return image


MODES: dict[str, tuple[Callable[[], PILImage.Image], Any]] = {
    "black and white": (lambda: PILImage.new("1", (8, 8), 1), 255),
    "16 bits": (lambda: sixteen(np.full((8, 8), 257 * 77)), 77),
    "16 bits, above 255": (lambda: sixteen(np.full((8, 8), 300)), 1),
    "16 bits, big-endian": (lambda: PILImage.frombytes("I;16B", (8, 8), b"\x4d\x4d" * 64), 77),
    "16 bits, a value transparent": (lambda: with_note(sixteen(np.full((8, 8), 9)), 9), 255),
    "palette": (palette, 90),
    "palette, transparent": (lambda: with_note(palette(), 1), 255),
    "palette with alphas": (lambda: with_note(palette(), b"\xff\x80"), 172),
    "palette and alpha": (lambda: palette().convert("PA"), 90),
    "a quarter": (lambda: PILImage.new("RGBA", (8, 8), (0, 0, 0, 64)), 191),
    "grey, half": (lambda: PILImage.new("LA", (8, 8), (100, 128)), 177),
    "premultiplied": (lambda: PILImage.new("RGBa", (8, 8), (50, 50, 50, 128)), 177),
    "grey premultiplied": (lambda: PILImage.new("La", (8, 8), (50, 128)), 177),
    "CMYK": (lambda: PILImage.new("CMYK", (8, 8), (0, 0, 0, 155)), 100),
    "LAB": (lambda: PILImage.new("LAB", (8, 8), (255, 128, 128)), 255),
    "YCbCr": (lambda: PILImage.new("YCbCr", (8, 8), (60, 128, 128)), 60),
    "HSV": (lambda: PILImage.new("HSV", (8, 8), (0, 0, 33)), 33),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode(pipe: Pipeline, mode: str) -> None:
    make, value = MODES[mode]
    found = flat(make())
    assert found.mode in ("L", "RGB")
    assert abs(np.asarray(found, int) - value).max() <= (mode == "LAB" or "premultiplied" in mode)
    grey = (pipe.read.picture(make()).latents + 1) * 127.5
    assert np.allclose(grey, np.asarray(found.convert("L"))[0, 0], atol=1e-3)


def test_masks_of_every_mode(pipe: Pipeline) -> None:
    half = np.zeros((8, 8), np.uint8)
    half[4:] = 1
    colours = [0, 0, 0, 255, 255, 255]
    masks = [sixteen(half.astype(int) * 60_000), PILImage.fromarray(half * 255).convert("1")]
    masks += [PILImage.fromarray(half), PILImage.fromarray(half * 255).convert("CMYK")]
    masks[2].putpalette(colours)
    expected = regenerated("bottom", pipe.config.image, (8, 8))
    for mask in (*masks, half.astype(bool), half.astype(np.float16), torch.from_numpy(half)):
        assert np.array_equal(regenerated(mask, pipe.config.image, (8, 8)), expected)
    dark = sixteen(half.astype(int) * 300)  # a hundredth of white is no white
    with pytest.raises(UserError, match="nothing"):
        regenerated(dark, pipe.config.image, (8, 8))


# Mistakes: UserError, and nothing else


def lazy(data: bytes) -> PILImage.Image:
    return PILImage.open(io.BytesIO(data))


def cut() -> PILImage.Image:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return lazy(saved(PILImage.fromarray(noise))[:4000])


def closed(loaded: bool) -> PILImage.Image:
    with lazy(stored("png", 1)) as image:
        if loaded:
            image.load()
    if loaded:
        image.close()
    return image


HUGE = 10**5000  # Python refuses to print it
NO_PICTURES: dict[str, Callable[[], Any]] = {
    "cut short": cut,
    "closed unread": lambda: closed(False),
    "closed": lambda: closed(True),
    "no pixels": lambda: PILImage.new("L", (0, 4)),
    "float": lambda: PILImage.new("F", (8, 8), 0.5),
    "32 bits": lambda: PILImage.new("I", (8, 8), 70_000),
    "odd transparency": lambda: with_note(PILImage.new("RGB", (8, 8)), object()),
    "too many pixels": lambda: PILImage.new("1", (11_000, 10_000)),
    "array": lambda: np.zeros((8, 8, 3), np.uint8),
    "array of no shape": lambda: np.array(3),
    "tensor": lambda: torch.zeros(3, 8, 8),
    "tensor of no shape": lambda: torch.tensor(3.0),
    "path": lambda: Path("a.png"),
    "name": lambda: "a.png",
    "bytes": lambda: b"\x89PNG",
    "None": lambda: None,
    "mapping": lambda: {"image": 1},
    "class": lambda: PILImage.Image,
    "list of None": lambda: [None],
    "empty list": lambda: [],
    "lists of lists": lambda: [[picture(0)]],
}


def said(call: Callable[[], Any]) -> str:
    """The message of the UserError, or nothing; any other error is one."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def refused(call: Callable[[], Any], *named: str) -> None:
    """A UserError of short lines that hold all that is named."""
    message = said(call)
    assert 0 < len(message) < 1000, message
    assert all(name in message for name in named), message


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture(pipe: Pipeline, kind: str) -> None:
    make = NO_PICTURES[kind]
    refused(lambda: pipe.image_to_text(make(), **FAST))
    refused(lambda: pipe.edit(make(), "top", label=1, **FAST))
    if kind not in ("name", "lists of lists", "empty list"):
        refused(lambda: pipe.generate([make(), TextSlot(max_new_tokens=2)]))
        refused(lambda: pipe.log_likelihood([make()], ["a"]))
    if kind not in ("array of no shape",):
        refused(lambda: pipe.edit(picture(0), make(), label=1, **FAST))


OPTIONS: dict[str, list[Any]] = {
    "seed": ["1", 1.5, None, True, [1, 2], HUGE, 2**63, float("nan"), np.array(1.5), {}],
    "batch_size": [0, -1, 1.5, "8", None, True, [1]],
    "progress": ["yes", None, [1]],
    "on_picture": ["f", 3],
    "on_token": ["f", 3],
    "guidance": ["high", -1, float("nan"), float("inf"), True, [1.0], HUGE, 1e300],
    "guidance_interval": [1, "all", [0.5], [0.6, 0.4], [float("nan"), 1.0], ["a", "b"]],
    "num_inference_steps": [0, -1, 2.5, "9", True, 1001, HUGE, [1]],
    "scheduler": ["heun", 3, ["ddpm"]],
    "ar_steps": [0, 17, 1.5, "2", HUGE, 2**62],
    "ar_sizes": [[], [16, 0], [15], [HUGE], "16", 16, [8.0, 8.0]],
    "order": ["spiral", [0], [0.5], 3, list(range(1, 17))],
    "temperature": ["hot", -1.0, float("nan"), HUGE],
    "top_p": [0, 1.5, "all", float("nan")],
    "beams": [0, 1.5, "two", HUGE, 10**9],
    "length_penalty": [-1.0, "long", float("nan"), 1e9],
    "max_new_tokens": [0, 1.5, "ten", HUGE, 2**40],
    "best_of": [0, -1, 1.5, "2", True, None, HUGE, 10**9],
    "budget_ms": [0, -1, "fast", float("nan"), True, [1], HUGE],
    "guidence": [1.0],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_values_that_no_option_takes(pipe: Pipeline, option: str) -> None:
    """Each wrong value with every method; one of no account there may also be let through."""
    of_pictures = option not in (*OF_TEXTS, "on_token")
    of_texts = option not in (*OF_PICTURES, "budget_ms")
    for value in OPTIONS[option]:
        wrong = {**FAST, option: value}
        calls = {
            "class": (lambda o: pipe.class_to_image([1], **o), of_pictures),
            "text": (lambda o: pipe.text_to_image(["a"], **o), of_pictures),
            "edit": (lambda o: pipe.edit([picture(0)], "top", label=1, **o), of_pictures),
            "picture slot": (lambda o: pipe.generate([["a", ImageSlot()]], **o), of_pictures),
            "caption": (lambda o: pipe.image_to_text([picture(0)], **o), of_texts),
            "text slot": (lambda o: pipe.generate(["a", TextSlot()], **o), of_texts),
        }
        for name, (call, must) in calls.items():
            message = said(lambda call=call, wrong=wrong: call(wrong))
            named = option in message or "rows hold" in message
            assert named if must else named or not message, (name, value, message)
            assert len(message) < 1000
    for value in OPTIONS[option] if option in ("batch_size", "progress") else []:
        refused(lambda v=value: pipe.log_likelihood(picture(0), "a", **{option: v}), option)


def test_unknown_options_list_the_choices(pipe: Pipeline) -> None:
    for call, choices in (
        (lambda **o: pipe.class_to_image(1, **o), ("budget_ms", "seed", "ar_steps")),
        (lambda **o: pipe.image_to_text(picture(0), **o), ("best_of", "on_token", "beams")),
        (lambda **o: pipe.edit(picture(0), "top", label=1, **o), ("progress", "guidance")),
        (lambda **o: pipe.generate([TextSlot(**o)]), ("max_new_tokens", "top_p")),
    ):
        refused(lambda call=call: call(max_new_token=3), "did you mean max_new_tokens?", *choices)
    for call, choices in (
        (lambda **o: pipe.log_likelihood("a", "b", **o), ("answers", "progress")),
        (lambda **o: Pipeline.from_pretrained("x/y", **o), ("dtype", "subfolder")),
        (lambda **o: pipe.save_pretrained("nowhere", **o), ("max_shard_size", "license")),
        (lambda **o: pipe.push_to_hub("x/y", **o), ("private", "license")),
        (lambda **o: pipe.to(**o), ("dtype",)),
    ):
        refused(lambda call=call: call(use_safetensors=True), "use_safetensors: no such", *choices)


ITEMS: dict[str, list[Any]] = {
    "class_to_image": [
        True, 1.0, -1, 10, None, "", "ten", "²", "9" * 5000, HUGE, [], [[1]], {}, b"1", {1, 2},
        np.array(1.5), np.array([0.5]), np.array([True]), np.zeros((2, 2)), torch.tensor(True),
        torch.tensor([1.5]), torch.zeros(2, 2), float("nan"), [None], iter([1]), picture(0),
        torch.zeros(2, device="meta"),
    ],
    "text_to_image": [
        "", " ", [], [""], None, 3, [3], b"a", [b"a"], [["a"]], {}, picture(0), np.zeros(3), HUGE,
    ],
    "generate": [
        None, "a", 3, [], [[]], {}, b"ab", ["a"], [ImageSlot], [None, ImageSlot()], picture(0),
        [["a", ImageSlot()], 3], [["a", ImageSlot()], []], range(3), np.zeros(3),
        [np.zeros((8, 8)), TextSlot()], [HUGE, TextSlot()], [TextSlot(top_p="a")],
        [" \n", ImageSlot()],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "value"),
    [(method, value) for method, values in ITEMS.items() for value in values],
    ids=lambda value: type(value).__name__,
)
def test_items_that_no_method_takes(pipe: Pipeline, method: str, value: Any) -> None:
    refused(lambda: getattr(pipe, method)(value, **FAST))


LONG = "somebody wrote the digit eight " * 20
OTHERS: list[tuple[Callable[[Pipeline], Any], str]] = [
    (lambda p: p.class_to_image("ten"), "zero, one"),
    (lambda p: p.class_to_image(10), "unknown class 10: give 0 to 9"),
    (lambda p: p.class_to_image([]), "nothing was given"),
    (lambda p: p.class_to_image(1, scheduler="euler"), "scheduler"),
    (lambda p: p.text_to_image([3]), "expected a prompt of text, got int"),
    (lambda p: p.text_to_image(LONG), "the model's rows hold 96"),
    (lambda p: p.image_to_text(picture(0), max_new_tokens=90), "lower max_new_tokens"),
    (lambda p: p.image_to_text("a.png"), "expected a PIL picture, got str"),
    (lambda p: p.generate(["a"]), "no slot"),
    (lambda p: p.generate(["a", 3, ImageSlot()]), "not int"),
    (lambda p: p.generate(["a", ImageSlot]), "ImageSlot() and TextSlot(), not ImageSlot"),
    (lambda p: p.text_to_image("a", order="spiral"), "'random' or 'raster', or a valid list (got"),
    (lambda p: p.edit(picture(0), "top"), "either a prompt or a label"),
    (lambda p: p.edit(picture(0), "top", "a", 1), "either a prompt or a label"),
    (lambda p: p.text_to_image("a", seed=2**70), f"seed: {2**70}; give a whole number"),
    (lambda p: p.edit([], "top", label=1), "nothing was given"),
    (lambda p: p.edit(picture(0), "top", label=1, ar_steps=9), "9 AR steps do not fit 8 tokens"),
    (lambda p: p.edit([picture(0)] * 2, "top", label=[1, 2, 3]), "label"),
    (lambda p: p.edit([picture(0)] * 3, ["top"] * 2, label=1), "2 of mask for 3 pictures"),
    (lambda p: p.edit(picture(0), "top", label={}), "class"),
    (lambda p: p.edit(picture(0), "top", prompt=3), "prompt of text"),
    (lambda p: p.edit(picture(0), np.array([[object()] * 8] * 8), label=1), "mask"),
    (lambda p: p.edit(picture(0), np.array([["a"] * 8] * 8), label=1), "mask"),
    (lambda p: p.edit(picture(0), HUGE, label=1), "mask"),
    (lambda p: p.edit(picture(0), torch.zeros(8, 8, device="meta"), label=1), "mask: the tensor"),
    (lambda p: p.edit(picture(0), torch.eye(8).to_sparse(), label=1), "mask: the tensor"),
    (
        lambda p: p.edit(picture(0), np.ones((7, 5)), label=1),
        "mask of size 5x7: needs the proportions of the picture, 8x8",
    ),
    (
        lambda p: p.edit(picture(0).resize((9, 6)), np.ones((7, 5)), label=1),
        "the picture, 9x6, or 8x8, as the model's pictures, or 4x4, as its token grid",
    ),
    (lambda p: p.edit(picture(0), "middle\n" * 99, label=1), "mask"),
    (lambda p: p.log_likelihood(None, ["a"]), "one item or a list"),
    (lambda p: p.log_likelihood("", "a"), "empty"),
    (lambda p: p.log_likelihood(["a"], ["b", "c"]), "1 prompts for 2 answers"),
    (lambda p: p.save_pretrained(None), "save_pretrained"),  # type: ignore[arg-type]
    (lambda p: p.save_pretrained(""), "save_pretrained"),
    (lambda p: p.save_pretrained(Path(__file__) / "below"), "below"),
    (lambda p: p.save_pretrained("a\0b"), "a\0b"),
    (lambda p: p.push_to_hub(".."), "push to .."),
    (lambda p: p.push_to_hub(None), "push to None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "named"), OTHERS)
def test_other_mistakes(pipe: Pipeline, call: Callable[[Pipeline], Any], named: str) -> None:
    refused(lambda: call(pipe), named)


def test_extremes_that_are_allowed(pipe: Pipeline) -> None:
    """They overflow or vanish in fp32, and mean something all the same."""
    greedy = pipe.image_to_text(picture(0), max_new_tokens=4)
    for options in ({"temperature": 1e-320}, {"temperature": 1.0, "top_p": 1e-320}):
        assert pipe.image_to_text(picture(0), max_new_tokens=4, **options) == greedy
    assert isinstance(pipe.image_to_text(picture(0), temperature=1e300, max_new_tokens=2), str)
    assert pipe.class_to_image(np.array([3]), seed=np.array([-1]), **FAST)[0].size == (8, 8)
    assert pipe.class_to_image(torch.tensor([3, 4]), seed=(1, 2), **FAST)[1].size == (8, 8)
    assert pipe.class_to_image(np.int64(3), seed=np.int32(5), **FAST).size == (8, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", v) for v in ("gpu", "cuda:x", "cuda:99", "meta", 3.5, "", "cpu:1:2", object())]
    + [("dtype", v) for v in ("int8", "single", "", 32, "bf 16", torch.int64, torch.float64)]
    + [("name", v) for v in (None, 3, "", "a\0b", "x" * 900, ["digits"], b"digits")]
    + [("subfolder", 5), ("subfolder", b"a"), ("frontier", 5), ("budget_ms", "fast")],
)
def test_devices_types_and_names_that_there_are_not(
    model_folder: Path, key: str, value: Any
) -> None:
    given = {"name": model_folder, key: value}
    message = said(lambda: Pipeline.from_pretrained(**given))
    assert (key if key != "name" else "model") in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "full",
    [lambda: torch.empty(2**50), lambda: np.empty(2**50), torch.OutOfMemoryError("CUDA is full")],
)
def test_full_memory_is_one_line(
    pipe: Pipeline, full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pass_(*_: Any) -> Any:
        raise full if isinstance(full, Exception) else full()

    monkeypatch.setattr(Decoder, "forward", pass_)
    for call in (
        lambda: pipe.class_to_image([1, 2], **FAST),
        lambda: pipe.image_to_text(picture(0)),
        lambda: pipe.log_likelihood("a", "b"),
    ):
        refused(call, "memory is full", "batch_size")
    with pytest.raises(ValueError, match="no memory"), enough_memory("lower it"):
        raise ValueError("no memory of that")


def test_text_of_numbers_that_are_not_finite_is_refused(model_folder: Path) -> None:
    """Greedily it would be an empty caption, and a draw from it torch's own error."""
    pipe = Pipeline.from_pretrained(model_folder, "cpu")
    with torch.no_grad():
        pipe.decoder.get_parameter("text.weight").fill_(torch.nan)
    for options in ({}, {"temperature": 1.0}, {"beams": 2}):
        refused(lambda o=options: pipe.image_to_text(picture(0), **o), "text", "not finite")
    refused(lambda: pipe.log_likelihood(picture(0), "a"), "text", "not finite")


# Precision, editing, names


@pytest.mark.parametrize("name", ["bfloat16", "float16", "torch.bfloat16"])
def test_the_precision_is_kept_on_disk(model_folder: Path, tmp_path: Path, name: str) -> None:
    half = Pipeline.from_pretrained(model_folder, "cpu", name)
    kind = getattr(torch, name.removeprefix("torch."))
    half.save_pretrained(tmp_path / "half")
    same = Pipeline.from_pretrained(tmp_path / "half", "cpu", kind)
    assert {w.dtype for w in same.decoder.state_dict().values()} == {kind} == {half.dtype}
    size = (model_folder / "model.safetensors").stat().st_size
    assert (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * size
    made = [p.class_to_image([1, 2], seed=3, **FAST) for p in (half, same)]
    assert all(np.array_equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("device", "saved", "computed"),
    [
        ("cpu", torch.bfloat16, torch.float32),
        ("cuda", torch.float32, torch.bfloat16),
        ("cuda", torch.float16, torch.float16),
    ],
)
def test_what_is_computed_in(device: str, saved: torch.dtype, computed: torch.dtype) -> None:
    assert computed_in(torch.device(device), saved) == computed


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_cpu_computes_in_float32_and_saves_as_it_was(
    model_folder: Path, tmp_path: Path, name: str
) -> None:
    """Many CPUs only emulate the others, which takes several times as long."""
    kind = getattr(torch, name)
    Pipeline.from_pretrained(model_folder, "cpu", kind).save_pretrained(tmp_path / "half")
    pipeline = Pipeline.from_pretrained(tmp_path / "half", "cpu")
    assert (pipeline.dtype, pipeline.saved_dtype) == (torch.float32, kind)
    pipeline.save_pretrained(tmp_path / "again")
    first, again = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("half", "again"))
    assert first == again
    pipeline.to(dtype=torch.float32).save_pretrained(tmp_path / "again")
    assert len((tmp_path / "again/model.safetensors").read_bytes()) > 1.6 * len(first)


def test_weights_of_no_use_are_refused(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from mmfusion.manifest import seal

    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    weights = {name: w.to(torch.int32) for name, w in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors")
    seal(copy)
    refused(lambda: Pipeline.from_pretrained(copy), "model.safetensors", "int32")


@pytest.mark.parametrize("source", ["exported", "shipped"])
def test_the_defaults_of_a_model_may_be_edited(
    model_folder: Path, tmp_path: Path, source: str
) -> None:
    origin = model_folder if source == "exported" else SHIPPED / "digits"
    copy = Path(shutil.copytree(origin, tmp_path / "copy"))
    digest = model_digest(copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["generation"]["class_to_image"] |= {"num_inference_steps": 3, "guidance": 4.0}
    (copy / "config.json").write_text(json.dumps(config), "utf-8-sig")  # as some editors do
    edited, plain = (Pipeline.from_pretrained(path, "cpu") for path in (copy, origin))
    expected = plain.class_to_image(3, num_inference_steps=3, guidance=4.0)
    assert np.array_equal(edited.class_to_image(3), expected)
    assert model_digest(copy) != digest
    config["generation"]["class_to_image"]["guidance"] = "high"
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    refused(lambda: Pipeline.from_pretrained(copy), "config.json", "guidance")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder to be in; the names that the hub was asked for."""
    import huggingface_hub

    asked: list[str] = []

    def offline(name: str, **_: Any) -> str:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_folder_hides_a_shipped_model_if_it_is_one(here: list[str], model_folder: Path) -> None:
    shipped = SHIPPED / "digits"
    assert locate("digits") == shipped
    Path("digits").mkdir()
    assert locate("digits") == shipped
    for place in ("digits/data", "digits/model"):
        Path(place).mkdir()
    for place in ("digits", "digits/model"):  # of something else
        Path(place, "config.json").write_text('{"model_type": "bert"}')
        Path(place, "model.safetensors").write_bytes(b"theirs")
    assert locate("digits") == shipped
    for local in ("./digits", "digits/", Path("digits"), str(Path("digits").resolve())):
        refused(lambda local=local: locate(local), "digits", "config.json")
    shutil.copytree(model_folder, "digits/model", dirs_exist_ok=True)
    assert locate("digits") == Path("digits/model")
    shutil.copytree(model_folder, "digits", dirs_exist_ok=True)
    assert locate("digits") == locate("./digits") == Path("digits")
    Path("digits").rename("other")
    Path("digits").write_text("a file")
    assert locate("digits") == shipped
    assert not here


def test_a_mistyped_path_is_not_asked_of_the_hub(here: list[str]) -> None:
    Path("models").mkdir()
    (Path("models") / "file").write_text("")
    names = ["runs/nope", "models/nope", "models/file", "./a/b", "../a", "/no/such", "a\\b"]
    names += ["~nobody/x", "~/x", "a/b/c", "a b/c", "org/name.git", "org/", "/name", "org//name"]
    names += ["digit", "./digits", "digits/digits/digits", "hf:org/name", "C:\\models\\x", "é/ü"]
    for name in names:
        refused(lambda name=name: locate(name), name, "no such folder", "digits", "hub")
    refused(lambda: locate(Path("org/name")), "org/name", "no such folder")
    refused(lambda: locate("models", subfolder="nope"), "model models/nope: no such folder")
    assert not here
    refused(lambda: locate("org/name"), "org/name", "no such folder", "hub", "no network")
    assert here == ["org/name"]
