"""A part of a picture is drawn anew under a prompt or a class; the rest stays as it is."""

from PIL import Image, ImageDraw

from mmfusion import Pipeline, grid

pipeline = Pipeline.from_pretrained("digits")
seven = pipeline.text_to_image("a handwritten seven", seed=1)

# Regions by name: top, bottom, left, right, center, and outpaint (all but the middle).
nine = pipeline.edit(seven, "top", label="nine", seed=1)

# Or a mask: a picture, white where to draw anew.
mask = Image.new("L", seven.size, 0)
ImageDraw.Draw(mask).rectangle((4, 0, 7, 7), fill=255)  # the right half of 8 x 8 pixels
four = pipeline.edit(seven, mask, prompt="a handwritten four", seed=1)

# One picture under several classes: lists of the same length.
others = pipeline.edit([seven] * 5, "bottom", label=[1, 2, 3, 4, 9])
grid([seven, nine, four, *others]).save("edited.png")
