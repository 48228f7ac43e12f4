"""The rungs of ladders side by side: reconstruction, card, loss of a diffusion model and generation, with the control.

    comparison = Comparison(preset="tiny")
    rows = gather(ladders, ["ae", "all"], comparison)          # tokenizers, trained or found
    table = compare_rows(rows, comparison)                     # everything else, likewise

Every number comes from a run of its own, so a stopped comparison goes on where it was.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from maetok_lab.analysis.card import CardSettings
from maetok_lab.analysis.preprocess import common_dimensions
from maetok_lab.config import choose, override
from maetok_lab.data.latents import LatentDataset
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.generation import evaluate_generation, make_reference
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult, compare
from maetok_lab.experiments.cards import SAMPLES_FILE, card_run, diffusion_loss
from maetok_lab.experiments.ladder import Ladder
from maetok_lab.generation.images import generate, reconstruct
from maetok_lab.nets import load_net
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.tokenizer import train_to_psnr, validation_psnr
from maetok_lab.training.presets import diffusion_training

CONTROL = "control"  # a plain autoencoder, stopped early
GAP_FILE = "samples-to-reconstructions.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is alike for all rows: the diffusion model's steps, mixtures, sampling, and how often the control is checked."""

    diffusion_steps: int = 400
    components: tuple[int, ...] = (1, 10, 50)
    restarts: int = 3
    variance: float = 0.9
    sampling_steps: int = 40
    guidance: float = 1.0
    images: int = 512
    net_input: int = 128
    check_every: int = 25


