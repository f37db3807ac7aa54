"""Icon sets of Iconify as npm packs them: named drawings as SVG, with what they are called.

`package/icons.json` has the drawings, `chars.json` code points of names, `metadata.json` categories
(docs: iconify.design, IconifyJSON). A package is data from elsewhere: nothing in it is run, and a
drawing that refers to a file or an address is left out.
"""

import gzip
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.errors import UserError, first_line
from mmfusion.manifest import sha256

MOST_BYTES = 1 << 28  # of a JSON file
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONED = re.compile(rf"(.+?)-({'|'.join(TONES)})(-skin-tone)?(-.*)?")
SKIN = re.compile(r"(^|-)1f3f[b-f](-|$)")
FLAG = re.compile(r"(^|-)(1f1[ef][0-9a-f]|e007f)(-|$)")  # regional letters, tags
OUTSIDE = re.compile(r"""(?:href\s*=\s*["']|url\(\s*["']?)(?!\s*#|data:image/png)""")


@dataclass(frozen=True)
class IconSet:
    """A designer's drawings.

    Attributes:
        prefix: the set's name.
        icons: name -> square SVG, without flags, skin tones and what the set itself hides.
        codes: name -> code points, where the set knows them.
        other_names: name -> aliases.
        categories: category -> names.
        digest: SHA-256 of the package.
    """

    prefix: str
    icons: dict[str, str]
    codes: dict[str, str]
    other_names: dict[str, list[str]]
    categories: dict[str, list[str]]
    digest: str

    @property
    def style(self) -> str:
        """What captions call it: `fluent` for `fluent-emoji-flat`."""
        return self.prefix.removesuffix("-flat").removesuffix("-emoji")


def read_set(path: Path) -> IconSet:
    """Read a package, such as `npm pack @iconify-json/noto` fetches.

    Raises:
        UserError: it is none, or is cut short.
    """
    try:
        found = _members(path)
        icons, aliases = found["icons"], found["icons"].get("aliases", {})
        codes = {str(name): _code(code) for code, name in reversed(found["chars"].items())}
        other: dict[str, list[str]] = {}
        for name, alias in aliases.items():
            if alias.keys() == {"parent"}:  # not turned or mirrored
                other.setdefault(alias["parent"], []).append(name)
        drawn = {
            name: _svg(icon, icons)
            for name, icon in icons["icons"].items()
            if not icon.get("hidden") and not OUTSIDE.search(icon["body"])
        }
        categories = found["metadata"].get("categories", {})
        prefix = str(icons["prefix"])
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; fetch it with `npm pack @iconify-json/NAME`"
        ) from None
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, EOFError,
            gzip.BadGzipFile) as error:  # fmt: skip
        raise UserError(
            f"{path}: not a whole package of an icon set, as `npm pack @iconify-json/NAME` gives "
            f"it ({first_line(error)})"
        ) from None
    kept = {name: svg for name, svg in drawn.items() if not _left_out(name, codes, drawn)}
    return IconSet(prefix, kept, codes, other, categories, sha256(path))


def _members(path: Path) -> dict[str, Any]:
    """The package's JSON files by name; all but `icons` may be missing."""
    found: dict[str, Any] = {"chars": {}, "metadata": {}}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            name = member.name.removeprefix("package/").removesuffix(".json")
            file = tar.extractfile(member) if name in ("icons", "chars", "metadata") else None
            if file and member.size <= MOST_BYTES:
                found[name] = json.load(file)
    return found


def _code(code: str) -> str:
    """Code points without the selector of colour, which makes no difference here."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _left_out(name: str, codes: dict[str, str], drawn: dict[str, str]) -> bool:
    """Whether it is a flag, or a drawing of which another skin tone exists without a tone."""
    code = codes.get(name, "")
    toned = TONED.fullmatch(name)
    tone = toned and (toned[3] or f"{toned[1]}{toned[4] or ''}" in drawn)
    return bool(name.startswith("flag-") or FLAG.search(code) or SKIN.search(code) or tone)


def _svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """An icon in the middle of a square."""
    left, top, width, height = (
        float(icon.get(key, icons.get(key, default)))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"]}</svg>'
    )
