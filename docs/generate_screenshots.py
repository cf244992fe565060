"""Draw docs/images/report.png anew from a run: curves above, a coloured trace below.

python docs/generate_screenshots.py runs/embedded
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from launch.report import write_report

PICTURE = Path(__file__).parent / "images" / "report.png"
WIDTH = 1240


def main() -> None:
    """Make the report of the run, open it in Debian's Chromium, and put two cuts of it into one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    path = write_report(parser.parse_args().run).resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-charts=ready]", state="attached")
        cuts = [cut(page, "scrollTo(0, 0)", 905), cut(page, CHOOSE, 800)]
        browser.close()
    whole = Image.new("RGB", (WIDTH, sum(image.height for image in cuts)), "white")
    for i, image in enumerate(cuts):
        whole.paste(image, (0, sum(before.height for before in cuts[:i])))
    whole.quantize(256).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


# A long wrong answer of the first steps, when the policy was still in doubt.
CHOOSE = """async () => {
  at('step-to').value = 3; at('sort').value = 'longest'; at('filter-correct').value = 'no';
  await applyFilters();
  choose(filtering.matches.find(({ length }) => length > 20));
  at('tokens').querySelector('[data-token="3"]').dispatchEvent(new MouseEvent('mouseover', { bubbles: true }));
  at('traces').scrollIntoView({ behavior: 'instant' });
}"""


def cut(page: Page, prepare: str, height: int) -> Image.Image:
    """What is in view after `prepare`."""
    page.evaluate(prepare)
    page.wait_for_timeout(600)
    return Image.open(io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})))


if __name__ == "__main__":
    main()
