"""The ladder of ablations on equal budget (paper Tables 1 and 6): train its rungs and score them.

    ladder = Ladder("tiny", seed=0)
    run = ladder.train("hog", tuned=True)
    ladder.score(run), ladder.latents(run, "train")

A row of the ladder is a run: `ladder-RUNG-PRESET-sSEED`, or the same with `-tuned`. Whatever is
finished is found again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.analysis.probe import ProbeResult, linear_probe
from maetok_lab.data.caching import cached_latents
from maetok_lab.data.images import open_splits
from maetok_lab.data.latents import LatentDataset
from maetok_lab.device import pick_device, pick_precision
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.hints import choose
from maetok_lab.nets import load_net
from maetok_lab.runs import Run, run_suffix
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.tokenizer.perceptual import SqueezePerceptual
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING, ladder_training
from maetok_lab.training.recipe import RegenerationConfig, TokenizerTraining
from maetok_lab.training.rungs import LADDER, RUNGS
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer
from maetok_lab.widgets.live import follow_to_end

SCORE_FILE = "ladder.json"
COLUMNS = {"psnr": "{:.2f}", "perceptual": "{:.3f}", "probe_top1": "{:.3f}"}  # of `climb`'s table


class Ladder:
    """Rungs of `RUNGS` at one preset and seed, on the same images and as many of them.

    `labels` is what the probe reads off the latents; `teacher`, `weights`: see `ladder_training`;
    `reading`: see `open_splits`.
    """

    # The budget is the preset's first stage and its decoder tuning together. A rung without tuning
    # spends all of it in the first stage: it is a training of its own, not the tuned one's parent.

    def __init__(
        self,
        preset: str = "tiny",
        *,
        seed: int = 0,
        source: str | Path = "emoji",
        labels: str = "category",
        teacher: str = "semantic",
        weights: Mapping[str, str] | None = None,
        root: str | Path | None = None,
        device: str = "auto",
        **reading: Any,
    ):
        base = choose(preset, TOKENIZER_TRAINING, "preset")
        self.preset = preset
        self.seed = seed
        self.root = root
        self.device = pick_device(device)
        self.suffix = run_suffix(preset, seed, source)
        size = base.model.image_size
        self.images = open_splits(source, image_size=size, labels=labels, **reading)

        # So that rows differ by rung and stage only: no noise is put on latents, as in the paper
        # (the small presets' tuning does), and both stages have the second one's perceptual term.
        self.tuning = DECODER_TUNING[preset] | {"latent_noise": 0.0}
        self.changes = {
            "teacher": teacher,
            "weights": weights,
            "losses.perceptual": self.tuning.get("losses.perceptual", base.losses.perceptual),
            "images": self.images["train"].fingerprint,
            "precision": pick_precision(self.device),
            "seed": seed,
        }
        self.options = {"preview": self.images["val"], "cpu": self.device.type == "cpu"}

    def name(self, rung: str, *, tuned: bool = False) -> str:
        """The name of a row's run."""
        return f"ladder-{rung}-{self.suffix}" + ("-tuned" if tuned else "")

    def first_stage(self, rung: str, *, tuned: bool = False) -> TokenizerTraining:
        """A rung's training with the whole budget; `tuned` leaves its share to decoder tuning."""
        num_steps = TOKENIZER_TRAINING[self.preset].num_steps
        if not tuned:
            num_steps += self.tuning["num_steps"]
        return ladder_training(self.preset, rung, num_steps=num_steps, **self.changes)

    def train(self, rung: str, *, tuned: bool = False) -> Run:
        """Train a row, or what is left of it, with a line of progress now and then."""
        run = self.train_first_stage(rung, tuned=tuned)
        return self.tune(rung, run) if tuned else run

    def train_first_stage(self, rung: str, *, tuned: bool) -> Run:
        """The training of `first_stage`, or what is left of it."""
        config = self.first_stage(rung, tuned=tuned)
        name = self.name(rung) + ("-stage1" if tuned else "")
        with Run.open(name, config, root=self.root) as run:
            training = train_tokenizer(config, self.images["train"], run, **self.options)
            follow_to_end(training, name, run=run, every=30)
        return run

    def tune(self, rung: str, parent: Run, *, diffusion: Run | None = None) -> Run:
        """The second stage: the decoder alone, on latents that stay as they are.

        With a `diffusion` run of these latents it is post-training: no masks, and latents that this
        model makes anew.
        """
        stage = dict(self.tuning)
        if diffusion:
            stage["masking"] = MaskingConfig(ratio="none")
            stage["regeneration"] = RegenerationConfig(diffusion=diffusion.fingerprint)
        config = decoder_tuning(self.first_stage(rung, tuned=True), parent=parent, **stage)
        name = self.name(rung, tuned=True)
        parents = [parent]
        if diffusion:
            name = f"{self.name(rung)}-post"
            parents.append(diffusion)
        options = self.options | {"parent": parent, "diffusion": diffusion}
        with Run.open(name, config, root=self.root, parents=parents) as run:
            training = finetune_decoder(config, self.images["train"], run, **options)
            follow_to_end(training, name, run=run, every=30)
        return run

    def latents(self, run: Run, split: str) -> LatentDataset:
        """The cached latents of a row, mirrored ones too for training: run `NAME-latents-SPLIT`."""
        return cached_latents(
            load_tokenizer(run.folder).to(self.device),
            self.images[split],
            f"{run.name}-latents-{split}",
            flips=split == "train",
            root=self.root,
            parents=[run],
            device=self.device,
        )

    def score(self, run: Run) -> EvalResult:
        """Held-out numbers of a finished row, computed once and kept in its folder as ladder.json.

        PSNR, SSIM and perceptual distance (SqueezeNet's) of test images, and the top-1 accuracy on
        them of a linear probe of the latents.
        """
        path = run.folder / SCORE_FILE
        if path.exists():
            result = EvalResult.load(path)
            # stale where a folder of one's own images has changed since
            if result.protocol.reference_sha256 == self.images["test"].fingerprint:
                return result
        result = evaluate_reconstruction(
            load_tokenizer(run.folder).to(self.device),
            self.images["test"],
            perceptual=SqueezePerceptual(load_net("squeezenet1_1").to(self.device)),
            device=self.device,
            protocol=EvalProtocol(
                task="reconstruction", ema=run.config["ema_decay"], seed=self.seed
            ),
        )
        probe = self._probe(run)
        result.metrics["probe_top1"] = probe.top1
        result.metrics["probe_majority"] = probe.majority
        margin = 1.96 * probe.standard_error  # 95 %
        result.intervals["probe_top1"] = (probe.top1 - margin, probe.top1 + margin)
        result.save(path)
        return result

    def _probe(self, run: Run) -> ProbeResult:
        """A linear probe of the flattened latents; its penalty is chosen on val."""
        splits = {}
        for split in self.images:
            latents = self.latents(run, split)
            splits[split] = (latents, latents.labels)
        parts = (*splits["train"], *splits["test"])
        return linear_probe(*parts, validation=splits["val"], seed=self.seed)


