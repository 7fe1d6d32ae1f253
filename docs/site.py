"""What mkdocs.yml cannot say of the site: its menu, files of the repository, and that it stands alone.

The menu is the tables of docs/index.md: a heading is a section, the first link of a row a page. One that is
in no table is a warning, and warnings are errors.

Pages link files of the repository as they lie, so that the links work wherever the repository is shown. What
they name outside docs/ is taken into the site, below repository/; a folder becomes its name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"(?ms)^ *```.*?^ *```")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)([^)\s]*\))")
FETCHES = re.compile(
    r"""<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^\s"'>]*"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=["']?(?:https?:)?//[^\s"'>]*"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


def on_config(config: Any) -> Any:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    menu: list[Any] = ["index.md"]
    for title, table in re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", index):
        pages = re.findall(r"(?m)^\| \[[^\]]+\]\(([\w/-]+\.md)\)", table)
        menu.append({title: pages})
    config["nav"] = menu
    return config


def on_files(files: Any, *, config: Any) -> Any:
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    taken = set()
    while waiting:
        page = waiting.pop()
        for _, target, _ in links_of(page.read_text(encoding="utf-8")):
            path = resolved(page, target)
            if path is None or path in taken or path.is_relative_to(ROOT / "docs") or not path.is_file():
                continue
            taken.add(path)
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
            if path.suffix == ".md":
                waiting.append(path)
    for file in files.documentation_pages():
        if file.src_uri.startswith("repository/"):
            file.inclusion = file.inclusion.NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with its links as they are in the site; code is left as it is."""
    uri = page.file.src_uri
    inside = uri.startswith("repository/")
    source = ROOT / uri.removeprefix("repository/") if inside else ROOT / "docs" / uri

    def link(match: re.Match[str]) -> str:
        path = resolved(source, match[2])
        if path is None or not (inside or not path.is_relative_to(ROOT / "docs")):
            return match[0]
        if path.is_dir():
            return f"`{path.relative_to(ROOT)}/`"
        return match[1] + os.path.relpath(place(path), PurePosixPath(uri).parent) + match[3]

    parts, end = [], 0
    for code in FENCED.finditer(markdown):
        parts += [LINK.sub(link, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(link, markdown[end:])])


def on_post_build(config: Any) -> None:
    """Raises if a browser would fetch anything from elsewhere."""
    for path in sorted(Path(config["site_dir"]).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = FETCHES.search(path.read_text(encoding="utf-8"))
            if found:
                raise PluginError(f"{path} would make a browser fetch {found[0]!r}; the site stands alone")


def links_of(text: str) -> list[tuple[str, str, str]]:
    return LINK.findall(FENCED.sub("", text))


def resolved(page: Path, target: str) -> Path | None:
    """The file of the repository that a link of a page names; None for an address."""
    if re.match(r"[a-z]+:", target):
        return None
    path = Path(os.path.normpath(page.parent / target))
    return path if path.is_relative_to(ROOT) else None


def place(path: Path) -> str:
    """Where a file of the repository is in the site."""
    inside = path.relative_to(ROOT).as_posix()
    return inside.removeprefix("docs/") if inside.startswith("docs/") else f"repository/{inside}"
