"""`mmfusion generate`, `caption`, `edit` and `chat`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfusion.errors import UserError

if TYPE_CHECKING:
    from PIL import Image as Picture

    from mmfusion.pipeline import Pipeline

Model = Annotated[str, typer.Option(help="a shipped name, an exported folder or a hub id")]
Seed = Annotated[int, typer.Option(help="picture i uses seed + i")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="a sampling option as name=value, such as guidance=2 (repeatable)"),
]
BestOf = Annotated[
    int,
    typer.Option(
        min=1, help="draw so many candidates of each and keep the one that the model likes best"
    ),
]
Exact = Annotated[bool, typer.Option(help="save small pictures at their own size, not enlarged")]
SHOWN = 256  # pixels that a saved picture's side has at least, unless --exact


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="what to draw, one picture each")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="a class name or number (repeatable)")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="a PNG, or a folder for several")
    ] = Path("picture.png"),
    count: Annotated[int, typer.Option(min=1, help="pictures of each prompt")] = 1,
    model: Model = "digits",
    seed: Seed = 0,
    best_of: BestOf = 1,
    options: Set = None,
    exact: Exact = False,
) -> None:
    """Draw pictures from text prompts or class labels."""
    if bool(prompts) == bool(label):
        raise UserError("generate: give either prompts or --label")
    from mmfusion.training.sheet import grid

    _check_writable(output)
    asked = prompts or label or []
    wanted = asked * count
    columns = len(asked) if count > 1 and 1 < len(asked) <= 10 else 10  # one column a prompt
    pipeline = _pipeline(model)
    draw = pipeline.text_to_image if prompts else pipeline.class_to_image
    chosen = {"best_of": best_of} if best_of > 1 else {}
    pictures = draw(wanted, seed=seed, progress=True, **chosen, **_options(options))
    if len(pictures) == 1 or output.suffix:
        _save(pictures[0] if len(pictures) == 1 else grid(pictures, columns), output, exact)
        return
    for number, picture in enumerate(pictures):
        _save(picture, output / f"{number:04d}.png", exact)


def caption(
    images: Annotated[list[Path], typer.Argument(help="picture files")],
    model: Model = "digits",
    seed: Seed = 0,
    best_of: BestOf = 1,
    options: Set = None,
) -> None:
    """Say what is in pictures."""
    pictures = [_open(path) for path in images]
    texts = _pipeline(model).image_to_text(
        pictures, seed=seed, best_of=best_of, **_options(options)
    )
    for path, text in zip(images, texts, strict=True):
        typer.echo(f"{path}: {text}" if len(images) > 1 else text)


def edit(
    image: Annotated[Path, typer.Argument(help="the picture to edit")],
    mask: Annotated[
        str,
        typer.Option(
            help="top, bottom, left, right, center, outpaint, or a picture: white is redrawn"
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="what the redrawn part belongs to")] = None,
    label: Annotated[str | None, typer.Option(help="or its class")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("edited.png"),
    model: Model = "digits",
    seed: Seed = 0,
    options: Set = None,
    exact: Exact = False,
) -> None:
    """Draw a part of a picture anew and keep the rest."""
    from mmfusion.generation.masks import REGIONS

    _check_writable(output)
    picture = _open(image)
    where = mask if mask in REGIONS else _open(Path(mask), f"or one of {', '.join(REGIONS)}")
    edited = _pipeline(model).edit(
        picture, where, prompt=prompt, label=label, seed=seed, **_options(options)
    )
    _save(edited, output, exact)


def chat(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures")] = Path(
        "chat"
    ),
    model: Model = "digits",
    seed: Seed = 0,
    options: Set = None,
    exact: Exact = False,
) -> None:
    """Talk in text and pictures: each line adds to one interleaved prompt."""
    from mmfusion.generation.prompt import ImageSlot, TextSlot

    pipeline = _pipeline(model)
    prompt: list[Any] = []
    drawn = 0
    typer.echo(
        "A line of text, or:  /image FILE shows a picture,  /say asks for text,  /draw asks for "
        "a picture,\n/new starts over,  /quit ends."
    )
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/new":
                prompt = []
            elif command == "/image":
                prompt.append(_open(Path(rest.strip())))
            elif command in ("/say", "/draw"):
                slot = TextSlot() if command == "/say" else ImageSlot()
                prompt = pipeline.generate([*prompt, slot], seed=seed, **_options(options))
                if command == "/say":
                    typer.echo(prompt[-1])
                else:
                    _save(prompt[-1], output / f"{drawn:04d}.png", exact)
                    drawn += 1
            elif command.startswith("/"):
                typer.echo(f"no command {command}")
            elif line:
                prompt.append(line)
        except UserError as error:
            typer.echo(f"error: {error}")


def _pipeline(model: str) -> "Pipeline":
    from mmfusion.pipeline import Pipeline

    return Pipeline.from_pretrained(model)


def _options(given: list[str] | None) -> dict[str, Any]:
    from mmfusion.config import Sampling
    from mmfusion.overrides import read_yaml

    options = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: write it as name=value")
        if name not in Sampling.model_fields:
            raise UserError(f"--set {name}: choose one of {', '.join(Sampling.model_fields)}")
        options[name] = read_yaml(value, item)
    return options


def _open(path: Path, remedy: str = "") -> "Picture.Image":
    from mmfusion.codecs.image import open_picture

    if not path.is_file():
        raise UserError(
            f"picture {path}: no such file{f'; give a file, {remedy}' if remedy else ''}"
        )
    return open_picture(path.read_bytes(), f"picture {path}")


def _check_writable(path: Path) -> None:
    """Refuse a kind of file that cannot be written before anything is drawn for it."""
    from PIL import Image as Picture

    if path.suffix and path.suffix.lower() not in Picture.registered_extensions():
        raise UserError(f"{path}: cannot be written, no picture format ends so; take .png")


def _save(picture: "Picture.Image", path: Path, exact: bool) -> None:
    from PIL import Image as Picture

    factor = 1 if exact else max(1, SHOWN // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize(size, Picture.Resampling.NEAREST).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from None
    note = f", {picture.width}x{picture.height} enlarged {factor} times" if factor > 1 else ""
    typer.echo(f"{path}{note}")