def climb(
    ladders: Iterable[Ladder],
    *,
    rungs: Sequence[str] = tuple(LADDER),
    write: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train and score every rung of every ladder, with and without tuning -> one row each.

    Columns: rung, tuned, seed, images (seen while training), psnr in dB, perceptual, probe_top1,
    run. Stopped, it goes on where it was.
    """
    for rung in rungs:
        choose(rung, RUNGS, "rung of the ladder")  # before hours of training, not after
    rows = []
    for ladder in ladders:
        for rung in rungs:
            for tuned in (False, True):
                run = ladder.train(rung, tuned=tuned)
                metrics = ladder.score(run).metrics
                scores = {name: metrics[name] for name in COLUMNS}
                numbers = [f"{name} {value:.4g}" for name, value in scores.items()]
                write(f"{run.name}: {', '.join(numbers)}")
                images = sum(part.summary["images"] for part in stages(run))
                row = {"rung": rung, "tuned": tuned, "seed": ladder.seed, "images": int(images)}
                rows.append(row | scores | {"run": run.name})
    return pd.DataFrame(rows)


def stages(run: Run) -> list[Run]:
    """A tokenizer's run, and before it the one whose decoder it tunes, if it does."""
    # only a second stage trains less than everything
    if run.config["trains"] == "all":
        return [run]
    # first of its parents; a diffusion model may stand beside it
    parent = run.provenance["parents"][0]
    return [Run(run.folder.parent / parent["run"]), run]


def markdown(table: pd.DataFrame, formats: Mapping[str, str] = COLUMNS) -> str:
    """The table for a notebook's or a README's text; `formats` of columns, others as they are."""
    # as many digits as a difference between seeds is worth
    lines = [list(table.columns), ["---"] * table.shape[1]]
    for _, row in table.iterrows():
        lines.append([formats.get(name, "{}").format(value) for name, value in row.items()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
