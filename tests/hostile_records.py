"""Records that somebody has tampered with, anywhere in a real one, by a seed or knowing what reports are made of."""

import json
import random
from collections.abc import Iterator
from typing import Any

TEXTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "a\\|b\\",
    "\n\n# heading\n\n- item\n\n---\n",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "[x]: http://evil.example",
    "<http://evil.example>",
    "http://evil.example and www.evil.example and a@evil.example",
    "```\n<b>",
    "`` ` ``` `x`",
    "`",
    "``",
    "``` python",
    "*a* **b** _c_ ~~d~~ ==e==",
    "_",
    "__init__",
    "1. a",
    "- a",
    "    indented",
    "> quoted",
    "&lt;b&gt; &#60;b&#62;",
    "[bold red]x[/bold red]",
    "[/nope]",
    "[link=http://evil.example]x[/link]",
    ":warning: :smile:",
    "\x1b]8;;http://evil.example\x1b\\x\x1b]8;;\x1b\\",
    "\x1b[31m\x1b[2J\x1b]0;title\x07",
    "\x9b31m\x90",
    "\r\roverwritten",
    "\x00\x08\x7f",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "\u2028\u2029\x85",
    "\ud800 \udfff",
    "$\\frac{$",
    "$x$ and $$y$$",
    "\\$x\\$",
    "$",
    "_hidden",
    "{x} {0} %s ${x} {{x}}",
    "{eval-rst}`x` {ref}`y` :::{note}",
    "../../../../tmp/x",
    "/etc/passwd",
    "C:\\Windows\\x",
    "nul\0name/../..",
    "e\u0301\u0301\u0301\u0301",
    "\U0001f600\U000e0001",
    "x" * 150,
    "x" * 1_000,
    "",
    " ",
    "joint",
    "bptt",
    "z_L",
    "Infinity",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus=alert(1) x='",
    "x onload=alert(1) />",
    "</title></svg></style></script><script>alert(1)</script>",
    "</pre></textarea><svg/onload=alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<svg><use href='data:image/svg+xml;base64,PHN2Zy8+#x'/></svg>",
    "<base href=//evil.example><meta http-equiv=refresh content=0;url=//evil.example>",
    "--><!-- <![CDATA[ ]]> <?php ?> <!doctype x>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}{# x #}",
    "&quot; &#x22; &lt;img src=x&gt; &NewLine;",
    "url(//evil.example/x.css) expression(alert(1)) @import 'x'",
)
# as they stand in JSON
NUMBERS = (
    "1e999 -1e999 NaN -Infinity 1e308 -1e308 1e-320 -0.0 0 -1 1 3 1.5 9223372036854775807 9223372036854775808 true null"
).split() + ["9" * 400, "9" * 5000, '"5"', '"x"', "[]", "{}", "[[[[]]]]", '{"a": 1}', "[1e308, 1e308, 1e308]"]
LINES = (
    "",
    "null",
    "[]",
    "{}",
    '"x"',
    '{"a": ' * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '{"depths": ' + "[" * 100 + "]" * 100 + "}",
    '{"depths": []}',
    '{"depths": null, "name": "x"}',
    '{"a": 1, "a": 2}',
    '{"a": 1}{"b": 2}',
    "{'a': 1}",
    "\x00",
    '{"a": "\t"}',
    '{"a": "\\x"}',
    '{"a": 1,}',
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within one; of a long list, those of the first three."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in items:
        if key != "config":
            yield (*path, key)
            yield from places(item, (*path, key))


def tampered(found: list[dict[str, Any]], seed: int) -> bytes:
    """A file of records, changed in one to three ways by a seed."""
    rng = random.Random(seed)
    found = json.loads(json.dumps(found))
    literal = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mine = rng.sample(found, rng.choice((1, len(found))))
        all_places = list(places(mine[0]))
        path = rng.choice(all_places)
        way = rng.choice(("text", "text", "text", "name", "number", "number", "drop", "long"))
        if way == "text":
            texts = [it for it in all_places if isinstance(at(mine[0], it), str)]
            path = rng.choice(texts)
        value = rng.choice(TEXTS if way in ("text", "name") else NUMBERS)
        for record in mine:
            try:
                change(record, path, way, value, literal)
            except (KeyError, IndexError, TypeError):
                pass  # the records differ there
    lines = [json.dumps(record) for record in found]
    for mark, number in literal.items():
        lines = [line.replace(json.dumps(mark), number) for line in lines]
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))
    data = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\n\n")).join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        where = rng.randrange(len(data))
        data = rng.choice((data[:where], data[:where] + b"\xff" + data[where:], b"\xef\xbb\xbf" + data))
    return data


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def change(record: dict[str, Any], path: tuple[Any, ...], way: str, value: str, literal: dict[str, str]) -> None:
    """Change what stands at a path; a number goes into `literal`, from where it is put into the text of the record."""
    *outer, key = path
    inside = at(record, tuple(outer))
    if way == "text":
        inside[key] = value
    elif way == "name" and isinstance(inside, dict):
        inside[value] = inside.pop(key)
    elif way == "drop":
        del inside[key]
    elif way == "long" and isinstance(inside[key], list):
        inside[key] = inside[key] * 30
    else:
        mark = f"number {len(literal)}"
        literal[mark] = value
        inside[key] = mark
