"""Everything that a GPU can say of this project, most valuable first, in eight minutes at most.

    python benchmarks/gpu.py [--out gpu-results --minutes 8 --device cuda --preset paper --study
                              --only gmm sit-xl-tokens]

Every section is a command of its own with a time limit; `--only` runs those that are named.
After each, its Markdown and its rows as JSON are in the folder, and `table.md` has all of them so
far: whatever happens next, they stay.
`--study` spends what is left on the ladder of ablations at 64 px. `--preset test --device cpu` runs
all of it in a minute, to see that it runs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from diffusion_step import matrix_rate
from sampling import make_model
from timing import as_markdown, peak_gigabytes

from maetok_lab.device import autocast, describe, pick_device, pick_precision
from maetok_lab.diffusion.graphs import Graphed
from maetok_lab.diffusion.sampling import Guidance, draw_noise, sample
from maetok_lab.hints import choose
from maetok_lab.rng import generator, seeds_for
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer

HERE = Path(__file__).parent
STEPS = 10  # of sampling, where bits are compared


class Sizes(NamedTuple):
    """What the sections are run at."""

    diffusion: list[str]  # presets, the most wanted first
    tokenizer: str
    step_batches: list[int]
    sample_batches: list[int]
    sample_steps: int
    pass_batch: int  # of a pass with few and with many tokens
    tokens: list[int]
    tokenizer_batch: int
    gmm: list[int]  # rows, width, components
    ladder: str  # the preset of the study


SIZES = {
    "paper": Sizes(
        diffusion=["sit-xl", "sit-b"],
        tokenizer="maetok-b-128",
        step_batches=[64, 256],
        sample_batches=[1, 16, 64],
        sample_steps=50,
        pass_batch=32,
        tokens=[128, 1024],
        tokenizer_batch=32,
        gmm=[1_281_167, 1024, 200],
        ladder="small",
    ),
    "test": Sizes(
        diffusion=["test"],
        tokenizer="test",
        step_batches=[2],
        sample_batches=[1, 2],
        sample_steps=2,
        pass_batch=1,
        tokens=[4, 16],
        tokenizer_batch=2,
        gmm=[500, 8, 3],
        ladder="test",
    ),
}


class Section(NamedTuple):
    """One command and how long it may take."""

    name: str
    words: list[str]  # of the command, behind python
    seconds: float


def sections(sizes: Sizes, device: str, out: Path, *, preset: str) -> list[Section]:
    """All of them, most valuable first."""
    on = ["--device", device]

    def script(name: str, *words: object) -> list[str]:
        return [str(HERE / name), *map(str, words), *on]

    own = ["--preset", preset, "--section"]
    listed = [
        Section("matrix-products", script("gpu.py", *own, "matrix_products"), 40),
        Section("parity", script("gpu.py", *own, "parity"), 90),
    ]
    for model in sizes.diffusion:
        for batch in sizes.step_batches:
            for compiled in ([], ["--compile"]):
                words = ["--preset", model, "--batch", batch, "--steps", 8, *compiled]
                name = "-".join([model, "step", str(batch), *(["compiled"] if compiled else [])])
                seconds = 110 if compiled else 75
                listed.append(Section(name, script("diffusion_step.py", *words), seconds))
        for batch in sizes.sample_batches:
            words = ["--preset", model, "--batch", batch, "--steps", sizes.sample_steps]
            words += ["--repeats", 1, "--precision", "auto"]
            listed.append(Section(f"{model}-sampling-{batch}", script("sampling.py", *words), 60))
        words = ["--preset", model, "--tokens", *sizes.tokens, "--batch", sizes.pass_batch]
        listed.append(Section(f"{model}-tokens", script("tokens.py", *words), 45))
    words = ["--presets", sizes.tokenizer, "--batch", sizes.tokenizer_batch, "--repeats", 3]
    words += ["--random-weights", out / "weights"]
    listed.insert(6, Section("tokenizer-step", script("tokenizer_step.py", *words), 120))
    listed.append(Section("gmm", script("gpu.py", *own, "gaussian_mixture"), 60))
    return listed


def main(words: list[str] | None = None) -> None:
    """Run the sections until the time is over, and print what they said."""
    options = arguments(words)
    if options.section:
        device = pick_device(options.device)
        print(f"{describe(device, pick_precision(device))}\n")
        print(as_markdown(OWN[options.section](SIZES[options.preset], device)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    sizes = SIZES[options.preset]
    listed = sections(sizes, options.device, options.out, preset=options.preset)
    by_name = {section.name: section for section in listed}
    for name in options.only or by_name:
        keep(choose(name, by_name, "section"), options.out, end=end)
    if options.study:
        ladder = [str(HERE / "ladder.py"), "--preset", sizes.ladder, "--device", options.device]
        ladder += ["--runs", str(options.out / "runs")]
        keep(Section("study", ladder, end - time.monotonic()), options.out, end=end)


def keep(section: Section, out: Path, *, end: float) -> None:
    """Run a section, unless too little time is left until `end`, and add it to the table of all."""
    left = end - time.monotonic()
    outcome = "no time was left"
    if left > section.seconds / 3:
        outcome = run(section, out, seconds=min(section.seconds, left))
    print(f"{section.name}: {outcome}", flush=True)
    said = out / f"{section.name}.md"
    text = said.read_text() if said.exists() else ""
    with open(out / "table.md", "a") as table:
        table.write(f"### {section.name} ({outcome})\n\n{text}\n")


def run(section: Section, out: Path, *, seconds: float) -> str:
    """Run a section's command, and keep what it printed. -> how it ended"""
    started = time.monotonic()
    with (
        open(out / f"{section.name}.md", "w") as said,
        open(out / f"{section.name}.log", "w") as log,
    ):
        try:
            code = subprocess.run(
                [sys.executable, *section.words], stdout=said, stderr=log, timeout=max(seconds, 1)
            ).returncode
        except subprocess.TimeoutExpired:
            return f"did not end in {seconds:.0f} s"
    if code:
        last = (out / f"{section.name}.log").read_text().strip().splitlines() or ["no word"]
        return f"failed: {last[-1]}"
    text = (out / f"{section.name}.md").read_text()
    (out / f"{section.name}.json").write_text(json.dumps(rows_of(text), indent=1))
    return f"{time.monotonic() - started:.0f} s"


