"""What makes a site of pages that are written to be read on GitHub: called by MkDocs, see mkdocs.yml.

- README.md is the first page, and a file of the repository that a page links to is shown as a page.
- Pages of `nav` that do not exist are left out, those that it does not name go under "More"; decisions are listed.
- The file name of a code block (```python my_tasks.py) becomes its title.
- The one script that the theme would fetch from a network is taken from this folder.
- `<!-- reference: dotted.name ... -->` becomes signature and docstring of each name.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>\w+) (?P<name>[^\s=]+)$", re.M)
LINK = re.compile(r"\]\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
REFERENCE = re.compile(r"^<!-- reference: (?P<names>[\w.\s]+?) -->$", re.M)
FETCHED, OWN = "https://unpkg.com/iframe-worker/shim", "site/iframe_worker.js"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".toml": "toml"}

Nav = list[dict[str, Any]]


def on_config(config: Any) -> Any:
    """The navigation as far as there are pages for it."""
    config.nav = navigation(config.nav, {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | {"index.md"})
    return config


def navigation(nav: Nav, pages: set[str]) -> Nav:
    """`nav` without missing pages, with the decisions listed, and with a last section for pages that it forgets."""
    decisions = sorted(page for page in pages if page.startswith("decisions/"))
    kept: Nav = []
    for entry in nav:
        ((title, content),) = entry.items()
        if title == "Decisions":
            content = [{heading(DOCS / page): page} for page in decisions]
        elif isinstance(content, list):
            content = [item for item in content if set(item.values()) <= pages]
        kept += [{title: content}] if content else []
    named = {page for entry in kept for content in entry.values() for page in _pages_of(content)}
    forgotten = sorted(pages - named)
    return kept + ([{"More": [{heading(DOCS / page): page} for page in forgotten]}] if forgotten else [])


def _pages_of(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [page for item in content for page in item.values()]


def heading(page: Path) -> str:
    """The first heading of a page."""
    return next(line[2:] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# "))


def on_files(files: Files, config: Any) -> Files:
    """Pages that are not in docs/: the README, and files of the repository that pages link to."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    linked = {"README.md": ROOT, **{str(page.relative_to(ROOT)): page.parent for page in DOCS.rglob("*.md")}}
    for name, folder in linked.items():
        for match in LINK.finditer((ROOT / name).read_text(encoding="utf-8")):
            path = (folder / match["path"]).resolve()
            source = source_page(path)
            if source and path.is_file() and files.get_file_from_path(source) is None:
                files.append(File.generated(config, source, content=as_page(path)))
    return files


def source_page(path: Path) -> str:
    """Where the site shows a file of the repository that is outside docs/; "" for one that is inside, or the README."""
    if path == ROOT / "README.md" or path.is_relative_to(DOCS) or not path.is_relative_to(ROOT):
        return ""
    return f"source/{path.relative_to(ROOT)}{'' if path.suffix == '.md' else '.md'}"


def as_page(path: Path) -> str:
    """A file of the repository as Markdown."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    return text if path.suffix == ".md" else f"# {name}\n\n```{LANGUAGES.get(path.suffix, 'text')}\n{text}```\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """One page in the site's dialect."""
    name = page.file.src_uri
    if name == "index.md":
        folder = ROOT
    elif name.startswith("source/"):
        folder = (ROOT / name.removeprefix("source/")).parent
    else:
        folder = (DOCS / name).parent
    return dialect(markdown, name, folder)


def dialect(markdown: str, name: str, folder: Path) -> str:
    """`markdown` of the site's page `name`, whose links are relative to `folder` of the repository."""

    def link(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match["path"]))
        if not path.exists():
            return match[0]  # MkDocs complains of it
        target = "index.md" if path == ROOT / "README.md" else source_page(path) or str(path.relative_to(DOCS))
        return f"]({posixpath.relpath(target, posixpath.dirname(name) or '.')}{match['anchor'] or ''})"

    def reference(match: re.Match[str]) -> str:
        return "\n\n".join(f"::: {dotted}" for dotted in match["names"].split())

    titled = FENCE.sub(r'\g<fence>\g<language> title="\g<name>"', markdown)
    return REFERENCE.sub(reference, LINK.sub(link, titled))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """No request to others: search in pages opened from the disk uses our copy of its script."""
    return output.replace(FETCHED, posixpath.relpath(OWN, posixpath.dirname(page.url) or "."))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same for what is no page, such as 404.html."""
    return output.replace(FETCHED, OWN)
