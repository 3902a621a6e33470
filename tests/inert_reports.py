"""Whether a report does nothing: its Markdown, its figures and what was printed show text, and no more."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from inert_pages import what_acts_on
from markdown_it import MarkdownIt  # what rich needs

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
BLOCKS = {"heading", "paragraph", "inline", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td"}
PIECES = {"text", "code_inline", "image", "softbreak", "strong_open", "strong_close"}
OWN = r"(figures/)?[^/:?#]+\.png"
ADDRESS = re.compile(r"://|www\.|mailto|\w@\S*\.\w|javascript", re.IGNORECASE)  # the dot of a sentence ends none


def what_acts(page: str, images: str = OWN, links: str = "(?!)") -> list[str]:
    """Return what of a page of Markdown is more than the words, tables, code and own images of a report.

    Where images come from, and links lead, must have these patterns; a report has no link.
    """
    found = [f"character {it!r}" for it in sorted(set(page)) if not it.isprintable() and it != "\n"]
    for token in READER.parse(page):
        if token.type.removesuffix("_open").removesuffix("_close") not in BLOCKS:
            found.append(f"{token.type}: {token.content[:80]!r}")
        for piece in token.children or ():
            if piece.type == "link_close" or (
                piece.type == "link_open" and re.fullmatch(links, str(piece.attrs["href"]))
            ):
                continue
            if piece.type not in PIECES:
                found.append(f"{piece.type}: {piece.content[:80]!r}")
            elif piece.type == "image" and not re.fullmatch(images, str(piece.attrs["src"])):
                found.append(f"image of {piece.attrs['src']!r}")
            elif piece.type == "text" and (re.search(r"[<$`\\]", piece.content) or ADDRESS.search(piece.content)):
                found.append(f"text {piece.content[:80]!r}")
    return found + [f"row {line[:80]!r}" for line in odd_rows(page)]


def odd_rows(page: str) -> list[str]:
    """Return the lines that have not as many bars as the first row of their table."""
    found, bars = [], 0
    for line in page.split("\n"):
        bars = (bars or line.count("|")) if line.startswith("|") else 0
        if bars and line.count("|") != bars:
            found.append(line)
    return found


def outline(page: str) -> list[str]:
    """Return the blocks of a page in their order, without their text."""
    return [f"{token.type} {token.tag}" for token in READER.parse(page) if token.type != "inline"]


def what_acts_in(folder: Path, printed: str) -> list[str]:
    """Return what of a folder's report, figures and lines on the console is more than text."""
    found = what_acts((folder / "report.md").read_bytes().decode())
    found += what_acts_on((folder / "report.html").read_bytes())
    found += [f"printed {it!r}" for it in sorted(set(printed)) if not it.isprintable() and it != "\n"]
    for path in folder.rglob("*"):
        if not path.name.isprintable():
            found.append(f"file {path.name!r}")
        if path.suffix == ".svg":
            found += [f"{it.tag} in {path.name}" for it in ElementTree.parse(path).iter() if odd_element(it)]
    return found


def odd_element(element: ElementTree.Element) -> bool:
    """Return whether an element of an SVG is none that matplotlib draws with, or has a link or a handler."""
    name = element.tag.rpartition("}")[2]
    links = [value for key, value in element.attrib.items() if key.endswith("href")]
    metadata = {"metadata", "RDF", "Work", "type", "creator", "Agent", "title", "format"}
    drawn = {"svg", "g", "path", "text", "tspan", "use", "defs", "style", "clipPath", "rect", "image", "pattern"}
    return (
        name not in drawn | metadata
        or any(key.lower().startswith("on") for key in element.attrib)
        or (name != "image" and any(not link.startswith("#") for link in links))
    )
