"""Names of classes and groups: one normal form, nothing invisible, no two that look alike."""

import math
import unicodedata
from collections.abc import Iterable

from selfloop_jax.errors import UsageError

# Letters of other scripts that look like Latin ones: of Cyrillic, Greek, Armenian and Cherokee, and
# signs that look like those of ASCII. After Unicode's confusables.txt (UTS 39); what NFKC maps to
# ASCII by itself (full-width forms, ligatures, mathematical letters) needs no entry.
_PAIRS = (
    ("АВЕЅІЈКМНОРСТУХҮԌԚԜ", "ABESIJKMHOPCTYXYGQW"),
    ("аеѕіјорсухԁԛԝһӏ", "aesijopcyxdqwhl"),
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγικνορυϲϳ", "ABEZHIKMNOPTYXayikvopucj"),
    ("ՍՏՕհոսցօᎠᎡᎢᎪᎫᎳᎻᏀᏃᏚᏞᏟᏢᏦ", "USOhnugoDRTAJWMGZSLCPK"),
    ("ıɑɡɩℓ", "iagil"),
    ("‐‒–—−﹘’‘ʼ′`“”″", "------'''''\"\"\""),
)
LOOK_ALIKES = str.maketrans(*("".join(one) for one in zip(*_PAIRS, strict=True)))
MISSING = ("nan", "<na>", "nat")  # what pandas and NumPy write where a value is missing


def normal(text: str, place: str) -> str:
    """The name as it is compared and stored: NFC, without white space around it.

    UsageError, which `place` begins, where it is empty, is not UTF-8, or holds a character that
    nobody sees.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if not name:
        raise UsageError(f"{place} = {text!r}: must be a name or an integer")
    # Most names are plain; a table can have millions of rows.
    for character in "" if name.isascii() and name.isprintable() else name:
        if fault := _fault(character):
            raise UsageError(f"{place} = {text!a}: must not hold {character!a}, {fault}")
    if name.lower() in MISSING:
        raise UsageError(f"{place} = {text!r}: must be a name; tables write this for a missing one")
    return name


def check_distinct(names: Iterable[str], place: str) -> None:
    """Raises UsageError, which `place` begins, where two names look alike or are one number."""
    seen: dict[str | float, str] = {}
    for name in names:
        for key in _keys(name):
            other = seen.setdefault(key, name)
            if other != name:
                same = "are one number" if isinstance(key, float) else "look alike"
                raise UsageError(f"{place}: {other!a} and {name!a} {same}; must have one spelling")


def looks(name: str) -> str:
    """The same text for all names that look alike."""
    return " ".join(unicodedata.normalize("NFKC", name).translate(LOOK_ALIKES).split())


def _fault(character: str) -> str:
    """Why a name cannot hold a character; "" if it can."""
    category = unicodedata.category(character)
    name = unicodedata.name(character, "a character without a name")
    if category == "Cs":
        return "a byte that is not UTF-8"
    if category in ("Cc", "Zl", "Zp"):
        return "a control character"
    # The fillers of Hangul count as letters, the blank of Braille as a symbol.
    blank = "FILLER" in name or name == "BRAILLE PATTERN BLANK"
    unseen = "VARIATION SELECTOR" in name or name == "COMBINING GRAPHEME JOINER"
    if category in ("Cf", "Cn", "Co") or blank or unseen:
        return f"which is invisible or unassigned ({name})"
    if category == "Zs" and character != " ":
        return f"which looks like a blank ({name})"
    return ""


def _keys(name: str) -> list[str | float]:
    """What two names have in common that are taken for one: how they look, and their number."""
    alike = looks(name)
    # Letters are classes of their own in either case; in longer names it is a slip.
    keys: list[str | float] = [alike if len(alike) == 1 else alike.casefold()]
    try:
        number = float(name)
    except ValueError:
        return keys
    return keys if math.isnan(number) or math.isinf(number) else [*keys, number]
