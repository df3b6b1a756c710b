"""The moving picture of the README: the charts of a demo's page, as they grew.

    legion-demo --out my-demo
    python tools/demo_picture.py my-demo/report.html docs/demo.gif

Opens the report in Chromium (package playwright, and a Chromium of the system) again and again, each time with the points and
marks up to a later moment, and puts pictures of its charts together.
"""

import argparse
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from legion_p2p.web.report import page_of_report

CHARTS, LEFT_OUT = ("held-out", "loss", "bytes"), "speed"
N_FRAMES = 32
WIDTH, HEIGHT = 1000, 2600
COLOURS = 40  # in all frames together: lines, text and two greys
FRAME_MS, LAST_FRAME_MS = 220, 5000
MAX_BYTES = 1_500_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BEGIN, END = '<script type="application/json" id="report">', "</script>"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    html = args.report.read_bytes()
    page: Any = page_of_report(html)
    end = max(x for lines in page["points"].values() for line in lines for x in line["x"])
    frames = pictures_of([with_page(html.decode(), until(page, end * n / N_FRAMES)) for n in range(2, N_FRAMES + 1)])
    palette = frames[-1].quantize(COLOURS)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    pictures[0].save(args.picture, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    if (size := args.picture.stat().st_size) > MAX_BYTES:
        raise SystemExit(f"demo_picture: {args.picture} has {size} bytes, at most {MAX_BYTES}")
    return 0


def until(page: Any, moment: float) -> Any:
    """The page as it was `moment` seconds after the start, as far as its charts say."""
    points = {}
    for name, lines in page["points"].items():
        counts = [sum(x <= moment for x in line["x"]) for line in lines]
        points[name] = [
            line | {key: line[key][:count] for key in ("x", "y", "step")} for line, count in zip(lines, counts, strict=True)
        ]
    blocks = [
        block | {"marks": [mark for mark in block["marks"] if mark["x"] <= moment]} if block.get("marks") else block
        for block in page["blocks"]
    ]
    return page | {"points": points, "blocks": blocks}


def with_page(html: str, page: Any) -> str:
    """The report with another page in it."""
    before, _, rest = html.partition(BEGIN)
    data = json.dumps(page).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return before + BEGIN + data + END + rest.partition(END)[2]


def pictures_of(reports: list[str]) -> list[Image.Image]:
    """A picture of the charts of each."""
    from playwright.sync_api import sync_playwright

    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"demo_picture: none of {', '.join(BROWSERS)} is here")
    frames = []
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        opened = driver.chromium.launch(executable_path=browser, args=["--disable-gpu"])
        window = opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        file = Path(folder) / "report.html"
        for report in reports:
            file.write_text(report, encoding="utf-8")
            window.goto(file.as_uri())
            window.evaluate("id => document.getElementById(id).remove()", f"card-{LEFT_OUT}")
            window.wait_for_timeout(200)
            boxes = [box for name in CHARTS if (box := window.locator(f"#card-{name}").bounding_box()) is not None]
            top, bottom = min(box["y"] for box in boxes), max(box["y"] + box["height"] for box in boxes)
            shot = window.screenshot(clip={"x": 0, "y": top - 12, "width": WIDTH, "height": bottom - top + 24})
            frames.append(Image.open(io.BytesIO(shot)).convert("RGB"))
        opened.close()
    return [frame.resize(frames[-1].size) if frame.size != frames[-1].size else frame for frame in frames]


if __name__ == "__main__":
    sys.exit(main())
