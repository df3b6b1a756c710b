"""The moving picture of the README: frames of the dashboard of a real demo, and what its model wrote.

    python tools/demo_picture.py OUT.gif [further options of legion-demo]

Runs `legion-demo`, looks at its page in Chromium (package playwright, and a Chromium of the system), and puts the frames
together. It fails where the demo does.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from PIL import Image

FRAME_EVERY_S = 4.0
SIZE = {"width": 900, "height": 640}
COLOURS = 48  # in all frames together: lines, text and two greys
FRAME_MS, LAST_FRAME_MS = 260, 6000
MAX_BYTES = 1_500_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    args, demo_options = parser.parse_known_args()
    from playwright.sync_api import sync_playwright

    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"demo_picture: none of {', '.join(BROWSERS)} is here")
    with sync_playwright() as driver, tempfile.TemporaryFile("w+") as said:
        window = driver.chromium.launch(executable_path=browser, args=["--disable-gpu"]).new_page(viewport=SIZE)
        demo = subprocess.Popen([sys.executable, "-m", "legion_p2p.cli.demo", *demo_options], stdout=said)
        window.goto(found_in(said, "dashboard: ", demo), wait_until="commit")
        frames = []
        while demo.poll() is None:
            frames.append(window.screenshot())
            time.sleep(FRAME_EVERY_S)
        if demo.returncode:
            return demo.returncode
        out = Path(found_in(said, "the rest are in ", demo))
        window.goto((out / "report.html").resolve().as_uri())
        window.wait_for_timeout(1000)
        frames.append(window.screenshot())
        said.seek(0)
        print(said.read())
    write(args.picture, frames)
    return 0


def found_in(said: IO[str], before: str, demo: "subprocess.Popen[bytes]") -> str:
    """What the demo has printed on a line behind `before`, once it has."""
    while True:
        said.seek(0)
        for line in said.read().splitlines():
            if before in line:
                return line.rpartition(before)[2].strip()
        if demo.poll():
            raise SystemExit("demo_picture: the demo failed")
        time.sleep(0.1)


def write(picture: Path, screenshots: list[bytes]) -> None:
    """One palette for all frames, so that what does not change costs nothing. Raises: SystemExit, where it is too large."""
    frames = [Image.open(io.BytesIO(png)).convert("RGB") for png in screenshots]
    palette = frames[-2].quantize(COLOURS)
    pictures: list[Any] = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    pictures[0].save(picture, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    if (size := picture.stat().st_size) > MAX_BYTES:
        raise SystemExit(f"demo_picture: {picture} has {size} bytes, at most {MAX_BYTES}")


if __name__ == "__main__":
    sys.exit(main())
