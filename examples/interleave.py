"""Prompts in which text and pictures alternate; slots say what is to be filled, and where."""

from mmfusion import ImageSlot, Pipeline, TextSlot, grid

pipeline = Pipeline.from_pretrained("digits")
one, two, three, four = pipeline.class_to_image(["one", "two", "three", "four"], seed=1)

# The digits model was trained on: a picture, "then comes", a name, its picture.
prompt = [three, "then comes", TextSlot(), ImageSlot(guidance=3.0)]
_, _, name, following = pipeline.generate(prompt, seed=1)
print(name)

# Analogy: examples stand before the question. One is to two as three is to ...
shown = [one, "then comes", "two", two]
*_, answer = pipeline.generate([*shown, three, "then comes", ImageSlot()], seed=1)

# What is filled is read by the slots after it: a story that goes on from picture to picture.
story = [four, "then comes", ImageSlot(), "then comes", ImageSlot()]
_, _, five, _, six = pipeline.generate(story, seed=1)
grid([three, following, answer, four, five, six]).save("interleaved.png")
