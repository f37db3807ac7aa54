"""Pictures of prompts and of classes."""

from mmfusion import Pipeline, grid

pipeline = Pipeline.from_pretrained("digits")

picture = pipeline.text_to_image("a handwritten seven", seed=1)
picture.save("seven.png")

# A list gives a list. Picture i uses seed + i, so it does not depend on what is drawn beside it.
pictures = pipeline.class_to_image([*range(10)] * 3, seed=1, guidance=2.0, progress=True)
grid(pictures, columns=10).save("classes.png")

# Of eight candidates, the one in which the model itself reads the prompt most clearly.
pipeline.text_to_image("the number four", best_of=8).save("four.png")


def watch(item: int, share: float, picture: object) -> None:
    """Called while noise becomes a picture."""
    print(f"picture {item}: {share:.0%} done")


pipeline.text_to_image("the digit 3", num_inference_steps=10, on_picture=watch).save("three.png")
