"""The study of rivals: one tokenizer after the other, from training to samples and card.

    run = study_row("denoise", Ladder("tiny", seed=0), STUDIES["tiny"])
    table = study_table()

A row is a rung of `RUNGS`; "RUNG-tuned" or "RUNG-post", which spend a part of the same budget on
the decoder; or "control-20dB", a plain autoencoder stopped at that PSNR. Each is a run of its own
whose summary has all its numbers, so rows can be made in any order, by a sweep, on several
machines.
"""

import dataclasses
import re
import warnings
from pathlib import Path

import pandas as pd

from maetok_lab.config import to_json
from maetok_lab.experiments.comparison import (
    Comparison,
    Row,
    card_of,
    control_at,
    distance_columns,
    flow_of,
    generation_of,
)
from maetok_lab.experiments.ladder import Ladder, stages
from maetok_lab.hints import check_choice, choose
from maetok_lab.runs import Run, runs_root
from maetok_lab.tokenizer.registry import TABLES
from maetok_lab.training.rungs import RUNGS

CONTROL = re.compile(r"control-(\d+(?:\.\d+)?)dB")
SECOND_STAGES = ("-tuned", "-post")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What is alike for all rows."""

    comparison: Comparison  # diffusion model, mixtures, samples
    dimensions: int  # of principal components to which all latents are cut for their card
    controls: tuple[float, ...]  # PSNRs on val, in dB, at which plain autoencoders are stopped


# The diffusion model has the steps of the main job.
STUDIES = {
    "test": Study(
        comparison=Comparison(
            diffusion_steps=8,
            components=(1, 5),
            restarts=1,
            sampling_steps=4,
            images=32,
            net_input=64,
            check_every=5,
        ),
        dimensions=8,
        controls=(5.0, 8.0),
    ),
    "tiny": Study(
        comparison=Comparison(diffusion_steps=950),
        dimensions=256,
        controls=(18.0, 19.5, 20.5, 21.5, 22.5, 24.0),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRow:
    """The config of a row's run: all that its numbers depend on."""

    row: str  # its name
    seed: int  # of everything
    tokenizer: str  # fingerprint of the run that made it
    study: Study  # how it was judged


def study_of(preset: str) -> Study:
    """The study that goes with a preset of the ladder."""
    return choose(preset, STUDIES, "preset")


def control_rows(study: Study) -> list[str]:
    """The names of the study's controls, from blurry to sharp."""
    return [f"control-{psnr:g}dB" for psnr in study.controls]


def study_row(name: str, ladder: Ladder, study: Study) -> Run:
    """Train, sample and judge one tokenizer, or what is left of that; a finished row comes back.

    The summary has `kind` ("rung" or "control"), `images` seen, PSNRs, kernel distances with their
    intervals, every entry of the card, and the protocol in words. Raises ValueError for a name that
    is no row.
    """
    check_row(name)
    tokenizer = _trained(name, ladder, study)
    row = Row(name, ladder, tokenizer)
    config = StudyRow(row=name, seed=ladder.seed, tokenizer=tokenizer.fingerprint, study=study)
    title = f"study-{name}-{ladder.suffix}"
    with Run.open(title, config, root=ladder.root, parents=[tokenizer]) as run:
        if run.finished:
            return run
        score = ladder.score(tokenizer)
        generation = generation_of(row, flow_of(row, study.comparison), study.comparison)
        card = card_of(row, study.comparison, study.dimensions, score)
        run.finish(
            {
                "kind": "control" if CONTROL.fullmatch(name) else "rung",
                "images": int(sum(part.summary["images"] for part in stages(tokenizer))),
                **card.summary,
                **distance_columns("kid", generation.to_test),
                **distance_columns("kid_gap", generation.to_reconstructions),
                "protocol": generation.to_test.protocol.describe(),
            }
        )
    return run


def check_row(name: str) -> None:
    """ValueError, with the nearest name, for one that is no row of a study."""
    if not CONTROL.fullmatch(name):
        check_choice(rung_of(name), RUNGS, "rung of a study's row")


def rung_of(name: str) -> str:
    """The rung that a row climbs to before its second stage, if it has one."""
    for ending in SECOND_STAGES:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def _trained(name: str, ladder: Ladder, study: Study) -> Run:
    """The tokenizer of a row, trained or found."""
    if match := CONTROL.fullmatch(name):
        title = f"ladder-{name}-{ladder.suffix}"
        return control_at(ladder, float(match[1]), title, study.comparison)
    rung = rung_of(name)
    if not name.endswith("-post"):
        return ladder.train(rung, tuned=name.endswith("-tuned"))
    # a diffusion model learns the latents of the first stage, then the decoder learns its
    first = ladder.train_first_stage(rung, tuned=True)
    flow = flow_of(Row(rung, ladder, first), study.comparison)
    return ladder.tune(rung, first, diffusion=flow)


def study_table(root: str | Path | None = None, *, study: Study) -> pd.DataFrame:
    """The rows of `study` that are finished below `root`: a line for each row and seed.

    Columns row, seed, kind, images, psnr, kid, kid_gap with their intervals, the entries of cards,
    protocol.
    """
    lines = []
    for file in sorted(runs_root(root).glob("study-*/summary.json")):
        try:
            run = Run(file.parent)
            if run.class_name != StudyRow.__name__ or run.config["study"] != to_json(study):
                continue
            if run.finished:
                name, seed = run.config["row"], run.config["seed"]
                lines.append({"row": name, "seed": seed} | run.summary)
        except ValueError as problem:  # one folder must not keep the others from being read
            warnings.warn(str(problem), stacklevel=2)
    return in_order(pd.DataFrame(lines))


def shipped_study() -> pd.DataFrame:
    """The study that comes with the library: preset `tiny`, in the columns of `study_table`."""
    return pd.read_csv(TABLES / "study.csv")


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rungs as `RUNGS` has them, each with its second stages behind it, then the controls."""
    if table.empty:
        return table
    names = list(RUNGS)

    def place(row: str) -> tuple[float, ...]:
        """Where a row stands."""
        if match := CONTROL.fullmatch(row):
            return len(names), float(match[1])
        return names.index(rung_of(row)), len(row)

    places = table["row"].map(place)
    table = table.assign(place=places).sort_values(["place", "seed"]).drop(columns="place")
    return table.reset_index(drop=True)
