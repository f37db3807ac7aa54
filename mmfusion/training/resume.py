"""Which settings a run may go on with: not with those that make another model or another loss.

| may differ from the checkpoint's | why |
|---|---|
| `train`, but for `text_weight` | how it is optimised, at what precision, on which stage; saving |
| `generation`, `evaluation` | what is done with the model |
| `data.workers`, `micro_rows`, `capacity`, `most_lost`, `pipeline`, and the number of ranks | how |
| a source's `weight` (with a warning), and the path to its shards | the samples are compared |
| `text.tokenizer`, `image.vae`, `image.linear`, | places: what |
| `classes_file`, `class_count` | is there is compared |

All else is refused. Of the data the loader says whether they are the same, since it knows what the
checkpoint's cursors mean.
"""

from collections.abc import Callable, Iterator
from reprlib import Repr
from typing import Any

from mmfusion.config import Config
from mmfusion.config.section import Section, dotted
from mmfusion.errors import UserError
from mmfusion.overrides import Key, read_yaml
from mmfusion.training.checkpoint import Checkpoint

FREE = {("train",), ("generation",), ("evaluation",), ("text", "tokenizer"), ("image", "vae"),
        ("image", "linear"), ("classes_file",), ("class_count",), ("data",), ("seed",)}  # fmt: skip
"""Keys that may differ, and those that the loader compares."""
FIXED = {("train", "text_weight")}
"""Those within them that may not."""
_short = Repr()
_short.maxlist, _short.maxstring, _short.maxother = 3, 60, 60


def go_on(
    saved: Checkpoint,
    config: Config,
    resume: Callable[[dict[str, Any], dict[int, list[int]]], None],
) -> None:
    """Let the data go on from a checkpoint; called before anything is loaded or written."""
    path = saved.path / "config.yaml"
    before = read_yaml(path.read_text(encoding="utf-8"), str(path))
    found = list(_differences(before, config))
    try:
        resume(saved.state.layout or {}, saved.state.slots or {})
    except UserError as error:
        found.append(str(error))
    if found:
        told = "\n".join(found).replace("\n", "\n  ")
        raise UserError(
            f"checkpoint {saved.path}: was trained with other settings. Set them back to go on, or "
            f"train anew into another folder (train.output=...):\n  {told}"
        )


def _differences(before: Any, now: Any, key: Key = ()) -> Iterator[str]:
    """A line for each key whose value may not differ and does.

    What an older version did not know had its default. What it allowed is not validated: it is no
    mistake of today's config.
    """
    before = before.model_dump() if isinstance(before, Section) else before
    if isinstance(before, dict) and isinstance(now, Section):
        for name, field in type(now).model_fields.items():
            default = None if field.is_required() else field.get_default()
            yield from _differences(before.get(name, default), getattr(now, name), (*key, name))
        return
    now = now.model_dump() if isinstance(now, Section) else now
    if before != now and (key in FIXED or not any(key[:n] in FREE for n in range(len(key) + 1))):
        yield f"{dotted(key)}: was {_short.repr(before)}, is now {_short.repr(now)}"
