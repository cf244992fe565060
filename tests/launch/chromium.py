"""A headless Chromium for tests of pages: what it says, asks for and shows."""

import shutil
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no Chromium is installed (apt-get install chromium): the page is not opened in a browser"


@contextmanager
def browser():
    """Debian's Chromium behind Playwright's API; Playwright's own browsers are not needed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


class Window:
    """One page opened from its file. `said` is what went to the console, `asked` what was requested beside the file."""

    def __init__(self, chromium, path, *, anchor="", ready=("charts", "reader"), **options):
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900}, **options)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.said.append("a dialog"), dialog.dismiss()))
        self.page.goto(path.resolve().as_uri() + anchor)
        for part in ready:  # in any order
            self.page.wait_for_selector(f"body[data-{part}=ready]", state="attached")
        self.requests_beyond = lambda: [url for url in self.asked if not url.startswith(path.resolve().as_uri())]

    def filter(self, **fields):
        """Fill fields of the form by id, wait until the list is that of the answer, and return what it says."""
        for name, value in fields.items():
            field = self.page.locator(f"#{name.replace('_', '-')}")
            if field.evaluate("node => node.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        return self.listed()

    def listed(self):
        self.page.wait_for_selector("body[data-filtering=no]", state="attached")
        return self.text("#count")

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def texts(self, selector):
        return self.page.locator(selector).all_inner_texts()
