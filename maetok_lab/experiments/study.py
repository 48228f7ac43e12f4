"""The study of rivals: one tokenizer after the other, from training to samples and card.

    run = study_row("denoise", Ladder("tiny", seed=0), STUDIES["tiny"])
    table = study_table(STUDIES["tiny"], ladder.images["train"].fingerprint)

A row is a rung of `RUNGS`; "RUNG-tuned" or "RUNG-post", which spend a part of the same budget on
the decoder; or "control-20dB", a plain autoencoder stopped at that PSNR. Each is a run of its own
whose summary has all its numbers, so rows can be made in any order, by a sweep, on several
machines.
"""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Literal

import pandas as pd

from maetok_lab.config import from_json, to_json
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
from maetok_lab.files import read_json, write_json
from maetok_lab.hints import check_choice, choose
from maetok_lab.runs import Run, runs_root
from maetok_lab.tokenizer.registry import TABLES
from maetok_lab.training.meanings import MEANINGS
from maetok_lab.training.rungs import RUNGS

CONTROL = re.compile(r"control-(\d+(?:\.\d+)?)dB")
SECOND_STAGES = ("-tuned", "-post")
SHIPPED_STUDY = TABLES / "study.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What is alike for all rows."""

    comparison: Comparison  # diffusion model, mixtures, samples
    dimensions: int  # of principal components to which all latents are cut for their card


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
    ),
    "tiny": Study(comparison=Comparison(diffusion_steps=950), dimensions=256),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRow:
    """The config of a row's run: all that its numbers depend on."""

    row: str  # its name
    seed: int  # of everything
    images: str  # fingerprint of the training images
    tokenizer: str  # fingerprint of the run that made it
    study: Study  # how it was judged


def study_of(preset: str) -> Study:
    """The study that goes with a preset of the ladder."""
    return choose(preset, STUDIES, "preset")


def study_row(name: str, ladder: Ladder, study: Study) -> Run:
    """Train, sample and judge one tokenizer, or what is left of that; a finished row comes back.

    The summary has `kind` ("rung" or "control"), `images` seen, names of runs, PSNRs, kernel
    distances with intervals, every entry of the card, and the protocol in words. Raises ValueError
    for a name that is no row.
    """
    # the tokenizer, which says whether the row is there
    check_row(name)
    tokenizer = _trained(name, ladder, study)
    row = Row(name, ladder, tokenizer)
    config = StudyRow(
        row=name,
        seed=ladder.seed,
        images=ladder.images["train"].fingerprint,
        tokenizer=tokenizer.fingerprint,
        study=study,
    )
    title = f"study-{name}-{ladder.suffix}"
    with Run.open(title, config, root=ladder.root, parents=[tokenizer]) as run:
        if run.finished:
            return run
        # everything that is said of it, in runs of their own
        score = ladder.score(tokenizer)
        flow = flow_of(row, study.comparison)
        generation = generation_of(row, flow, study.comparison)
        card = card_of(row, study.comparison, study.dimensions, score)
        run.finish(
            {
                "kind": "control" if CONTROL.fullmatch(name) else "rung",
                "images": int(sum(part.summary["images"] for part in stages(tokenizer))),
                "tokenizer": tokenizer.name,
                "flow": flow.name,
                "card": card.name,
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


def study_table(
    study: Study,
    images: str,
    *,
    results: Literal["shipped", "runs", "both"] = "runs",
    root: str | Path | None = None,
) -> pd.DataFrame:
    """The rows of `study` on the training images of that fingerprint: a line a row and seed.

    Columns row, seed, kind, images (that were seen), psnr, kid, kid_gap with their intervals, the
    entries of cards, protocol. "both" puts finished rows below `root` over those that come with the
    library. Raises ValueError where there is none.
    """
    tables = []
    if results != "runs":
        tables.append(_shipped(study, images))
    if results != "shipped":
        tables.append(_finished_rows(study, images, root))
    table = pd.concat(tables, ignore_index=True)
    if table.empty:
        raise ValueError(
            f"no row of this study is finished below {runs_root(root)}: make some with "
            "11_study_row or its sweep, name them in `rows`, or read results = 'shipped'"
        )
    return in_order(table.drop_duplicates(["row", "seed"], keep="last"))


def _finished_rows(study: Study, images: str, root: str | Path | None) -> pd.DataFrame:
    lines = []
    for file in sorted(runs_root(root).glob("study-*/summary.json")):
        try:
            run = Run(file.parent)
            if run.class_name != StudyRow.__name__ or not run.finished:
                continue
            config = run.load_config(StudyRow)
            if (config.study, config.images) == (study, images):
                lines.append({"row": config.row, "seed": config.seed} | run.summary)
        except ValueError as problem:  # one folder must not keep the others from being read
            warnings.warn(str(problem), stacklevel=3)
    return pd.DataFrame(lines)


def _shipped(study: Study, images: str) -> pd.DataFrame:
    # one file of numbers, and beside it what they were made by
    table = pd.read_csv(SHIPPED_STUDY)
    made_by = from_json(StudyRow, read_json(SHIPPED_STUDY.with_suffix(".json")))
    for name, (own, shipped) in {
        "study": (study, made_by.study),
        "images": (images, made_by.images),
    }.items():
        if own != shipped:
            raise ValueError(
                f"the rows that come with the library have another {name} ({shipped}, not {own}): "
                'use preset = "tiny" and source = "emoji", or results = "runs"'
            )
    return table


def study_means() -> pd.DataFrame:
    """Means over seeds of the study that comes with the library, whatever images are at hand.

    -> index row, columns seeds, psnr (dB), kid, kid_gap.
    """
    by_row = pd.read_csv(SHIPPED_STUDY).groupby("row", sort=False)
    means = by_row[["psnr", "kid", "kid_gap"]].mean()
    means.insert(0, "seeds", by_row["seed"].nunique())
    return means


def rung_table() -> pd.DataFrame:
    """Every rung in words, and what the study that comes with the library measured of it.

    -> index rung, in the order of `RUNGS`; numbers are NaN for a rung that the study has not.
    """
    lines = {}
    for rung, meaning in MEANINGS.items():
        # a table of a notebook renders no Markdown
        words = (meaning.change, meaning.place, meaning.expected)
        lines[rung] = [text.replace("`", "") for text in words]
    columns = ["what changes", "from", "what to expect"]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("rung")
    titles = {"psnr": "PSNR in the study, dB", "kid": "KID in the study"}
    return table.join(study_means()[list(titles)].rename(columns=titles))


def ship_study(table: pd.DataFrame, study: Study, images: str) -> None:
    """Write a table of `study_table` as the one that comes with the library."""
    names = ["tokenizer", "flow", "card"]  # runs that do not come with it
    table.drop(columns=names, errors="ignore").to_csv(SHIPPED_STUDY, index=False)
    made_by = StudyRow(row="", seed=0, images=images, tokenizer="", study=study)
    write_json(SHIPPED_STUDY.with_suffix(".json"), to_json(made_by))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rungs as `RUNGS` has them, each with its second stages behind it, then the controls."""
    names = list(RUNGS)

    def place(row: str) -> tuple[float, ...]:
        """Where a row stands."""
        if match := CONTROL.fullmatch(row):
            return len(names), float(match[1])
        return names.index(rung_of(row)), len(row)

    places = table["row"].map(place)
    table = table.assign(place=places).sort_values(["place", "seed"]).drop(columns="place")
    return table.reset_index(drop=True)
