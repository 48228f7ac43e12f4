"""The ladder of ablations on equal budget: train its rungs, with and without decoder tuning, and score them.

    ladder = Ladder("tiny", seed=0)
    run = ladder.train("hog", tuned=True)
    ladder.score(run), ladder.latents(run, "train")

A row of the ladder is a run: `ladder-RUNG-PRESET-sSEED`, or the same with `-tuned`. Everything that is done is found again.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.analysis.probe import linear_probe
from maetok_lab.config import choose
from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentDataset
from maetok_lab.device import pick_device, pick_precision
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.experiments.ready import ready_latents
from maetok_lab.nets import load_net
from maetok_lab.runs import Run, run_suffix
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.tokenizer.perceptual import SqueezePerceptual
from maetok_lab.training.autoencoding import TokenizerTraining
from maetok_lab.training.presets import DECODER_TUNING, LADDER, TOKENIZER_TRAINING, ladder_training
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer
from maetok_lab.widgets.live import LiveTraining


class Ladder:
    """Every rung of `LADDER` at one preset and seed, on the same images and as many of them.

    The budget is the preset's first stage and its decoder tuning together: a rung without tuning spends all of it in the first
    stage, so it is a training of its own and not the tuned one's parent. Both stages have the second one's perceptual term,
    and no noise is put on latents (as in the paper, not as in `DECODER_TUNING` at the small presets): the rows differ by rung
    and stage only. `labels` is what the probe reads off the latents; `teacher`, `weights`: see `ladder_training`.
    """

    def __init__(
        self,
        preset: str = "tiny",
        *,
        seed: int = 0,
        source: str | Path = "emoji",
        labels: str = "category",
        teacher: str = "semantic",
        weights: str | None = None,
        runs: str | Path | None = None,
        device: str = "auto",
    ):
        self.preset, self.seed, self.root = preset, seed, runs
        self.suffix = run_suffix(preset, seed, source)
        base = choose(preset, TOKENIZER_TRAINING, "preset")
        size = base.model.image_size
        self.images = {
            s: open_images(source, split=s, image_size=size, labels=labels)
            for s in ("train", "val", "test")
        }
        self.device = pick_device(device)
        self.teacher, self.weights = teacher, weights
        self.tuning = DECODER_TUNING[preset] | {"latent_noise": 0.0}
        self.changes = {
            "losses__perceptual": self.tuning.get("losses.perceptual", base.losses.perceptual),
            "images": self.images["train"].fingerprint,
            "precision": pick_precision(self.device),
            "seed": seed,
        }

    def name(self, rung: str, *, tuned: bool = False) -> str:
        """The name of a row's run."""
        return f"ladder-{rung}-{self.suffix}" + ("-tuned" if tuned else "")

    def first_stage(self, rung: str, *, tuned: bool = False) -> TokenizerTraining:
        """The training of a rung that spends the whole budget, or of the one that leaves its share to decoder tuning."""
        steps = TOKENIZER_TRAINING[self.preset].num_steps + (
            0 if tuned else self.tuning["num_steps"]
        )
        return ladder_training(
            self.preset,
            rung,
            teacher=self.teacher,
            weights=self.weights,
            num_steps=steps,
            **self.changes,
        )

    def train(self, rung: str, *, tuned: bool = False) -> Run:
        """Train a row, or what is left of it, with a line of progress now and then; at once if it is finished."""
        config, name = self.first_stage(rung, tuned=tuned), self.name(rung)
        with Run.open(name + ("-stage1" if tuned else ""), config, root=self.root) as run:
            self._follow(run, train_tokenizer(config, self.images["train"], run, **self._options))
        if not tuned:
            return run
        config = decoder_tuning(config, parent=run, **self.tuning)
        with Run.open(
            self.name(rung, tuned=True), config, root=self.root, parents=[run]
        ) as tuned_run:
            stage = finetune_decoder(
                config, self.images["train"], tuned_run, parent=run, **self._options
            )
            self._follow(tuned_run, stage)
        return tuned_run

    @property
    def _options(self) -> dict[str, Any]:
        return {"preview": self.images["val"], "cpu": self.device.type == "cpu"}

    @staticmethod
    def _follow(run: Run, stage: Iterable) -> None:
        live = LiveTraining(run.name, every=30)
        for record in stage:
            live.update(record)

    def latents(self, run: Run, split: str) -> LatentDataset:
        """The cached latents of a row, with mirrored ones for training: a run of its own, `NAME-latents-SPLIT`."""
        where = {"flips": split == "train", "root": self.root, "device": self.device}
        return ready_latents(run, self.images[split], f"{run.name}-latents-{split}", **where)

    def score(self, run: Run) -> EvalResult:
        """Held-out numbers of a finished row, computed once and kept in its folder as ladder.json.

        PSNR, SSIM and perceptual distance (SqueezeNet's) of test images, and top-1 on them of a linear probe of the flattened
        latents, whose penalty is chosen on val.
        """
        path, test = run.folder / "ladder.json", self.images["test"]
        if path.exists():
            result = EvalResult.load(path)
            if result.protocol.reference_sha256 == test.fingerprint:
                return result
        tokenizer = load_tokenizer(run.folder).to(self.device)
        result = evaluate_reconstruction(
            tokenizer,
            test,
            perceptual=SqueezePerceptual(load_net("squeezenet1_1").to(self.device)),
            device=self.device,
            protocol=EvalProtocol(
                task="reconstruction", ema=run.config["ema_decay"], seed=self.seed
            ),
        )
        z = {split: self.latents(run, split) for split in self.images}
        told = [(cache.all_latents(), cache.labels) for cache in (z["train"], z["test"], z["val"])]
        probe = linear_probe(
            *told[0], *told[1], validation=told[2], seed=self.seed, precision="float32"
        )
        result.metrics["probe_top1"], result.metrics["probe_majority"] = probe.top1, probe.majority
        margin = 1.96 * probe.standard_error
        result.intervals["probe_top1"] = (probe.top1 - margin, probe.top1 + margin)
        result.save(path)
        return result


