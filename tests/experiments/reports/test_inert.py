"""Text that somebody else wrote, in Markdown, on the console, in a figure and in the name of a file."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inert_reports import outline, what_acts
from markdown_it import MarkdownIt
from rich.console import Console

from loopgrad.experiments.records import slug
from loopgrad.experiments.reports.inert import code, figure, inert, link, markdown, prose, shown
from loopgrad.experiments.reports.tables import console_table, how_made, table
from loopgrad.experiments.reports.whole import say

TEXT = st.text(
    st.sampled_from("ab1 _*`|<>[]()!#-+.:/@$\\~&\n\r\t\x1b\u202e\u200bé\ud800") | st.characters(), max_size=12
)


@pytest.mark.parametrize(
    "text",
    [
        "bptt",
        "last_cycle",
        "sudoku4-trm_mlp/bptt-seed0@100",
        "Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz",
        "Intel(R) Xeon(R) Processor, 2 of 2 cores",
        "2.13.0+cpu",
        "16470b2241b5",
        "2026-11-24",
        "",
    ],
)
def test_ordinary_names_and_versions_read_as_they_are(text):
    assert markdown(text) == shown(text) == figure(text) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", r"`a\x7cb`"),
        ("a\nb", r"`a\nb`"),
        ("\x1b[31m", r"`\x1b[31m`"),
        ("\u202eb\ud800", r"`\u202eb\ud800`"),
        ("_x_", "`_x_`"),
        ("1. a", "`1. a`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("www.a.b", "`www.a.b`"),
        ("a@b.c", "`a@b.c`"),
        ("größe", "`größe`"),
    ],
)
def test_anything_else_is_shown_as_code(text, written):
    assert markdown(text) == written


@settings(max_examples=300)
@given(TEXT)
@example("` `` ```")
def test_markdown_has_the_blocks_it_has_with_plain_words(text):
    def page(name, command):
        made = {"command": command, "commit": name, "date": name, "device": name, "versions": {name: name}}
        lines = [f"# {markdown(name)} on {markdown(name)}", "", f"After 5 steps of {markdown(name)}.", ""]
        lines += [
            f"- {markdown(name)}: x",
            "",
            f"**{markdown(name) or '-'}**",
            "",
            f"![{markdown(name)}]({link(name)}.png)",
            "",
        ]
        return "\n".join([*lines, *table(["a", "b"], [[markdown(name), f"{markdown(name)}@5"]]), "", *how_made(made)])

    found = page(text, text)
    assert outline(found) == outline(page("x", "x"))
    assert not [it for it in what_acts(found) if not it.startswith("image")]


WORDS = """A net, it's 87.4 % and 50%; T=3 or (12 updates; once) "as said", ("so.") +5.0 1,000 HRM's O(T) x/y \
e.g., 9x9: why?"""


@pytest.mark.parametrize(
    "text",
    [
        WORDS,
        'TRM 87.4 % with two layers, 79.5 % with four (half of the updates); "out of memory" under T=3 and T=6.',
        'Others find that it does (EqR, arXiv 2605.21488). It doesn\'t - or does it? "No," they say.',
        "the last_cycle of Jolicoeur-Martineau 2025, section 3.1: updates_12_T3 and/or 1,000 puzzles, 0.5 to 1e-4",
        "",
    ],
)
def test_sentences_read_as_they_are(text):
    assert prose(text) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*WORDS.split(), "of", "the", "recursion"]), max_size=12))
def test_words_of_sentences_stay_in_any_order(words):
    assert prose(" ".join(words)) == " ".join(words)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("see https://evil.example now", "see `https://evil.example` now"),
        ("see www.evil.example, please", "see `www.evil.example,` please"),
        ("ask me@evil.example", "ask `me@evil.example`"),
        ("ask @someone", "ask `@someone`"),
        ("a *b* _c_ **d** ~~e~~ ==f==", "a `*b*` `_c_` `**d**` `~~e~~` `==f==`"),
        ("a <b>c</b> &lt; &#60;", "a `<b>c</b>` `&lt;` `&#60;`"),
        ("{ref}`x` [^1] [a](b) ![c](d) $x$ \\( x", "`` {ref}`x` `` `[^1]` `[a](b)` `![c](d)` `$x$` `\\(` x"),
        ("a | b\\|c", "a `\\x7c` `b\\\\x7cc`"),
        ("a  b\n\nc\td", "a b c d"),
        ("# a\n- b\n1. c\n> d\n---", "`#` a - b 1. c `>` d `---`"),
        ("javascript:alert(1) mailto:x tel:1 ftp:", "`javascript:alert(1)` `mailto:x` `tel:1` ftp:"),
        ("\x1b[31m red \u202eder", "`\\x1b[31m` red `\\u202eder`"),
    ],
)
def test_what_is_no_word_is_shown_as_code(text, written):
    assert prose(text) == written


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab1 \"'%,;=?{}^_*`|<>[]()!#-+.:/@$\\~&\n\t\x1bé"), max_size=20) | TEXT)
@example("` `` ``` `` `")
@example("a](b) ![")
def test_a_page_of_prose_has_the_blocks_and_pieces_that_it_has_with_plain_words(text):
    def page(words):
        told = prose(words)
        cells = table(["a", told or "b"], [[told, f"{told}: holds"]])
        parts = [
            f"# {told}",
            "",
            f"**Holds.** {told} So {told}; and ({told}).",
            "",
            f"![{told}](claim.png)",
            "",
            *cells,
        ]
        return "\n".join(parts)

    found = page(text)
    assert outline(found) == outline(page("x"))
    assert not what_acts(found)


@settings(max_examples=100)
@given(TEXT)
@example("x \\ $HOME 'a b'")
def test_code_shows_the_text_itself(text):
    (paragraph,) = [token for token in MarkdownIt().parse(code(text)) if token.type == "inline"] or [None]
    if paragraph is not None and text.strip():
        (piece,) = paragraph.children
        assert piece.type == "code_inline" and piece.content == shown(text)


@settings(max_examples=100)
@given(TEXT)
def test_the_console_prints_it_letter_by_letter(text):
    console = Console(width=1000, force_terminal=True, record=True, file=open("/dev/null", "w"))
    with console.file, console.capture() as printed:
        say(console, text)
        console.print(console_table([text, "b"], [["c", text]], [text]))
    assert shown(text) in printed.get()
    rest = printed.get().replace("\x1b[1m", "").replace("\x1b[0m", "")  # a heading is bold
    assert all(it.isprintable() or it == "\n" for it in rest)


@pytest.mark.parametrize("text", ["$x$", "\\$x$", "$\\frac{$", "a$b$c$", "\\"])
def test_a_figure_shows_dollars(text):
    from matplotlib.figure import Figure

    drawing = Figure()
    label = drawing.text(0, 0, figure(text))
    drawing.draw_without_rendering()
    assert label._preprocess_math(label.get_text()) == (text, False)


@settings(max_examples=50)
@given(TEXT | st.text(min_size=100, max_size=200))
def test_the_name_of_a_file_stays_in_its_folder(text):
    name = slug(text)
    assert name.isprintable() and not set(name) & set('/\\:*?"<>|') and len(name.encode()) < 200
    assert slug("sudoku4-trm_mlp/bptt-seed0@100") == "sudoku4-trm_mlp-bptt-seed0-step100"


def test_all_text_within_is_made_inert_and_numbers_stay():
    found = inert({"a|": ["b|", 1, None, {"c": (2.5)}], "z_L": [1.0, None]}, markdown)
    assert found == {r"`a\x7c`": [r"`b\x7c`", 1, None, {"c": 2.5}], "z_L": [1.0, None]}
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="more than 64 deep"):
        inert(deep, markdown)
