"""The README's pictures of the studios, as a browser shows them, and the moving one of the demo.

    pip install playwright; python docs/make_studios.py [NAME ...]

Needs chromium. What is shown are the shipped weights. Names: mask_demo (docs/mask_demo.gif),
mask_studio, latent_map, sampler_studio (PNG).
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from PIL import Image
from playwright import sync_api

ROOT = Path(__file__).resolve().parents[1]
PORT = 8899
OPENING = """
import contextlib

import maetok_lab as lab
tokenizer = lab.load_tokenizer("shipped/tokenizer")
images = lab.open_images("emoji", split={split!r}, image_size=64, labels={labels!r})
"""
STUDIOS = {  # by name: split and labels of the images, what shows the studio, and its height
    "mask_demo": ("val", "category", """
plain = lab.load_tokenizer("shipped/plain")
lab.widgets.MaskDemo(tokenizer, plain, images)
""", 800),
    "mask_studio": ("val", "category", """
decoders = lab.tokenizer.load_auxiliary("shipped/tokenizer")
distance = lab.tokenizer.make_perceptual(lab.tokenizer.LossConfig(perceptual="squeezenet"))
lab.widgets.MaskStudio(tokenizer, images, decoders=decoders, distance=distance)
""", 930),
    "latent_map": ("train", "category", """
with contextlib.redirect_stdout(None):
    latents = lab.cached_latents(tokenizer, images, "latents", root={folder!r})
lab.widgets.LatentMap(latents, images, tokenizer, seed=0, method="umap", max_rows=20_000)
""", 720),
    "sampler_studio": ("train", "category-style", """
models = {{0.998: lab.load_diffusion("shipped/diffusion")}}
space = lab.load_latent_space("shipped/diffusion")
lab.widgets.SamplerStudio(models, space, tokenizer, class_names=images.class_names)
""", 860),
}  # fmt: skip


def main() -> None:
    """Serve each studio and take a picture of it."""
    names = sys.argv[1:] or list(STUDIOS)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            split, labels, code, _ = STUDIOS[name]
            code = (OPENING + code).format(split=split, labels=labels, folder=folder)
            cell = nbformat.v4.new_code_cell(code)
            notebook = f"{folder}/{name}.ipynb"
            nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
            words = ["studio", notebook, "--port", str(PORT)]
            command = [sys.executable, "-m", "maetok_lab", *words]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
                try:
                    picture(name, server.stdout.readline().split()[-1])
                finally:
                    server.terminate()


def picture(name: str, address: str) -> None:
    """Open the page, do what a person would do first, and keep what is seen."""
    with sync_api.sync_playwright() as engine:
        chromium = engine.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1150, "height": STUDIOS[name][3]})
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector(".maetok canvas, .maetok svg")
        page.wait_for_timeout(4000)
        if name == "mask_demo":
            film(page, ROOT / "docs" / "mask_demo.gif")
        else:
            touch(page, name)
            page.screenshot(path=ROOT / "docs" / f"{name}.png")
        chromium.close()


def film(page: sync_api.Page, path: Path) -> None:
    """The slider goes up and down, another picture loses a block, tokens are pointed at."""
    frames: list[Image.Image] = []

    def shoot(times: int = 1) -> None:
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        small = shot.resize((shot.width * 7 // 10, shot.height * 7 // 10), Image.Resampling.LANCZOS)
        frames.extend([small] * times)

    slider = page.get_by_label("share of the picture that is hidden")
    slider.fill("0")
    page.wait_for_timeout(300)
    shoot(6)
    for step in (*range(2, 25, 2), *range(24, 15, -2)):
        slider.fill(str(step))
        page.wait_for_timeout(80)
        shoot()
    shoot(5)
    page.locator(".maetok-thumbnails button").nth(4).click()
    page.get_by_role("radio", name="block").click()
    page.wait_for_timeout(1500)
    shoot(6)
    for token in (9, 18, 20):
        page.locator(".maetok-tokens canvas").nth(token).hover()
        page.wait_for_timeout(200)
        shoot(5)
    page.mouse.move(5, 5)
    page.wait_for_timeout(200)
    shoot(4)

    # one palette for all: colours that flicker between frames are larger and look worse
    spread = frames[:: len(frames) // 6]
    sheet = Image.new("RGB", (spread[0].width, sum(frame.height for frame in spread)))
    for index, frame in enumerate(spread):
        sheet.paste(frame, (0, index * frame.height))
    palette = sheet.quantize(256, dither=Image.Dither.NONE)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=140, loop=0, optimize=True)
    print(f"{path.name}: {len(flat)} frames, {path.stat().st_size / 1e6:.1f} MB")


def touch(page: sync_api.Page, name: str) -> None:
    """Do what a person would do first: pick a token, decode two points."""
    if name == "mask_studio":
        box = page.locator(".maetok-grid").nth(1).bounding_box()
        page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    if name == "latent_map":
        for point in ("120", "460"):
            page.get_by_label("number of a point").fill(point)
            page.keyboard.press("Enter")
            page.wait_for_timeout(1000)
    page.wait_for_timeout(3000)


if __name__ == "__main__":
    main()
