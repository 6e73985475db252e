"""Reading the final answer out of a reply, and saying what is wrong with it. Linear in the reply's length, never
raises.

Rules, in this order. `boxed`: the \\boxed{...} that closes last. `tag`: the last <answer>...</answer>. `plain`: the
last \\boxed{...} if there is one, else what follows the last "answer is" / "answer:", else (numbers) what follows
the last "=", else the reply itself. The last candidate wins: listing several answers never helps. Only ASCII digits
are digits (full-width and other look-alikes are not numbers); a typographic minus sign counts as a minus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from redistill.errors import UserError, nearest

MAX_REPLY = 200_000
"""Characters of a reply that are read; a longer one gets reward 0."""
MAX_ANSWER = 20_000
"""Characters of a final answer that are judged; a longer one gets reward 0."""
MAX_DIGITS = 1_000
"""Characters of one number; a longer one is not read as a number."""
ECHO_WORDS = 5
"""Words in a row that a reply has to copy from the question to be taken for a copy of it."""
ANSWER_FORMATS = ("plain", "boxed", "tag")
REQUESTS = {
    "plain": "",
    "boxed": "Put the final answer in \\boxed{}.",
    "tag": "Put the final answer in <answer></answer>.",
}

_BRACE = re.compile(r"\\boxed\s{0,8}\{|\\[{}\\]|[{}]")
_MARKER = re.compile(r"\banswer\s{0,8}(?:is\b\s{0,8}:?|:)", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z_.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9A-Za-z_.])\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
)
_MINUS = "-\u2212"
_WHOLE_NUMBER = re.compile(
    r"[-+\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?(?:\s{0,4}/\s{0,4}[0-9]+)?"
)


@dataclass(frozen=True)
class Final:
    """The final answer of a reply: its `text`, or None and the `problem` with the reply's form."""

    text: str | None
    problem: str | None = None


def check_answer_format(value: str) -> str:
    """Return `value` if it is plain, boxed or tag, else raise a UserError."""
    if value not in ANSWER_FORMATS:
        raise UserError(f"task option answer_format={value!r} is unknown{nearest(value, ANSWER_FORMATS)}")
    return value


def wrap(text: str, answer_format: str) -> str:
    """`text` as a final answer in the asked format."""
    return {"plain": text, "boxed": f"\\boxed{{{text}}}", "tag": f"<answer>{text}</answer>"}[answer_format]


def last_boxed(text: str) -> str | None:
    """Content of the \\boxed{...} that closes last (so the outermost of nested ones), unwrapped; None without one."""
    stack: list[int] = []
    found: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            start = stack.pop() if stack else 0
            found = (start, match.start()) if start else found
        elif token[-1] == "{" and token != "\\{":
            stack.append(match.end() if token != "{" else 0)
    if found is None:
        return None
    content = text[found[0] : found[1]].strip()
    for _ in range(4):
        if not re.fullmatch(r"\\boxed\s{0,8}\{[^{}]*\}", content):
            break
        content = content[content.index("{") + 1 : -1].strip()
    return content


def last_tag(text: str) -> str | None:
    """Content of the last closed <answer>...</answer>; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


def after_marker(text: str) -> str | None:
    """What follows the last "answer is" or "answer:"; None without one, or when nothing follows."""
    matches = list(_MARKER.finditer(text))
    return (text[matches[-1].end() :].strip() or None) if matches else None


def first_sentence(text: str) -> str:
    """`text` up to the end of its first line or sentence."""
    return re.split(r"\n|\.(?:\s|$)", text.strip(), maxsplit=1)[0]


def numbers_in(text: str) -> list[str]:
    """The plain numbers in `text` in order, without thousands separators. A minus sign belongs to the number that
    touches it unless it also touches something to subtract from ("5-3" holds 5 and 3, "x = -3" holds -3)."""
    numbers = []
    for match in _NUMBER.finditer(text):
        at = match.start() - 1
        negative = at >= 0 and text[at] in _MINUS and not (at > 0 and (text[at - 1].isalnum() or text[at - 1] in ")]}"))
        numbers.append(("-" if negative else "") + clean_number(match.group()))
    return numbers


def clean_number(text: str) -> str:
    """A number's text without thousands separators and plus sign, and with an ASCII minus."""
    return text.strip().replace(",", "").replace("\u2212", "-").removeprefix("+")


def number_value(text: str) -> Fraction | None:
    """The exact value of `text` if all of it is one number (integer, decimal, exponent up to 999, a/b), else None."""
    stripped = text.strip()
    if len(stripped) > MAX_DIGITS or not re.search("[0-9]", stripped) or not _WHOLE_NUMBER.fullmatch(stripped):
        return None
    top, _, bottom = clean_number(stripped).replace(" ", "").partition("/")
    try:
        return Fraction(top) / Fraction(bottom) if bottom else Fraction(top)
    except (ValueError, ZeroDivisionError):
        return None


