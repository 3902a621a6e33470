"""Whether a page of HTML does only what ours does: elements and attributes from a list, no address, our script."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files

TEMPLATES = files("loopgrad.experiments.reports.html") / "templates"
OWN = {name: (TEMPLATES / f"page.{kind}").read_text() for name, kind in (("style", "css"), ("script", "js"))}
VOID = {"meta", "link", "input"}
EVERYWHERE = {"class", "id", "hidden", "tabindex", "role", "aria-label", "aria-labelledby", "aria-live", "aria-hidden"}
ALLOWED = {
    "html": {"lang"},
    "meta": {"charset", "http-equiv", "content", "name"},
    "link": {"rel", "href"},
    "a": {"href"},
    "button": {"type"},
    "input": {"type", "autocomplete", "spellcheck", "min", "max", "value"},
    "th": {"scope", "data-v"},
    "td": {"data-v"},
    "svg": {"viewbox", "preserveaspectratio"},
    "rect": {"x", "width", "height"},
    "path": {"d", "data-x", "data-y"},
    "text": {"x", "y", "text-anchor", "transform"},
    **{name: set() for name in "head body title style script header main footer section nav div p span b ul".split()},
    **{name: set() for name in "li dl dt dd h1 h2 table thead tbody tr figure figcaption output label".split()},
    **{name: set() for name in "details summary pre g ol mark".split()},
}
VALUES = {
    "href": r"#[a-z0-9-]+|data:,",
    "class": r"[a-z0-9 ]*",
    "id": r"[a-z0-9-]+",
    "d": r"[MLHVZhvlaz0-9., e-]*",
    "data-x": r"[0-9.]+",
    "data-y": r"[0-9.]+",
    "data-v": r"-?[0-9.]+(e[+-][0-9]+)?",
    "tabindex": "0",
    "type": "button|search|range",
    **dict.fromkeys(("min", "max", "value"), r"[0-9]+"),
    "x": r"[0-9.]+",
    "y": r"[0-9.]+",
    "width": r"[0-9.]+",
    "transform": r"rotate\(-90 14 [0-9.]+\)",
}


class Reader(HTMLParser):
    """Notes what of a page is not on the list."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.policies: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in ALLOWED:
            self.found.append(f"element {tag}")
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.found.append(f"twice in {tag}: {names}")
        for name, value in attrs:
            if name not in EVERYWHERE | ALLOWED.get(tag, set()):
                self.found.append(f"attribute {name} of {tag}")
            if name in VALUES and not re.fullmatch(VALUES[name], value or ""):
                self.found.append(f"{name}={value!r} of {tag}")
            if name == "content" and (value or "").startswith("default-src"):
                self.policies.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.found.append(f"</{tag}> where another element is open")

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside in OWN:
            self.text[inside] = self.text.get(inside, "") + data
        elif not all(it.isprintable() or it == "\n" for it in data):
            self.found.append(f"character in {data[:80]!r}")

    def handle_comment(self, data):
        self.found.append(f"comment {data[:80]!r}")

    def handle_pi(self, data):
        self.found.append(f"instruction {data[:80]!r}")

    def unknown_decl(self, data):
        self.found.append(f"declaration {data[:80]!r}")

    def handle_decl(self, decl):
        if decl != "doctype html":
            self.found.append(f"declaration {decl[:80]!r}")


def read(page: bytes) -> Reader:
    """A page as the parser of the standard library reads it."""
    reader = Reader()
    reader.feed(page.decode())
    reader.close()
    return reader


def what_acts_on(page: bytes) -> list[str]:
    """Return what of a page is more than the elements, attributes, style and script of a report."""
    reader = read(page)
    found = list(reader.found)
    if reader.open:
        found.append(f"left open: {reader.open}")
    if reader.text != OWN or reader.seen["script"] != 1 or reader.seen["style"] != 1:
        found.append("style or script is not ours alone")
    if len(reader.policies) != 1 or page.index(b"Content-Security-Policy") > page.index(b"<title>"):
        found.append(f"policies {reader.policies}")
    rules = dict(rule.strip().partition(" ")[::2] for rule in reader.policies[0].split(";"))
    hashes = {
        name: f"'sha256-{base64.b64encode(hashlib.sha256(it.encode()).digest()).decode()}'" for name, it in OWN.items()
    }
    expected = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": hashes["style"],
        "script-src": hashes["script"],
    }
    expected |= {"base-uri": "'none'", "form-action": "'none'"}
    expected |= {"require-trusted-types-for": "'script'", "trusted-types": "'none'"}
    return found + [f"policy {name}" for name in expected | rules if rules.get(name) != expected.get(name)]
