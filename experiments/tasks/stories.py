"""A story with a question: what every reader of files of reasoning in words gives."""

from typing import NamedTuple

MOST_BYTES, MOST_IN_LINE = 2**28, 100_000  # of a file, and characters of a line of it
MOST_STATEMENTS, MOST_STORIES, LONGEST = 2_000, 1_000_000, 4_000  # of a story, of a file, characters of a text


class Story(NamedTuple):
    """A question about statements.

    Attributes:
        statements: In the order in which they are told.
        question: What is asked.
        answer: Words, one to each answer slot.
        hops: What the question is counted under, such as "k=3": in which numbers sort as numbers.
    """

    statements: tuple[str, ...]
    question: str
    answer: tuple[str, ...]
    hops: str


def check_story(story: Story) -> str:
    """Return what is wrong with a story; "" where nothing is."""
    if not story.statements:
        return "a question without any statement before it: an empty story"
    if len(story.statements) > MOST_STATEMENTS:
        return f"a story of more than {MOST_STATEMENTS} statements"
    if any(len(text) > LONGEST for text in (*story.statements, story.question, *story.answer)):
        return f"a text of more than {LONGEST} characters"
    if not story.question:
        return "an empty question"
    if not story.answer or not all(story.answer):
        return "an empty answer"
    return ""
