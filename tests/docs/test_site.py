"""The site: it builds without a complaint, fetches nothing, and every link and anchor in it leads somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.launch.chromium import CHROMIUM, MISSING, Window, browser

pytest.importorskip("mkdocs", reason="the site needs the extra [docs]")
FETCHING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"), ("source", "src"), ("video", "src")}


class Links(HTMLParser):
    """What a page is made of and where it leads."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.links, self.ids = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if (tag, name) in FETCHING:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name in ("id", "name"):
                self.ids.add(value)


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hook", DOCS / "site" / "hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The built site: path -> what is in the page."""
    site = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {page: Links(page) for page in site.rglob("*.html")}


def test_no_page_fetches_anything_from_a_network(pages):
    assert len(pages) > 40
    fetched = {link for page in pages.values() for link in page.fetched if re.match(r"(https?:)?//", link or "")}
    assert not fetched
    for style in next(iter(pages)).parent.rglob("*.css"):
        assert not re.search(r"url\(\"?(https?:)?//", style.read_text()), style


def test_links_and_anchors_of_the_site_lead_somewhere(pages):
    broken = []
    for page, content in pages.items():
        for link in content.links:
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            if re.match(r"\w+:", link) or page.name == "404.html":
                continue
            if not target.exists() or anchor and target in pages and anchor not in pages[target].ids:
                broken.append(f"{page.name}: {link}")
    assert not broken, broken


@pytest.mark.skipif(not CHROMIUM, reason=MISSING)
def test_the_site_can_be_searched_from_its_files(pages):
    """A browser lets a page of a file fetch nothing, so the index has to come with it."""
    start = min((page for page in pages if page.name == "index.html"), key=lambda page: len(page.parts))
    with browser() as chromium:
        window = Window(chromium, start, ready=())
        window.page.fill("input.md-search__input", "staleness")
        window.page.wait_for_selector(".md-search-result__item", state="attached", timeout=20_000)
        assert "Rollouts that run ahead" in window.text(".md-search-result__list")
        assert not [url for url in window.asked if not url.startswith(("file:", "data:", "blob:"))] and not window.said


def test_the_reference_has_the_names_of_the_house(pages):
    (api,) = [content for page, content in pages.items() if page.name == "api.html"]
    for name in ("cispo.loss.cispo_loss", "model.HybridLM", "model.load_pretrained", "sandbox.SandboxPool"):
        assert any(found == name or found.endswith(name.split(".", 1)[1]) for found in api.ids), name


def test_navigation_leaves_out_what_is_not_there_and_forgets_nothing(hook):
    nav = [
        {"Start": "index.md"},
        {"How to": [{"Metrics": "metrics.md"}, {"Gone": "gone.md"}]},
        {"Old": [{"Gone": "gone.md"}]},
    ]
    made = hook.navigation(nav, {"index.md", "metrics.md", "api.md"})
    assert made == [
        {"Start": "index.md"},
        {"How to": [{"Metrics": "metrics.md"}]},
        {"More": [{"What outside code may import": "api.md"}]},
    ]


@pytest.mark.parametrize(
    ("written", "name", "folder", "shown"),
    [
        ("[a](docs/api.md#model)", "index.md", ROOT, "[a](api.md#model)"),
        ("[e](../configs/train.yaml)", "configs.md", DOCS, "[e](source/configs/train.yaml.md)"),
        ("[m](../map.md)", "decisions/x.md", DOCS / "decisions", "[m](../map.md)"),
        ("[r](../README.md)", "map.md", DOCS, "[r](index.md)"),
        ("```jsonl a.jsonl\n{}\n```", "data.md", DOCS, '```jsonl title="a.jsonl"\n{}\n```'),
        ("<!-- reference: cispo.loss model.x -->", "api.md", DOCS, "::: cispo.loss\n\n::: model.x"),
        ("[w](https://a.b/c.md)", "map.md", DOCS, "[w](https://a.b/c.md)"),
    ],
)
def test_the_dialect_of_the_site(hook, written, name, folder, shown):
    assert hook.dialect(written, name, Path(folder)) == shown
