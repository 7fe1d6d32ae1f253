"""The fenced blocks of the documentation, and what their marks say of how they are executed.

A mark is a comment on a line above the fence, which readers do not see; a block may have several:

- none: ``make test`` executes the block;
- ``<!-- run by make slow -->``: ``make slow`` does, as it takes a Ray or a minute;
- ``<!-- run by tests/FILE.py -->``: that test takes the block from the page and executes it;
- ``<!-- not run: REASON -->``: nothing does.

What is not run, or run by make slow, may be some commands of the block, those without ``--dry-run``:
``<!-- not run, COMMAND and COMMAND: REASON -->``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
JOBS = {"transcribe", "align", "embed", "classify", "frames"}
FENCE = re.compile(r"(?ms)^(?P<comments>(?:<!-- [^\n]* -->\n)*)```(?P<language>[^\n]*)\n(?P<text>.*?)^```$")
COMMENT = re.compile(r"<!-- ((?:not run|run by)\b.*) -->")
MARK = re.compile(
    r"(?:not run|run by make slow)(?:, (?P<some>[\w, -]+))?(?:: (?P<reason>.+))?"
    r"|run by (?P<test>tests/\S+\.py)"
)


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def lines(self) -> list[tuple[str, list[list[str]]]]:
        """Each line of commands, and the words of each command; those on both sides of a pipe are two."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found = []
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&>")
            lexer.whitespace_split = True
            commands: list[list[str]] = []
            words: list[str] = []
            for word in [*lexer, "|"]:
                if word in ("|", "&", "&&"):
                    commands += [words] if words else []
                    words = []
                else:
                    words.append(word)
            found.append((line, [words[: words.index(">")] if ">" in words else words for words in commands]))
        return found

    @property
    def commands(self) -> list[list[str]]:
        return [words for _, commands in self.lines for words in commands]

    def how(self, words: list[str] | None = None) -> str:
        """``test``, ``slow``, ``never``, or the file that executes this: a command, or a block of Python."""
        for mark in self.marks:
            match = MARK.fullmatch(mark)
            some = match["some"] if match else None
            if words and some and (name_of(words) not in names_in(some) or "--dry-run" in words):
                continue
            if match and match["test"]:
                return match["test"]
            return "slow" if mark.startswith("run by make slow") else "never"
        return "test"

    def is_executed(self, *places: str) -> bool:
        """Whether some of it is, in one of these places."""
        if self.language == "python":
            return self.how() in places
        return any(self.how(words) in places for words in self.commands)


def names_in(some: str) -> list[str]:
    return re.split(", | and ", some)


def name_of(words: list[str]) -> str:
    """The command of w2v-ray, the program, or what make makes."""
    return words[1] if is_ours(words) else " ".join(words[:2]) if words[0] == "make" else words[0]


def is_ours(words: list[str]) -> bool:
    return words[0] in ("w2v-ray", ".venv/bin/w2v-ray")


def snippets_of(page: str, text: str) -> Iterator[Snippet]:
    for match in FENCE.finditer(text):
        yield Snippet(
            page=page,
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            text=match["text"],
            marks=tuple(COMMENT.findall(match["comments"])),
        )


SNIPPETS = [
    snippet
    for path in PAGES
    for snippet in snippets_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
]
CODE = [snippet for snippet in SNIPPETS if snippet.language in ("sh", "console", "python")]
