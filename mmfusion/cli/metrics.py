"""`mmfusion eval METRIC`: each metric by itself on files."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from mmfusion.errors import UserError

Output = Annotated[Path | None, Option("-o", "--output", help="JSON file of the figures")]
Work = Annotated[Path | None, Option(help="where features are kept (default: the user's cache)")]


def fid(
    pictures: Annotated[str, Argument(help="a folder, shards (.tar), or an .npz of samples")],
    reference: Annotated[
        str | None, Argument(help="the same, or an ADM reference .npz; none: Inception Score alone")
    ] = None,
    features: Annotated[
        str, Option(help="inception[:FILE], dinov2:FOLDER, clip:MODEL[:TAG] or pixels")
    ] = "inception",
    metrics: Annotated[
        str, Option(help="some of fid,sfid,is,precision,recall,kid; default: all there can be")
    ] = "",
    size: Annotated[int | None, Option(min=1, help="side that all are cut and resized to")] = None,
    output: Output = None,
    work: Work = None,
) -> None:
    """Measure FID, sFID, Inception score, precision, recall and KID of pictures.

    Under a launcher the ranks share the work. Features are kept: the same pictures are never run
    through the same network twice.
    """
    from mmfusion.eval.distribution import METRICS, impossible, key_of, measure
    from mmfusion.eval.extractors import make_extractor
    from mmfusion.eval.image_sets import open_images

    asked = _names(metrics)
    if unknown := [name for name in asked if name not in METRICS]:
        raise UserError(f"--metrics {unknown[0]}: choose from {', '.join(METRICS)}")
    _check_output(output)
    made = open_images(pictures, size)
    real = open_images(reference, size) if reference else None
    extractor = make_extractor(features)
    figures = measure(made, real, extractor, asked or None, work)
    if figures:  # else they are another rank's
        cannot = {} if asked else impossible(made, real, extractor)
        left_out = {key_of(metric, extractor): why for metric, why in cannot.items()}
        _show({**figures, "left_out": left_out}, output)


def codec(
    pictures: Annotated[str, Argument(help="a folder of pictures, or shards (.tar)")],
    config: Annotated[str, Option(help="whose image section names the codec")],
    overrides: Annotated[list[str] | None, Argument(help="key.path=value")] = None,
    page: Annotated[Path | None, Option("-o", "--output", help="HTML page with pictures")] = None,
) -> None:
    """Measure what an image codec loses: PSNR of pictures that were encoded and decoded."""
    from PIL import Image as PILImage

    from mmfusion.codecs.image import make_codec
    from mmfusion.config import load
    from mmfusion.eval.image_sets import open_images
    from mmfusion.eval.reconstruction import reconstruct, write_page
    from mmfusion.export import default_device

    through = make_codec(load(config, overrides or []).image, default_device())
    found = reconstruct(through, map(PILImage.fromarray, open_images(pictures)))
    for line in found.lines():
        typer.echo(line)
    if page:
        write_page(page, through, found, pictures)
        typer.echo(f"wrote {page}")


def clip(
    pictures: Annotated[str, Argument(help="a folder of pictures, or shards with captions")],
    model: Annotated[str, Option(help="MODEL:TAG, MODEL:FILE, a folder of open_clip, hf-hub:ID")],
    texts: Annotated[
        Path | None, Option(help="for a folder: JSON {name: text}, JSON lines, or COCO's")
    ] = None,
    work: Work = None,
    output: Output = None,
) -> None:
    """Measure how well pictures match their texts: the CLIP score."""
    from mmfusion.eval.alignment import clip_score, embed_pairs
    from mmfusion.eval.captioned_dataset import open_captioned
    from mmfusion.eval.clip import Clip
    from mmfusion.eval.work import rank

    _check_output(output)
    shown, given, unused = open_captioned(pictures, texts)
    pairs = embed_pairs(Clip(model), shown, given, work=work)
    about = {
        "source": pictures,
        "source_sha256": shown.digest,
        "texts": str(texts or pictures),
        "texts_sha256": hashlib.sha256(json.dumps(given).encode()).hexdigest(),
    }
    if rank() == 0:
        _show({name: {**figure, **about} for name, figure in clip_score(pairs).items()}, output)
        if unused:
            typer.echo(f"warning: {unused} texts have no picture")


def captions(
    results: Annotated[Path, Argument(help='JSON list of {"image_id", "caption"}')],
    references: Annotated[
        Path, Argument(help="COCO's annotations, Karpathy's splits, or {id: [captions]}")
    ],
    metrics: Annotated[
        str, Option(help="bleu, rouge_l, cider, meteor; default: what can be measured")
    ] = "",
    tokenizer: Annotated[
        Literal["auto", "ptb", "plain", "spaces"],
        Option(help="auto: as published where Java is, else plain"),
    ] = "auto",
    partial: Annotated[bool, Option("--partial", help="score what is in both files")] = False,
    per_picture: Annotated[
        Path | None, Option(help="file of each picture's scores, one JSON object a line")
    ] = None,
    output: Output = None,
) -> None:
    """BLEU, ROUGE-L, CIDEr-D and METEOR of captions, as COCO's evaluation gives them."""
    from mmfusion.eval.captions.coco import pair, read_references, read_results
    from mmfusion.eval.captions.scores import score
    from mmfusion.files import write
    from mmfusion.manifest import sha256

    _check_output(output)
    _check_output(per_picture)
    made, known = read_results(results), read_references(references)
    names, alone = pair(made, known, partial)
    given = [known[name] for name in names], [made[name] for name in names]
    scores = score(*given, _names(metrics) or None, tokenizer, names)
    if per_picture:
        lines = ""
        for number, name in enumerate(names):
            each = {key: values[number] for key, values in scores.per_picture.items()}
            lines += json.dumps({"image_id": name, "caption": made[name], **each}) + "\n"
        write(per_picture, lines.encode())
    about = {
        "results": results.name,
        "results_sha256": sha256(results),
        "references": references.name,
        "references_sha256": sha256(references),
        **{what.replace(" ", "_"): count for what, count in alone.items()},
    }
    figures = {key: {**figure, **about} for key, figure in scores.figures.items()}
    _show({**figures, "left_out": {**scores.left_out, **alone}}, output)


