"""`mmfusion import ...`: other projects' weights as our folders."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Read other projects' weights, safely.", no_args_is_help=True)

Checkpoint = Annotated[Path, typer.Argument(help="a file written by torch.save")]


@app.command()
def causalfusion(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Argument(help="folder of the exported model")],
    weights: Annotated[
        Literal["ema", "model"] | None,
        typer.Option(help="which of them (default: ema, else model, else a bare state dict)"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="JSON list of class names (default: numbers)")
    ] = None,
    vae: Annotated[
        str, typer.Option(help="folder or hub id of the diffusers AutoencoderKL")
    ] = "data/vae/mar-kl16",
    channels: Annotated[
        int | None, typer.Option(min=1, help="channels of a latent cell (default: 16 if they fit)")
    ] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="latent cells a token side (default: from channels)")
    ] = None,
    downsampling: Annotated[int, typer.Option(min=1, help="pixels a side of one latent cell")] = 16,
) -> None:
    """Write an official CausalFusion checkpoint as an exported model, in fp32."""
    from mmfusion.importers.causalfusion import Options, import_causalfusion

    options = Options(weights, patch, channels, downsampling, vae, classes)
    config = import_causalfusion(checkpoint, output, options)
    image, decoder, names = config.image, config.decoder, config.classes
    typer.echo(
        f"wrote {output}: width {decoder.width}, depth {decoder.depth}, heads {decoder.heads}, "
        f"{decoder.label_tokens} tokens a label, {len(names)} classes ({names[0]} to {names[-1]})\n"
        f"pictures of {image.size} pixels: {image.grid[0]} x {image.grid[1]} tokens, patch "
        f"{image.patch}, {image.latent_channels} latent channels, downsampling {image.downsampling}"
    )
    if (image.patch, image.latent_channels, channels, patch) == (1, 16, None, None):
        typer.echo(
            "taken for MAR's 16 channels; 4 channels of patch 2, as of Stable Diffusion's "
            "autoencoder, are --channels 4 --downsampling 8 --vae FOLDER"
        )
    if not Path(vae).is_dir():
        typer.echo(f"the autoencoder {vae} is no folder here: the model looks for it when loaded")


@app.command("mar-vae")
def mar_vae(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Argument(help="folder of the diffusers AutoencoderKL")],
) -> None:
    """Write MAR's KL-16 autoencoder (kl16.ckpt) as a diffusers folder, for a config's image.vae."""
    from mmfusion.importers.mar_vae import import_mar_vae

    taken, left = import_mar_vae(checkpoint, output)
    typer.echo(f"wrote {output}: {taken} tensors" + (f", {left} others left out" if left else ""))
