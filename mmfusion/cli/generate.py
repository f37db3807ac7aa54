"""`mmfusion generate`, `caption`, `edit` and `chat`."""

import io
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from itertools import chain
from itertools import count as numbers
from mimetypes import MimeTypes
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mmfusion.errors import UserError, user_error

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from mmfusion.pipeline import Pipeline

Model = Annotated[
    str, typer.Option(help="a shipped name, the folder of a model or of a run, or a hub id")
]
Seed = Annotated[int, typer.Option(help="picture i uses seed + i")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="a sampling option as name=value, such as guidance=2 (repeatable)"),
]
MASK = "top, bottom, left, right, center, outpaint, or a picture: white is redrawn"
KEPT = "draw so many candidates of each and keep the one that the model likes best"
BestOf = Annotated[int, typer.Option(min=1, help=KEPT)]
Exact = Annotated[bool, typer.Option(help="save small pictures at their own size, not enlarged")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps (default: an NVIDIA GPU, if any)")
]
DTYPE = "float32, bfloat16 or float16 (default: as saved, on a CPU float32)"
Dtype = Annotated[str | None, typer.Option(help=DTYPE)]
OUTPUT = "a picture's file, or a folder (default: {}, or the next free name)"
DRAWN, EDITED = "picture.png", "edited.png"
MOST = 100_000  # all are in memory
PICTURES = ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff"
SHOWN = 256  # pixels that a saved picture's side has at least, unless --exact


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="what to draw, one each")] = None,
    label: Annotated[list[str] | None, typer.Option(help="a class, by name or number")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help=OUTPUT.format(DRAWN))] = None,
    count: Annotated[int, typer.Option(min=1, max=MOST, help="pictures of each prompt")] = 1,
    model: Model = "digits",
    seed: Seed = 0,
    best_of: BestOf = 1,
    options: Set = None,
    exact: Exact = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw pictures from text prompts or class labels."""
    if bool(prompts) == bool(label):
        raise UserError("generate: give either prompts or --label")
    from mmfusion.training.image_grid import grid

    asked = prompts or label or []
    wanted = asked * count
    place = _place(output, DRAWN)
    columns = len(asked) if count > 1 and 1 < len(asked) <= 10 else 10  # one column a prompt
    pipeline = _pipeline(model, device, dtype)
    draw = pipeline.text_to_image if prompts else pipeline.class_to_image
    chosen = {"best_of": best_of} if best_of > 1 else {}
    pictures = draw(wanted, seed=seed, progress=True, **chosen, **_options(options))
    apart = place.folder or len(pictures) == 1
    for picture in pictures if apart else [grid(pictures, columns)]:
        _save(picture, place, exact)


def caption(
    images: Annotated[list[Path], typer.Argument(help="picture files")],
    model: Model = "digits",
    seed: Seed = 0,
    best_of: BestOf = 1,
    options: Set = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Say what is in pictures."""
    pictures = [_open(path) for path in images]
    texts = _pipeline(model, device, dtype).image_to_text(
        pictures, seed=seed, best_of=best_of, **_options(options)
    )
    for path, text in zip(images, texts, strict=True):
        typer.echo(f"{path}: {text}" if len(images) > 1 else text)


