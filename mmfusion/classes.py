"""Class names from a file, as `mmfusion data imagenet` writes it."""

import json
from pathlib import Path

from mmfusion.errors import UserError


def read_names(path: Path, count: int | None) -> list[str] | None:
    """The names in a JSON list of `count` names; None when there is no such file.

    Raises:
        UserError: the file holds something else, or another number of names.
    """
    try:
        names = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"classes_file {path}: not readable JSON ({error})") from None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(f"classes_file {path}: expected a JSON list of class names")
    if count and len(names) != count:
        raise UserError(f"classes_file {path}: has {len(names)} names; class_count says {count}")
    return names
