"""What every part of the configuration is: strict, typed, and refused with the key's path."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmfusion.errors import UserError

Positive = Field(gt=0)


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, never changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def build(kind: type[S], raw: Any, name: str) -> S:
    """Validate plain data as a config section.

    Raises:
        UserError: naming `name`, every wrong key and what is wrong with it.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}"
            + (f" (got {e['input']!r})" if isinstance(e["input"], (str, int, float)) else "")
            for e in error.errors()
        ]
        raise UserError(f"{name}:\n" + "\n".join(lines)) from None
