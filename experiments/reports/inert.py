"""Text of a record made inert: whatever it holds, an output shows it and does nothing with it.

Records are passed from hand to hand. What a report shows of them goes through `inert`, once for each kind of output.
"""

import re
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import quote

Found = TypeVar("Found")

DEEPEST = 64  # parts within parts of a record; ours have seven
# letters, digits and what stands between them in names, versions and numbers; neither the beginning of a list, nor
# emphasis, nor an address that some reader of Markdown makes a link of
_PLAIN = re.compile(r"(?:[A-Za-z0-9]|(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])|[-./+,() @](?!$)|\)$)*")
# a word of a sentence, with what stands around and within one; no colon within, which an address or a role has
_WORD = re.compile(r"""["'(]*[A-Za-z0-9+-]?[A-Za-z0-9]*(?:[-./+,%'=][A-Za-z0-9]+)*%?[)"'.,;:?]*""")
_ACTIVE = re.compile(r"^[^A-Za-z0-9]|^\d+[.)]\s|www\.|@\S*\.|\B@\b|  ", re.IGNORECASE)


def inert(found: Found, how: Callable[[str], str], depth: int = 0) -> Found:
    """Return plain values with each text in them, keys too, as an output shows it.

    What has the names of our own fields, streams and estimators stays as it is.

    Raises:
        ValueError: The values are nested too deeply.
    """
    if depth > DEEPEST:
        raise ValueError(f"a record has parts within parts, more than {DEEPEST} deep")
    if isinstance(found, str):
        return cast(Found, how(found))
    if isinstance(found, dict):
        return cast(Found, {inert(key, how): inert(item, how, depth + 1) for key, item in found.items()})
    if isinstance(found, list):
        if {str, dict, list}.isdisjoint(map(type, found)):
            return found  # numbers, of which there may be millions
        return cast(Found, [inert(item, how, depth + 1) for item in found])
    return found


def shown(text: str) -> str:
    """Return a text in one line, as a console may print it: what cannot be seen, or acts, as an escape sequence."""
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)


def markdown(text: str) -> str:
    """Return a text as a piece of a line, or a cell, of Markdown: as it is if it is plain words, else as code."""
    if _PLAIN.fullmatch(text) and not _ACTIVE.search(text):
        return text
    return code(text.replace("|", "\\x7c"))  # a bar ends a cell, in code too


def prose(text: str) -> str:
    """Return sentences as part of a paragraph, or a cell, of Markdown: words as they are, all else as code.

    Not for the beginning of a line, where a word may be more than a word.
    """
    return " ".join(
        word if _WORD.fullmatch(word) and not re.search(r"www\.|@", word, re.IGNORECASE) else markdown(word)
        for word in text.split()
    )


def code(text: str) -> str:
    """Return a text as code in Markdown; not for a cell if there is a bar in it."""
    text = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inner = f" {text} " if not text.strip(" ") or text[0] in "` " or text[-1] in "` " else text
    return f"{fence}{inner}{fence}"


def link(path: str) -> str:
    """Return a path as the target of a link in Markdown."""
    return quote(path.encode("utf-8", "surrogatepass"))


def figure(text: str) -> str:
    """Return a text as matplotlib draws it letter by letter: no mathematics, and no label that a legend leaves out."""
    text = shown(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
