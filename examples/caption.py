"""Captions of pictures, and how likely the model finds others."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mmfusion import Pipeline

pipeline = Pipeline.from_pretrained("digits")

# Real handwriting; pictures of any size and mode will do, as Image.open("mine.jpg").
real = [
    Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)) for image in load_digits().images
]

print(pipeline.image_to_text(real[0]))
for caption in pipeline.image_to_text(real, beams=3):
    print(caption)
print(pipeline.image_to_text(real[0], temperature=1.0, seed=7))  # drawn, not the likeliest

for caption in ("the digit 0", "the digit 8"):
    found = pipeline.log_likelihood(real[0], caption)
    print(f"{caption}: log p = {found.log_probability:.1f}")
