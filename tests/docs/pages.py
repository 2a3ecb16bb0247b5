"""The pages of the documentation, cut into blocks and commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "deploy", ROOT / "docs")
PATHS = [path for folder in FOLDERS for path in sorted(folder.glob("*.md"))]


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its kind, such as bash, its text, and the page's text before it."""

    kind: str
    text: str
    before: str

    def file_name(self) -> str:
        """What a reader saves it as: the name in its first line, or the last one named before."""
        if self.kind == "python":
            return self.text.partition("\n")[0].removeprefix("# ")
        return re.findall(rf"`(\w+\.{self.kind})`", self.before)[-1]

    def lines(self) -> list[str]:
        """The command lines of a bash block."""
        return [line for line in self.text.splitlines() if line and not line.startswith("#")]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of Markdown."""

    path: Path
    text: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """The path, relative to the repository."""
        return self.path.relative_to(ROOT).as_posix()

    def of_kind(self, kind: str) -> list[str]:
        """Texts of the blocks of a kind."""
        return [block.text for block in self.blocks if block.kind == kind]

    def commands(self) -> list[list[str]]:
        """The words of every command line, without comments."""
        lines = [line for block in self.blocks if block.kind == "bash" for line in block.lines()]
        return [shlex.split(line, comments=True) for line in lines]

    def prose(self) -> str:
        """The text without its blocks."""
        return re.sub(r"```.*?```", "", self.text, flags=re.DOTALL)

    def anchors(self) -> set[str]:
        """What a link may name behind `#`, made of the headings as GitHub makes it."""
        headings = re.findall(r"^#+ (.*)$", self.prose(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in headings}


def read_page(path: Path) -> Page:
    """The page in the file."""
    text = path.read_text()
    found = re.finditer(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    blocks = tuple(Block(match[1], match[2], text[: match.start()]) for match in found)
    return Page(path, text, blocks)


PAGES = [read_page(path) for path in PATHS]
COMMANDS = [words for page in PAGES for words in page.commands()]


def page(name: str) -> Page:
    """The page at a path relative to the repository."""
    (found,) = (page for page in PAGES if page.name == name)
    return found