def climb(
    ladders: Iterable[Ladder],
    *,
    rungs: Iterable[str] = tuple(LADDER),
    told: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train and score every rung of every ladder, with and without tuning -> one row each, in the ladder's order.

    Columns: rung, tuned, seed, images (seen while training), psnr in dB, perceptual, probe_top1, run. Stopped, it goes on
    where it was.
    """
    rungs = [choose(rung, {name: name for name in LADDER}, "rung of the ladder") for rung in rungs]
    rows = []
    for ladder in ladders:
        for rung in rungs:
            for tuned in (False, True):
                run = ladder.train(rung, tuned=tuned)
                metrics = ladder.score(run).metrics
                shown = {name: metrics[name] for name in ("psnr", "perceptual", "probe_top1")}
                told(
                    f"{run.name}: "
                    + ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
                )
                seen = int(sum(part.summary["images"] for part in stages(run)))
                rows.append(
                    {
                        "rung": rung,
                        "tuned": tuned,
                        "seed": ladder.seed,
                        "images": seen,
                        **shown,
                        "run": run.name,
                    }
                )
    return pd.DataFrame(rows)


def stages(run: Run) -> list[Run]:
    """A tokenizer's run, and before it the one whose decoder it tunes, if it does."""
    if run.config["trains"] == "all":
        return [run]
    return [*(Run(run.folder.parent / parent["run"]) for parent in run.provenance["parents"]), run]


def markdown(table: pd.DataFrame) -> str:
    """The table for a notebook's or a README's text."""
    kinds = {"psnr": "{:.2f}", "perceptual": "{:.3f}", "probe_top1": "{:.3f}"}
    lines = [list(table.columns), ["---"] * table.shape[1]]
    lines += [
        [kinds.get(name, "{}").format(value) for name, value in row.items()]
        for _, row in table.iterrows()
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