def edit(
    image: Annotated[Path, typer.Argument(help="the picture to edit")],
    mask: Annotated[str, typer.Option(help=MASK)],
    prompt: Annotated[str | None, typer.Option(help="what the redrawn part belongs to")] = None,
    label: Annotated[str | None, typer.Option(help="or its class")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help=OUTPUT.format(EDITED))
    ] = None,
    model: Model = "digits",
    seed: Seed = 0,
    options: Set = None,
    exact: Exact = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw a part of a picture anew and keep the rest."""
    from mmfusion.generation.edit_masks import REGIONS

    place = _place(output, EDITED)
    picture = _open(image)
    if picture.width != picture.height:
        typer.echo(f"{image}: its centre square is edited, the rest is cut off", err=True)
    where = mask if mask in REGIONS else _open(Path(mask), f"; or give {', '.join(REGIONS)}")
    edited = _pipeline(model, device, dtype).edit(
        picture, where, prompt=prompt, label=label, seed=seed, **_options(options)
    )
    _save(edited, place, exact)


HELP = """A line of text adds to the prompt, as do:
  /image FILE  a picture
  /say         text, written by the model
  /draw        a picture, drawn by the model and saved
  /new         forget all that, and start over
  /help        this list
  /quit        end; so does Ctrl-D. Ctrl-C stops an answer."""


def chat(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures")] = Path(
        "chat"
    ),
    model: Model = "digits",
    seed: Seed = 0,
    options: Set = None,
    exact: Exact = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Talk in text and pictures: each line adds to one interleaved prompt."""
    with suppress(ImportError):  # where there is none, input() reads plain lines
        import readline  # noqa: F401 - being imported, it edits lines and keeps them
    from mmfusion.generation.prompt import ImageSlot, TextSlot

    _place(f"{output}/", DRAWN)  # refused before anything is drawn for it
    chosen, pipeline = _options(options), _pipeline(model, device, dtype)
    prompt: list[Any] = []
    typer.echo(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()
            raise
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/new":
                prompt = []
            elif command == "/help":
                typer.echo(HELP)
            elif command == "/image":
                if not rest:
                    raise UserError("/image: name the file of a picture")
                prompt.append(_open(_named(rest.strip())))
            elif command in ("/say", "/draw"):
                if rest:
                    raise UserError(f"{command}: takes nothing; write the text on a line before it")
                slot = TextSlot() if command == "/say" else ImageSlot()
                *_, made = pipeline.generate([*prompt, slot], seed=seed, **chosen)
                if isinstance(made, str):
                    typer.echo(made)
                else:
                    _save(made, _numbered(output), exact)
                if made:  # an empty text would be refused as a prompt from then on
                    prompt.append(made)
            elif command.startswith("/"):
                typer.echo(f"no command {command}; /help lists them")
            elif line:
                prompt.append(line)
        except UserError as error:
            typer.echo(f"error: {error}")
        except KeyboardInterrupt:
            typer.echo("stopped")


def _named(text: str) -> Path:
    """A path as it is typed, or as terminals write that of a file which is dropped on them."""
    with suppress(ValueError):  # of a quote that does not close
        if not os.path.exists(os.path.expanduser(text)) and len(words := shlex.split(text)) == 1:
            (text,) = words
    return Path(os.path.expanduser(text))


def _pipeline(model: str, device: str | None, dtype: str | None) -> "Pipeline":
    from mmfusion.pipeline import Pipeline

    return Pipeline.from_pretrained(model, device, dtype)


def _options(given: list[str] | None) -> dict[str, Any]:
    from mmfusion.config import Sampling
    from mmfusion.generation.arguments import check_names
    from mmfusion.overrides import read_override

    read = [read_override(item, Sampling, "--set") for item in given or []]
    options = {str(name): value for (name, *_), value in read}
    check_names(options, tuple(Sampling.model_fields), "--set")
    return options


def _open(path: Path, remedy: str = "") -> "PILImage.Image":
    from mmfusion.codecs.image import open_image

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"picture {path}: no such file{remedy}") from None
    except OSError as error:
        raise UserError(f"picture {path}: cannot be read ({error.strerror})") from None
    return open_image(data, f"picture {path}")


class Place(NamedTuple):
    """Where pictures go."""

    names: Iterator[Path]
    """Files, the first of which that is free is taken, so that nothing is lost, or one to replace.

    Free is seen when a picture is put there: other processes may draw into the same folder."""
    folder: bool = False
    replaces: bool = False


def _place(output: str | None, usual: str) -> Place:
    """What an output means, refused before anything is drawn for it.

    What is a folder, or ends with a slash, is one. Else a name that ends as a picture format does
    is a file; one that ends as other files do, or nearly as pictures do, is a slip; and any other,
    as `runs/v1.0`, a folder to be made. A file that is named is replaced, the `usual` one is not.
    """
    from PIL import Image as PILImage

    path = Path(usual if output is None else output)
    if output is None:
        more = (path.with_stem(f"{path.stem}-{number}") for number in numbers(2))
        return Place(chain([path], more))
    suffix = path.suffix.lower()
    format = PILImage.registered_extensions().get(suffix)
    folder = path.is_dir() or output.endswith(("/", os.sep))
    if format and not folder:
        if format not in PILImage.SAVE:
            raise UserError(f"{path}: cannot be written, {suffix} is only read; take .png")
        return Place(iter([path]), replaces=True)
    ends = f"pictures end in {', '.join(PICTURES)}"
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file and no folder; {ends}; take another name")
    known = any(MimeTypes().guess_type(path.name)) and len(suffix) > 2  # not as the c of a.b.c
    if (known or get_close_matches(suffix, PICTURES, 1, 0.75)) and not folder:
        raise UserError(f"{path}: {ends}; if it is to be a folder, write {path}/")
    return _numbered(path)


def _numbered(folder: Path) -> Place:
    return Place((folder / f"{number:04d}.png" for number in numbers()), folder=True)


def _save(picture: "PILImage.Image", place: Place, exact: bool) -> None:
    from PIL import Image as PILImage

    from mmfusion import files

    factor = 1 if exact else max(1, SHOWN // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    shown = picture.resize(size, PILImage.Resampling.NEAREST)
    for path in place.names:
        if path.exists() and not place.replaces:
            continue
        file = io.BytesIO()  # Pillow does not notice a disk that is full
        with user_error(f"{path}: cannot be written", OSError, ValueError):
            shown.save(file, PILImage.registered_extensions()[path.suffix.lower()])
        if place.replaces:
            files.write(path, file.getvalue())
        elif not files.create(path, file.getvalue()):
            continue
        note = f", {picture.width}x{picture.height} enlarged {factor} times" if factor > 1 else ""
        typer.echo(f"{path}{note}")
        return