def frontier(
    reference: Annotated[str, Option(help="real pictures: 'DATA/train-*.tar', or a folder")],
    output: Annotated[Path, Option("-o", "--output", help="folder of the page and points")],
    model: Annotated[str, Option(help="a run's folder, or any model")] = "digits",
    task: Annotated[
        str | None, Option(help="class_to_image or text_to_image (captions of the reference)")
    ] = None,
    pictures: Annotated[int, Option(min=2, help="pictures of each point")] = 500,
    ar_steps: Annotated[str, Option(help="numbers of AR steps")] = "1,2,4",
    schedulers: Annotated[
        str, Option(help="default: the model's own default one and dpmsolver++")
    ] = "",
    steps: Annotated[str, Option(help="numbers of inference steps")] = "5,10,20",
    guidance: Annotated[str, Option(help="scales; default: the model's own")] = "",
    features: Annotated[
        str | None, Option(help="as `eval fid` takes them; default: pixels or inception")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="pictures side by side")] = 64,
    seed: int = 0,
    device: Annotated[str | None, Option(help="such as cpu; default: a GPU if any")] = None,
) -> None:
    """Measure quality against time, for the page and for `Pipeline(budget_ms=...)`."""
    from mmfusion.eval.frontier import PAGE, Grid, measure_frontier, name_of
    from mmfusion.generation.budget import FILE, pareto

    grid = Grid(
        _numbers("--ar-steps", ar_steps, int),
        _names(schedulers),
        _numbers("--steps", steps, int),
        _numbers("--guidance", guidance, float),
    )
    found = measure_frontier(
        model, task, reference, output, grid, pictures, features, batch_size, seed, device
    )
    figure = found.quality
    for line in found.left_out:
        typer.echo(f"left out: {line}")
    typer.echo(
        f"{found.task} on {found.machine}; {figure['name']}, n = {figure['n']}, features "
        f"{figure['extractor']}, reference {figure['reference']}. The frontier:\n"
    )
    for point in pareto(found.points):
        typer.echo(f"{point.milliseconds:9.1f} ms {point.distance:9.3f}  {name_of(point.options)}")
    if "warning" in figure:
        typer.echo(f"\nwarning: {figure['warning']}")
    typer.echo(f"\nwrote {output / PAGE} and {output / FILE}")


def selftest(
    coco: Annotated[Path | None, Option(help="folder of COCO's gts.json and res.json")] = None,
    adm: Annotated[Path | None, Option(help="folder of ADM's files for ImageNet 256")] = None,
    inception: Annotated[Path | None, Option(help="with --adm: Inception's weights")] = None,
    output: Output = None,
) -> None:
    """Measure known numbers again. Exits with 1 when one differs; skipped is not passed."""
    from mmfusion.eval.formatting import save
    from mmfusion.eval.selftest import everything, run

    _check_output(output)
    checks: list[dict] = []
    for known in everything(coco, adm, inception):
        typer.echo(f"\n{known.source}" + (f": {known.needs}" if known.needs else ""))
        for check in run(known):
            checks.append(check)
            word = "skipped" if known.needs else "passed" if check["passed"] else "FAILED"
            expected = f"{check['expected']:>10.5g} ± {check['tolerance']:<7.1g}"
            shown = check.get("error") or check.get("found", "")
            typer.echo(f"  {word:<8} {check['name']:<10} {expected} {shown}".rstrip())
    verdicts = [check.get("passed") for check in checks]  # None where it is skipped
    count = {
        word: verdicts.count(verdict)
        for word, verdict in {"passed": True, "failed": False, "skipped": None}.items()
    }
    typer.echo("\n" + ", ".join(f"{number} {what}" for what, number in count.items()))
    if output:
        save(output, {**count, "checks": checks})
        typer.echo(f"wrote {output}")
    if count["failed"]:
        raise typer.Exit(1)


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written, before the work and not after it."""
    if output is not None:
        if output.is_dir():
            raise UserError(f"--output {output}: is a folder; name a JSON file")
        output.parent.mkdir(parents=True, exist_ok=True)


def _show(entries: dict[str, Any], output: Path | None) -> None:
    """Print a table of the figures among the entries, and write all of them."""
    from mmfusion.eval.formatting import save, table

    typer.echo(table(entries))
    if output:
        save(output, entries)
        typer.echo(f"wrote {output}")


def _names(given: str) -> list[str]:
    return given.replace(",", " ").lower().split()


def _numbers(option: str, given: str, kind: type) -> list:
    try:
        return [kind(name) for name in _names(given)]
    except ValueError:
        raise UserError(
            f"{option} {given}: give numbers with commas between, such as 1,2"
        ) from None