def rows_of(markdown: str) -> list[dict[str, str]]:
    """The rows of the tables in a text."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for line in markdown.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not header:
            header = cells
        elif set(cells) != {"---"}:
            rows.append(dict(zip(header, cells)))
    return rows


# Sections of its own ------------------------------------------------------------------------------


def matrix_products(sizes: Sizes, device: torch.device) -> list[dict[str, object]]:
    """The rate of square matrix products: what every share is a share of."""
    rows: list[dict[str, object]] = []
    for precision in ("fp32", "bf16"):
        rows.append(
            {"precision": precision, "TFLOP/s": f"{matrix_rate(device, precision) / 1e12:.3g}"}
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        rows.append({"precision": "tf32", "TFLOP/s": f"{matrix_rate(device, 'fp32') / 1e12:.3g}"})
    return rows


@torch.inference_mode()
def parity(sizes: Sizes, device: torch.device) -> list[dict[str, object]]:
    """Largest differences between ways to compute one thing, in standard deviations of it."""
    rows: list[dict[str, object]] = []

    def compare(what: str, ours: torch.Tensor, reference: torch.Tensor) -> None:
        apart = (ours.cpu().float() - reference.cpu().float()).abs().max() / reference.cpu().std()
        rows.append({"what": what, "largest difference / std": f"{apart.item():.1e}"})

    # a tokenizer: encode and decode
    config = TOKENIZERS[sizes.tokenizer]
    torch.manual_seed(0)
    tokenizer = Tokenizer(config).eval()
    size = config.image_size
    images = torch.rand(4, 3, size, size, generator=generator(0, "parity")) * 2 - 1
    reference = tokenizer(images)
    tokenizer.to(device)
    compare("tokenizer, fp32: this device / CPU", tokenizer(images.to(device)), reference)
    with autocast(device, "bf16"):
        compare("tokenizer: bf16 / fp32", tokenizer(images.to(device)), reference)

    # a diffusion model: a few steps of guided sampling
    model = make_model(sizes.diffusion[-1], torch.device("cpu"))
    noise = draw_noise(seeds_for(0, 4), model.num_tokens, model.latent_dim)
    labels = torch.arange(4)
    options = {"num_steps": STEPS, "guidance": Guidance(1.5, 0.0, 0.75)}
    reference = sample(model, noise, labels, **options)
    model.to(device)
    inputs = (noise.to(device), labels.to(device))
    eager = sample(model, *inputs, **options)
    compare("sampling, fp32: this device / CPU", eager, reference)
    compare("sampling, fp32: graphs / eager", sample(Graphed(model), *inputs, **options), eager)
    with autocast(device, "bf16"):
        compare("sampling: bf16 / fp32", sample(model, *inputs, **options), eager)
        graphed = sample(Graphed(model), *inputs, **options)
        compare("sampling, bf16: graphs / eager", graphed, sample(model, *inputs, **options))
    compiled = torch.compile(model)
    compiled.num_classes = model.num_classes
    compare("sampling, fp32: compiled / eager", sample(compiled, *inputs, **options), eager)
    return rows


def gaussian_mixture(sizes: Sizes, device: torch.device) -> list[dict[str, object]]:
    """Expectation maximisation of the paper's longest fit: seconds of an iteration."""
    from maetok_lab.analysis.fitting import GmmProtocol, fit_gmm

    rows, width, components = sizes.gmm
    # drawn where it is used: 5 GB in float32 would take long to send
    points = torch.randn(rows, width, device=device)
    points[: rows // 2] += 1
    iterations = 3
    protocol = GmmProtocol(max_iterations=iterations, tolerance=0, precision="float32")
    # Warms up. A component of a dozen rows would be a point, too narrow for float32.
    fit_gmm(points[: 100 * components], components, protocol)
    started = time.perf_counter()
    fit_gmm(points, components, protocol)
    seconds = time.perf_counter() - started
    return [
        {
            "rows": rows,
            "dimensions": width,
            "components": components,
            "s, start and 3 iterations": f"{seconds:.2f}",
            "peak GB": f"{peak_gigabytes(device):.1f}",
        }
    ]


OWN = {"matrix_products": matrix_products, "parity": parity, "gaussian_mixture": gaussian_mixture}


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="paper", choices=SIZES)
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these sections, in this order")
    parser.add_argument("--section", choices=OWN, help="one of this file's own, alone")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
