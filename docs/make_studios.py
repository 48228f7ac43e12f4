"""The README's pictures of the studios, as a browser shows them: docs/mask_studio.png and others.

    pip install playwright; python docs/make_studios.py

Needs chromium. What is shown are the shipped weights.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright import sync_api

ROOT = Path(__file__).resolve().parents[1]
PORT = 8899
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
OPENING = """
import contextlib

import maetok_lab as lab
tokenizer = lab.load_tokenizer("shipped/tokenizer")
images = lab.open_images("emoji", split={split!r}, image_size=64, labels={labels!r})
"""
STUDIOS = {  # by name: split and labels of the images, what shows the studio, and its height
    "mask_studio": ("val", "category", """
decoders = lab.tokenizer.load_auxiliary("shipped/tokenizer")
distance = lab.tokenizer.make_perceptual(lab.tokenizer.LossConfig(perceptual="squeezenet"))
lab.widgets.MaskStudio(tokenizer, images, decoders=decoders, distance=distance)
""", 930),
    "latent_map": ("train", "category", """
with contextlib.redirect_stdout(None):
    latents = lab.cached_latents(tokenizer, images, "latents", root={folder!r})
lab.widgets.LatentMap(latents, images, tokenizer, seed=0, max_rows=20_000)
""", 640),
    "sampler_studio": ("train", "category-style", """
models = {{0.9995: lab.load_diffusion("shipped/diffusion")}}
space = lab.load_latent_space("shipped/diffusion")
studio = lab.widgets.SamplerStudio(models, space, tokenizer, class_names=images.class_names)
studio.sample()
studio
""", 700),
}  # fmt: skip


def main() -> None:
    """Serve each studio with voila and take a picture of it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (split, labels, code, _) in STUDIOS.items():
            code = (OPENING + code).format(split=split, labels=labels, folder=folder)
            cell = nbformat.v4.new_code_cell(code)
            nbformat.write(nbformat.v4.new_notebook(cells=[cell]), f"{folder}/{name}.ipynb")
        command = [sys.executable, "-m", "voila", "--no-browser", f"--port={PORT}", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            picture_all()
        finally:
            server.terminate()
            server.wait(30)


def picture_all() -> None:
    """Open each page, wait until nothing moves, and keep what is seen."""
    address = f"http://127.0.0.1:{PORT}"
    for _ in range(60):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except OSError:
            time.sleep(1)
    with sync_api.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, (*_, height) in STUDIOS.items():
            page = chromium.new_page(viewport={"width": 1200, "height": height})
            page.set_default_timeout(300_000)
            page.goto(f"{address}/voila/render/{name}.ipynb")
            page.wait_for_selector(".jupyter-widgets img, .jupyter-widgets canvas")
            page.wait_for_timeout(8000)
            touch(page, name)
            page.screenshot(path=ROOT / "docs" / f"{name}.png")
            page.close()
        chromium.close()


def touch(page: sync_api.Page, name: str) -> None:
    """Do what a person would do first: pick a token, decode a point."""
    if name == "mask_studio":
        box = page.locator(".maetok-grid").nth(1).bounding_box()
        page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    if name == "latent_map":
        page.get_by_label("map").select_option("umap")
        page.wait_for_timeout(90_000)
        box = page.locator(".js-plotly-plot").first.bounding_box()
        page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        page.get_by_label("point").fill("120")
        page.keyboard.press("Enter")
    page.wait_for_timeout(4000)


if __name__ == "__main__":
    main()
