"""All that a config's training needs and that is not there, told at once before anything heavy.

Only presence is checked. What is there but broken is told by whatever reads it.
"""

from pathlib import Path

from mmfusion.codecs.vocabulary import kind
from mmfusion.config import Config, SourceConfig, load
from mmfusion.errors import UserError

from . import storage

IMAGENET = "CLASS_FOLDERS_OR_TARS"
GIVEN = {
    "class_to_image": ("imagenet", IMAGENET),
    "text_to_image": ("captions", "CAPTIONS.jsonl"),
    "image_to_text": ("captions", "CAPTIONS.jsonl"),
    "interleaved": ("interleaved", "DOCUMENTS.jsonl"),
}
LATENTS = "-latents"
PIPELINES = {"digits": "digits", "emoji": "emoji iconify-json-*.tgz"}


def check_data(config: Config, name: str) -> None:
    """Check that all of a config's data are there; `name` is what the user calls the config.

    A UserError names each missing piece and the command that prepares it, in the order in which
    they are to be run.
    """
    from mmfusion.hub import may_be_hub_id

    pieces: dict[str, list[str]] = {}
    vae, sources = str(config.image.vae), config.data.sources
    if config.image.codec == "vae" and not (Path(vae).is_dir() or may_be_hub_id(vae)):
        pieces[f"image.vae: no folder {_missing(vae)}"] = [
            "put a diffusers AutoencoderKL there, with safetensors weights; MAR's KL-16, of which "
            "github.com/LTH14/mar says where kl16.ckpt is:",
            f"mmfusion import mar-vae kl16.ckpt {vae}",
        ]
    if config.image.codec == "linear" and not Path(str(config.image.linear)).is_file():
        shards = sources[0].shards
        codec = f'mmfusion data linear-codec "{shards}" --config {name} -o {config.image.linear}'
        pieces[f"image.linear: no file {_missing(config.image.linear)}"] = [codec]
    for shards in dict.fromkeys(source.shards for source in sources):
        if not storage.expand(shards):
            readers = [source for source in sources if source.shards == shards]
            piece = f"data.sources {_names(readers)}: no shards {_missing(shards)}"
            pieces[piece] = _commands(config, readers, name)
    if config.classes_file:
        folder = Path(config.classes_file).parent
        by = (c for commands in pieces.values() for c in commands if c.endswith(f" -o {folder}"))
        command = next(by, f"mmfusion data imagenet {IMAGENET} -o {folder}")
        pieces[f"classes_file: no file {_missing(config.classes_file)}"] = [command]
    if config.text and not Path(config.text.tokenizer).is_file():
        path = Path(config.text.tokenizer)
        pieces[f"text.tokenizer: no file {_missing(path)}"] = [_tokenizer(config, path)]
    worded = [source for source in sources if source.task in ("text_to_image", "image_to_text")]
    if worded and not config.text:
        pieces[f"text.tokenizer: not given, but text is read by {_names(worded)}"] = [
            _tokenizer(config, Path("data/tokenizer.model")),
            "and text.tokenizer=data/tokenizer.model in the config",
        ]
    labelled = [source for source in sources if source.task == "class_to_image"]
    if labelled and not (config.classes or config.classes_file):
        pieces[f"classes: not given, but labels are read by {_names(labelled)}"] = [
            "the names in the order of their numbers, or a classes_file, in the config"
        ]
    if pieces:
        told = [f"  {piece}" + "".join(f"\n      {c}" for c in pieces[piece]) for piece in pieces]
        raise UserError(
            f"{name}: {len(pieces)} of its data are missing (docs/data.md says more):\n"
            + "\n".join(told)
        )


def _missing(path: object) -> str:
    """A path that is not there, and what is there under nearly that name: it may be mistyped."""
    there = storage.beside(str(path), alike=True)
    return f"{path}; {there}" if there else str(path)


def _names(sources: list[SourceConfig]) -> str:
    return ", ".join(source.name for source in sources)


def _commands(config: Config, sources: list[SourceConfig], name: str) -> list[str]:
    folder = Path(sources[0].shards).parent
    if config.data.pipeline:
        demo = load(config.data.pipeline)
        if sources[0].shards not in {source.shards for source in demo.data.sources}:
            said = storage.beside(sources[0].shards, alike=True)  # mistyped, perhaps
            return [] if said else [storage.beside(sources[0].shards)]
        return [f"mmfusion data {PIPELINES[config.data.pipeline]} -o {folder}"]
    command, given = GIVEN[sources[0].task]
    if command == "imagenet" and any(s.task != "class_to_image" for s in sources):
        given += " --captions RECAPTIONS"
    if config.image.codec != "vae":
        return [f"mmfusion data {command} {given} -o {folder}"]
    pictures = folder.with_name(folder.name.removesuffix(LATENTS))
    if pictures == folder:
        pictures = folder.with_name(f"{folder.name}-pictures")
    flip = " --flip" if any(source.flip for source in sources) else ""
    return [
        f"mmfusion data {command} {given} -o {pictures}",
        f'mmfusion data latents "{pictures}/*.tar" --config {name}{flip} -o {folder}',
    ]


def _tokenizer(config: Config, path: Path) -> str:
    if kind(path) == ".json":
        return f"mmfusion data tokenizer --take FOLDER_OR_HUB_ID -o {path}"
    pipeline = config.data.pipeline
    demo = load(pipeline).text if pipeline else None
    if pipeline and demo and config.text and demo.tokenizer == config.text.tokenizer:
        return f"mmfusion data {PIPELINES[pipeline]} -o {path.parent}"
    sources = config.data.sources
    worded = dict.fromkeys(s.shards for s in sources if s.task != "class_to_image")
    # Captions made of the classes' names say little; they are read where there is nothing else.
    classes = {s.shards for s in sources if s.task == "class_to_image"}
    chosen = [pattern for pattern in worded if pattern not in classes] or worded
    shards = " ".join(f'--shards "{pattern}"' for pattern in chosen) or "--text FILE"
    return f"mmfusion data tokenizer {shards} -o {path}"
