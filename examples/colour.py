"""Emoji in colour: drawn by name and style, captioned, edited, restyled and by example."""

from mmfusion import ImageSlot, Pipeline, grid

pipeline = Pipeline.from_pretrained("emoji")

# 130 names in four styles: noto, twemoji, fluent, emojione.
prompts = ["a mushroom, twemoji style", "a tulip, fluent style", "a star, noto style"]
mushroom, tulip, star = pipeline.text_to_image(prompts, seed=1)
print(pipeline.image_to_text(mushroom))

# The lower half under another name; the upper one stays.
edited = pipeline.edit(mushroom, "bottom", prompt="a red apple, twemoji style", seed=1)

# In words: the same thing as somebody else draws it.
*_, restyled = pipeline.generate([tulip, "the same in twemoji style", ImageSlot()], seed=1)

# Without words: the star in two styles says what is to become of the tulip.
other = pipeline.text_to_image("a star, twemoji style", seed=1)
*_, following = pipeline.generate([star, other, tulip, ImageSlot()], seed=1)
grid([mushroom, edited, tulip, restyled, star, other, tulip, following], columns=4).save(
    "colour.png"
)
