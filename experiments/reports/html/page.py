"""A page as one file: templates that escape whatever they are given, our style and script by their hashes alone."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from loopgrad.experiments.reports.html.parts import Page

# nothing is fetched, sent or embedded; of styles and scripts ours alone, by their hashes; no text becomes markup
POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


def document(page: Page) -> bytes:
    """Return a page as HTML, the same bytes for the same page; its texts are shown and do nothing.

    Args:
        page: What it holds; texts in one line each, see `inert.shown`.
    """
    style, script = _own("page.css"), _own("page.js")
    policy = POLICY.format(style=_hash(style), script=_hash(script))
    text = _environment().get_template("page.html").render(page=page, policy=policy, style=style, script=script)
    return text.encode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_own),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _own(name: str) -> str:
    return (files("loopgrad.experiments.reports.html") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
