"""What is made of one tokenizer to compare it: a diffusion model of its latents, samples, a card.

Every number comes from a run of its own, so what is stopped goes on where it was. And the control:
a plain autoencoder stopped early, as blurry as what it is compared with. Blurrier reconstructions
alone make latents simpler; the control tells how much of a gain that explains.
"""

import dataclasses

import torch

from maetok_lab.analysis.card import CardSettings
from maetok_lab.config import override
from maetok_lab.data.latents import LatentDataset
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.sample_sets import sampling_protocol
from maetok_lab.experiments.cards import CARD_OF, SAMPLES_FILE, card_run, diffusion_loss
from maetok_lab.experiments.ladder import Ladder
from maetok_lab.generation.images import generate, reconstruct
from maetok_lab.nets import FeatureNet, load_net
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.tokenizer import train_to_psnr, validation_psnr
from maetok_lab.widgets.live import follow_to_end

GAP_FILE = "samples-to-reconstructions.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is alike for all rows."""

    diffusion_steps: int = 400  # of the small diffusion model
    components: tuple[int, ...] = (1, 10, 50)  # of the mixtures
    restarts: int = 3  # of each mixture
    sampling_steps: int = 40  # of Euler's method
    images: int = 512  # samples; or as many as there are test images
    net_input: int = 128  # size in px at which the feature network sees images
    check_every: int = 25  # steps between looks at the control's PSNR


# Tokenizers ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One tokenizer of a ladder: "ae", "all, tuned", or the control."""

    name: str
    ladder: Ladder
    run: Run

    def latents(self, split: str) -> LatentDataset:
        """Its cached latents."""
        return self.ladder.latents(self.run, split)


def control_at(ladder: Ladder, target: float, name: str, comparison: Comparison) -> Run:
    """A plain autoencoder, stopped at the first checkpoint whose PSNR on val is `target` dB."""
    config = override(ladder.first_stage("ae"), {"save_every": comparison.check_every})
    with Run.open(name, config, root=ladder.root) as run:
        training = train_to_psnr(
            config,
            ladder.images["train"],
            run,
            validation=ladder.images["val"],
            target=target,
            cpu=ladder.options["cpu"],
        )
        follow_to_end(training, name, run=run, every=30)
    return run


# Everything else ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Generation:
    """Kernel distances of a row's samples, one a test label."""

    to_test: EvalResult  # test images
    to_reconstructions: EvalResult  # of them by the tokenizer: leaves out what the decoder loses


def card_of(row: Row, comparison: Comparison, dimensions: int, score: EvalResult) -> Run:
    """The card of a row's latents, with PSNR on it, because it explains some of the numbers."""
    psnr = {
        "psnr": score.metrics["psnr"],
        "val_psnr": validation_psnr(row.run, row.ladder.images["val"]),
    }
    settings = CardSettings(
        components=comparison.components,
        restarts=comparison.restarts,
        dimensions=dimensions,
        decoded=64,
        pairs=16,
        diffusion_steps=comparison.diffusion_steps,
        seed=row.ladder.seed,
    )
    train, val, test = (row.latents(split) for split in ("train", "val", "test"))
    return card_run(
        f"{row.run.name}-card-{dimensions}d-val-{CARD_OF}",
        train,
        train.labels,
        test,
        test.labels,
        validation=(val, val.labels),
        diffusion=flow_of(row, comparison),
        beside=psnr,
        tokenizer=load_tokenizer(row.run.folder).to(row.ladder.device),  # where the latents are
        images=row.ladder.images["test"],
        net=_judge(row, comparison),
        settings=settings,
        root=row.ladder.root,
    )


def distance_columns(column: str, result: EvalResult) -> dict[str, float]:
    """A kernel distance, whose metric is named after its network, and its 95 % interval."""
    ((name, value),) = result.metrics.items()
    low, high = result.intervals[name]
    return {column: value, f"{column}_low": low, f"{column}_high": high}


def _judge(row: Row, comparison: Comparison) -> FeatureNet:
    """The network that compares pictures of a row."""
    net = load_net("efficientnet_lite2", input_size=comparison.net_input)
    return net.to(row.ladder.device)


def flow_of(row: Row, comparison: Comparison) -> Run:
    """The diffusion model of a row: the same model, steps, batch and seed for all."""
    # the row's cache gives it the number of tokens and channels
    ladder = row.ladder
    return diffusion_loss(
        f"{row.run.name}-flow",
        ladder.preset,
        row.latents("train"),
        row.latents("test"),
        root=ladder.root,
        num_classes=ladder.images["train"].num_classes,
        num_steps=comparison.diffusion_steps,
        seed=ladder.seed,
        precision=ladder.changes["precision"],
    )


def generation_of(row: Row, flow: Run, comparison: Comparison) -> Generation:
    """Draw one sample a test label, unless it is done, and compare; kept in a run of its own."""
    ladder = row.ladder
    protocol = sampling_protocol(
        flow,
        steps=comparison.sampling_steps,
        guidance_scale=1.0,  # none, as in the paper's comparison of tokenizers
        seed=ladder.seed,
    )
    name = f"{row.run.name}-evaluation"
    with Run.open(name, protocol, root=ladder.root, parents=[row.run, flow]) as run:
        files = [run.folder / SAMPLES_FILE, run.folder / GAP_FILE]
        if not all(file.exists() for file in files):
            _evaluate_samples(row, flow, comparison, protocol, run)
        return Generation(*map(EvalResult.load, files))


def _evaluate_samples(
    row: Row, flow: Run, comparison: Comparison, protocol: EvalProtocol, run: Run
) -> None:
    # one sample for each of some test images, with its label
    device = row.ladder.device
    tokenizer = load_tokenizer(row.run.folder).to(device)
    test = row.ladder.images["test"]
    count = min(comparison.images, len(test))
    # evenly from the whole split: its images may be sorted by class
    originals, labels = test.batch(torch.linspace(0, len(test) - 1, count).long())
    samples = generate(
        load_diffusion(flow.folder).to(device),
        tokenizer,
        row.latents("train").space,
        labels,
        seed=row.ladder.seed,
        num_steps=comparison.sampling_steps,
    )
    # The same samples against test images, and against what this tokenizer makes of them: the gap.
    # Features of the samples are computed once, for both.
    net = _judge(row, comparison)
    features = make_reference(samples, net, name="samples")
    opposites = {SAMPLES_FILE: originals, GAP_FILE: reconstruct(tokenizer, originals)}
    for file, images in opposites.items():
        result = evaluate_generation(features, images, net=net, protocol=protocol, metrics=["kid"])
        result.save(run.folder / file)
    run.finish(EvalResult.load(run.folder / SAMPLES_FILE).metrics)