COMPARISONS = {
    "test": Comparison(
        diffusion_steps=8,
        components=(1, 5),
        restarts=1,
        sampling_steps=4,
        images=32,
        net_input=64,
        check_every=5,
    ),
    "tiny": Comparison(),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One tokenizer of a ladder: "ae", "all, tuned", or the control."""

    name: str
    ladder: Ladder
    run: Run

    def latents(self, split: str) -> LatentDataset:
        """Its cached latents."""
        return self.ladder.latents(self.run, split)


def gather(
    ladders: Iterable[Ladder], rungs: Sequence[str], comparison: Comparison, *, masked: str = "all"
) -> list[Row]:
    """Train, or find, each rung of each ladder; then `masked` with its decoder tuned, and the control that matches it."""
    rows = []
    for ladder in ladders:
        trained = {rung: ladder.train(rung) for rung in dict.fromkeys([*rungs, masked])}
        rows += [Row(rung, ladder, run) for rung, run in trained.items()]
        rows.append(Row(f"{masked}, tuned", ladder, ladder.train(masked, tuned=True)))
        rows.append(Row(CONTROL, ladder, equal_psnr_control(ladder, trained[masked], comparison)))
    return rows


def equal_psnr_control(ladder: Ladder, masked: Run, comparison: Comparison) -> Run:
    """A plain autoencoder stopped where its PSNR on val is the masked model's, which trained in one stage."""
    config = override(ladder.first_stage("ae"), {"save_every": comparison.check_every})
    target = validation_psnr(masked, ladder.images["val"])
    name = masked.name.replace("ladder-", f"ladder-{CONTROL}-", 1)
    with Run.open(name, config, root=ladder.root, parents=[masked]) as run:
        cpu, validation = ladder.device.type == "cpu", ladder.images["val"]
        for _ in train_to_psnr(
            config, ladder.images["train"], run, validation=validation, target=target, cpu=cpu
        ):
            pass
    return run


def compare_rows(rows: Sequence[Row], comparison: Comparison) -> pd.DataFrame:
    """One line a row and seed, all latents at one number of dimensions.

    Columns: row, seed, psnr, val_psnr, probe_top1, dimensions, dimensions_90, nll, nll_per_dim (of test images, at the
    most components), diffusion_loss (of test images), kid of samples to test images, kid_gap of samples to the tokenizer's own
    reconstructions of them, and the ends of both 95 % intervals (kid_low, kid_high, kid_gap_low, kid_gap_high); card, flow and
    run are folders' names.
    """
    dimensions = common_dimensions([row.latents("train") for row in rows], comparison.variance)
    settings = CardSettings(
        components=comparison.components,
        restarts=comparison.restarts,
        dimensions=dimensions,
        decoded=64,
        pairs=16,
        variance=comparison.variance,
        diffusion_steps=comparison.diffusion_steps,
    )
    scores = {row.run.name: row.ladder.score(row.run) for row in rows}
    made = {row.run.name: generation_of(row, flow_of(row, comparison), comparison) for row in rows}
    compare(scores, allow="seed")  # else they share no table
    compare({name: result for name, (result, _) in made.items()}, allow="seed")
    return pd.DataFrame(
        [_line(row, comparison, settings, scores[row.run.name], made[row.run.name]) for row in rows]
    )


def _line(
    row: Row,
    comparison: Comparison,
    settings: CardSettings,
    score: EvalResult,
    made: tuple[EvalResult, EvalResult],
) -> dict[str, object]:
    flow, settings = flow_of(row, comparison), dataclasses.replace(settings, seed=row.ladder.seed)
    known = {
        "psnr": score.metrics["psnr"],
        "val_psnr": validation_psnr(row.run, row.ladder.images["val"]),
    }
    train, test = row.latents("train"), row.latents("test")
    card = card_run(
        f"{row.run.name}-card-{settings.dimensions}d",
        train,
        train.labels,
        test,
        test.labels,
        diffusion=flow,
        known=known,
        tokenizer=load_tokenizer(row.run.folder),
        settings=settings,
        root=row.ladder.root,
    )
    entries, most = card.summary, settings.components[-1]
    kernel = {}
    for column, result in zip(("kid", "kid_gap"), made):
        (name,) = result.metrics
        kernel[column] = result.metrics[name]
        kernel[f"{column}_low"], kernel[f"{column}_high"] = result.intervals[name]
    return {
        "row": row.name,
        "seed": row.ladder.seed,
        **known,
        "probe_top1": entries["probe_top1"],
        "dimensions": settings.dimensions,
        "dimensions_90": entries["dimensions_90"],
        "nll": entries[f"gmm_nll_{most}"],
        "nll_per_dim": entries[f"gmm_nll_per_dim_{most}"],
        "diffusion_loss": entries["diffusion_loss"],
        **kernel,
        "card": card.name,
        "flow": flow.name,
        "run": row.run.name,
    }


def flow_of(row: Row, comparison: Comparison) -> Run:
    """The diffusion model of a row: the same model, steps, batch and seed for all."""
    latents, ladder = row.latents("train"), row.ladder
    flow = diffusion_training(
        ladder.preset,
        latents,
        num_classes=ladder.images["train"].num_classes,
        num_steps=comparison.diffusion_steps,
        seed=ladder.seed,
        precision=ladder.changes["precision"],
    )
    cpu = ladder.device.type == "cpu"
    return diffusion_loss(
        flow, latents, row.latents("test"), f"{row.run.name}-flow", root=ladder.root, cpu=cpu
    )


def generation_of(row: Row, flow: Run, comparison: Comparison) -> tuple[EvalResult, EvalResult]:
    """Kernel distances of samples, one a test label, to test images and to the tokenizer's reconstructions of these.

    The second, the generation gap, leaves out what the decoder loses. Both are kept in a run of its own.
    """
    ladder, test = row.ladder, row.ladder.images["test"]
    guidance = Guidance(comparison.guidance, 0.0, 1.0) if comparison.guidance != 1 else None
    protocol = EvalProtocol(
        sampler="euler",
        steps=comparison.sampling_steps,
        path=flow.config["path"],
        guidance_scale=comparison.guidance,
        seed=ladder.seed,
        ema=flow.config["ema_decays"][0],
    )
    with Run.open(
        f"{row.run.name}-evaluation", protocol, root=ladder.root, parents=[row.run, flow]
    ) as run:
        files = [run.folder / SAMPLES_FILE, run.folder / GAP_FILE]
        if all(file.exists() for file in files):
            return tuple(EvalResult.load(file) for file in files)
        picked = torch.linspace(0, len(test) - 1, min(comparison.images, len(test))).long()
        originals, labels = test.batch(picked)
        model, tokenizer = (
            part.to(ladder.device)
            for part in (load_diffusion(flow.folder), load_tokenizer(row.run.folder))
        )
        sampling = {"num_steps": comparison.sampling_steps, "guidance": guidance}
        samples = generate(
            model, tokenizer, row.latents("train").space, labels, seed=ladder.seed, **sampling
        )
        net = load_net("efficientnet_lite2", input_size=comparison.net_input).to(ladder.device)
        made = make_reference(samples, net, name="samples")
        results = []
        for file, images in zip(files, (originals, reconstruct(tokenizer, originals))):
            results.append(
                evaluate_generation(made, images, net=net, protocol=protocol, metrics=["kid"])
            )
            results[-1].save(file)
        run.finish(results[0].metrics)
    return tuple(results)


def comparison_of(preset: str) -> Comparison:
    """The comparison that goes with a preset of the ladder."""
    return choose(preset, COMPARISONS, "preset")