def is_plain_number(text: str | None) -> bool:
    """Whether `text` is one number that is not a fraction a/b."""
    return text is not None and "/" not in text and number_value(text) is not None


def foreign_digit(text: str) -> str | None:
    """The first digit of another script (or a raised, circled or full-width one) in `text`; None without one."""
    return next((symbol for symbol in text if symbol.isdigit() and not symbol.isascii()), None)


def without_echo(question: str, reply: str, right: str) -> str:
    """`reply` without every run of words that it copies from the question, whatever the case: runs of ECHO_WORDS words or
    more, of four more than the `right` answer has when that is longer (so a passage may be quoted as the answer, but not
    with what stands around it), or the whole of a shorter question. The rest is left as it is."""
    asked, own = question.casefold().split(), right.split()
    size = max(ECHO_WORDS, len(own) + ECHO_WORDS - 1)
    if size > len(asked):
        size = len(asked)
        if size < 2 or size <= len(own):
            return reply
    runs = {tuple(asked[at : at + size]) for at in range(len(asked) - size + 1)}
    found = list(re.finditer(r"\S+", reply))
    words = [match.group().casefold() for match in found]
    pieces, kept = [], 0
    copied = -1
    for at in range(len(words)):
        if tuple(words[at : at + size]) in runs:
            copied = at + size
        if at < copied:
            pieces.append(reply[kept : found[at].start()])
            kept = found[at].end()
    return "".join([*pieces, reply[kept:]])


def _segment(reply: str, answer_format: str) -> tuple[str | None, str]:
    """(the part that holds the final answer or None, how it was found)."""
    if answer_format == "tag":
        return last_tag(reply), "tag"
    boxed = last_boxed(reply)
    if boxed is not None or answer_format == "boxed":
        return boxed, "boxed"
    marked = after_marker(reply)
    return (marked, "marked") if marked is not None else (reply.strip(), "whole")


def final_number(reply: str, answer_format: str = "plain") -> Final:
    """The final number of a reply, cleaned: the last one after the last "=" of the final answer. Inside a box or a tag
    there must be one number only."""
    segment, found = _read(reply, answer_format)
    if segment.text is None:
        return segment
    parts = [segment.text]
    if found == "marked":
        parts = [first_sentence(segment.text), segment.text]
    for part in parts:
        after = part.rpartition("=")[2]
        tail = first_sentence(after) if found == "whole" and "=" in part else after
        numbers = numbers_in(tail) or numbers_in(part)
        if found in ("boxed", "tag") and len(set(numbers)) > 1:
            return Final(None, "There is more than one number in the final answer.")
        if numbers and len(numbers[-1]) > MAX_DIGITS:
            return Final(None, f"The number is longer than {MAX_DIGITS} characters.")
        if numbers:
            return Final(numbers[-1])
    return Final(None, "No number was found in the reply.")


def final_text(reply: str, answer_format: str = "plain", expected: str | None = None) -> Final:
    """The final text of a reply. In a plain reply without a marker it is the last line when the `expected` answer is
    one line of prose, and the whole reply when that is None, several lines or JSON. A closing full stop, quotes and
    asterisks are dropped unless the expected answer has them."""
    final, found = _read(reply, answer_format)
    if final.text is None:
        return final
    text = final.text
    if expected is not None and text.strip() != expected.strip():
        right = expected.strip()
        if found in ("whole", "marked") and "\n" not in right and right[:1] not in ("[", "{"):
            lines = [line for line in text.splitlines() if line.strip()]
            text = lines[-1 if found == "whole" else 0] if lines else ""
            if found == "marked" and "." not in right:
                text = first_sentence(text)
        text = _undress(text.strip(), right)
    if len(text) > MAX_ANSWER:
        return Final(None, f"The final answer has {len(text)} characters; at most {MAX_ANSWER} are read.")
    return Final(text) if text.strip() else Final(None, "The final answer is empty.")


def _undress(text: str, expected: str) -> str:
    if text.endswith(".") and not expected.endswith("."):
        text = text[:-1].rstrip()
    for mark in ("**", "`", '"', "'"):
        if (
            len(text) > 2 * len(mark)
            and text.startswith(mark)
            and text.endswith(mark)
            and not expected.startswith(mark)
        ):
            text = text[len(mark) : -len(mark)].strip()
    return text


def _read(reply: str, answer_format: str) -> tuple[Final, str]:
    if len(reply) > MAX_REPLY:
        return Final(None, f"The reply has {len(reply)} characters; at most {MAX_REPLY} are read."), "none"
    segment, found = _segment(reply, answer_format)
    if segment is None:
        shape = "\\boxed{...}" if answer_format == "boxed" else "<answer>...</answer>"
        return Final(None, f"No {shape} was found in the reply."), found
    if not segment.strip():
        return Final(None, "The reply is empty." if found == "whole" else "The final answer is empty."), found
    return Final(segment), found
