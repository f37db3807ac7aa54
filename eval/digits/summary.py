"""The digits suite's scores for people, on the page and in a terminal: a row each."""

from typing import Any

from ..formatting import Row


def summary(report: dict[str, Any]) -> list[Row]:
    """What the suite measured, with what real digits reach where that can be said."""
    classes, told = report["class_to_image"], report["image_to_text"]
    following, edit, distance = (report[k] for k in ("interleaved", "edit", "frechet_pixel"))
    judge = report["judge"]
    real = f"of real ones the judge sees {_share(judge['accuracy_on_held_out'])}"
    return [
        _right("Class → image", classes, f"the judge sees the class; {real}"),
        _right("Text → image", report["text_to_image"], "the judge sees the caption's digit"),
        _right("Image → text", told, "the caption names a held-out picture's digit, and no other"),
        Row(
            "CIDEr",
            f"{told['cider']:.2f}",
            told["n"],
            f"against ten wordings; tokenizer: {told['cider_tokenizer']}",
            told.get("cider_warning", ""),
        ),
        _right("Interleaved", following, "after a picture and “then comes”: next name and picture"),
        _right("… its name", following, "the text names the next digit, and no other", "name_"),
        _right("… its picture", following, "the judge sees the next digit", "picture_"),
        _right("Editing", edit, "bottom half drawn anew under the own label: the judge sees it"),
        _right(
            "… another label", edit, "bottom half drawn anew under another label", "other_label_"
        ),
        Row(
            "… top half kept",
            "yes" if edit["kept_identical"] else "NO",
            edit["n"] + edit["other_label_n"],
            "bit for bit, in all edits",
            "",
        ),
        Row(
            "Fréchet distance",
            f"{distance['value']:.2f}",
            distance["n"],
            f"{distance['features']}, against {distance['reference']}; lower is better. "
            f"{distance['n_held_out']} real held-out pictures: {distance['held_out_value']:.2f}",
            "",
        ),
        Row(
            "Memorised",
            _share(report["memorised"]),
            classes["n"],
            f"nearer than {report['memorised_threshold']:.2f} to a training picture, as 5% of real "
            "held-out pictures are",
            "",
        ),
    ]


def _right(title: str, of: dict[str, Any], note: str, part: str = "") -> Row:
    return Row(title, _share(of[f"{part}accuracy"]), of.get(f"{part}n", of["n"]), note, "")


def _share(share: float) -> str:
    return f"{100 * share:.1f}%"
