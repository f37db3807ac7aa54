"""`mmfusion eval selftest`."""

from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.evaluation.output import check_output


def selftest(
    coco: Annotated[
        Path | None, typer.Option(help="folder of COCO's example captions: gts.json, res.json")
    ] = None,
    adm: Annotated[
        Path | None, typer.Option(help="folder of ADM's files for ImageNet 256; with --inception")
    ] = None,
    inception: Annotated[Path | None, typer.Option(help="file of Inception's weights")] = None,
    work: Annotated[Path, typer.Option(help="folder for features")] = Path("runs/selftest"),
    device: Annotated[str | None, typer.Option(help="default: a GPU, or the CPU")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file")] = None,
) -> None:
    """Measure known numbers again. Exits with 1 when one differs; skipped is not passed."""
    from mmfusion.eval.formatting import save
    from mmfusion.eval.selftest import checks, run

    check_output(output)
    done: list[dict] = []
    for check in checks(coco, adm, inception, work, device):
        if not done or done[-1]["source"] != check.source:
            typer.echo(f"\n{check.source}" + (f": {check.needs}" if check.needs else ""))
        done.append(run(check))
        typer.echo(f"  {_line(done[-1])}")
    count = {
        "passed": sum(check.get("passed") is True for check in done),
        "failed": sum(check.get("passed") is False for check in done),
        "skipped": sum("skipped" in check for check in done),
    }
    typer.echo("\n" + ", ".join(f"{number} {what}" for what, number in count.items()))
    if output:
        save(output, {**count, "checks": done})
        typer.echo(f"wrote {output}")
    if count["failed"]:
        raise typer.Exit(1)


def _line(check: dict) -> str:
    known = f"{check['name']:<10} {check['expected']:>10.5g} ± {check['tolerance']:<7.1g}"
    if "skipped" in check:
        return f"skipped  {known}".rstrip()
    found = check["error"] if check["found"] is None else f"{check['found']:.6g}"
    return f"{'passed' if check['passed'] else 'FAILED'}   {known} {found}"
