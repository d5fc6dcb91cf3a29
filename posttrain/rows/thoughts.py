"""Tells the thoughts at the beginning of an answer, its `<think>` block, from what the answer says.

text of an answer -> (the block with its tags and the blanks after it, the text)

Servers hide the block, so whatever judges an answer judges the text after it.
"""

import re

CLOSED = "</think>"
EMPTY_REST = f"\n{CLOSED}\n\n"  # closes a block without a thought, as templates write it
OPENING = re.compile(r"\s*<think>")
AT_END = re.compile(r"<think>\s*(?P<closed></think>\s*)?\Z")  # of a prompt whose template begins the answer


def parted(text: str, *, is_open: bool = False) -> tuple[str, str]:
    """Splits an answer into its thoughts and what it says. A block that is never closed leaves nothing said.

    Args:
        is_open: the prompt already opened the block.
    """
    if not is_open and not OPENING.match(text):
        return "", text
    _, closed, rest = text.partition(CLOSED)
    answer = rest.lstrip()
    return (text[: len(text) - len(answer)], answer) if closed else (text, "")


def said(text: str) -> str:
    """Returns an answer without its thoughts."""
    return parted(text)[1]


def is_open(prompt: str) -> bool:
    """Tells whether a rendered prompt ends inside a block, which the model is to close."""
    opening = AT_END.search(prompt)
    return bool(opening and not opening["closed"])


def answer_text(prompt: str, whole: str, content: str) -> str | None:
    """Returns what follows the rendered prompt in training: the answer as the model is to write it.

    A template may open a block at the end of a prompt that it does not write in a conversation with an answer, or cut
    the thoughts out of one. The answer then closes the block first, with the thoughts of its `content` if it has any.

    Returns:
        None if the template renders the prompt differently once it is answered.
    """
    opening = AT_END.search(prompt)
    begun = prompt[: opening.start()] if opening and not whole.startswith(prompt) else prompt
    if not whole.startswith(begun):
        return None
    rest, thoughts = whole[len(begun) :], parted(content)[0]
    if CLOSED in rest:
        return rest
    if is_open(prompt):
        inner = OPENING.sub("", thoughts, count=1).strip().removesuffix(CLOSED).strip()
        return (f"{inner}\n{CLOSED}\n\n" if inner else EMPTY_REST) + rest
    return f"{thoughts.strip()}\n\n{rest}" if thoughts else rest
