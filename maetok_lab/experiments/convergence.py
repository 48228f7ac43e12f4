"""How soon a diffusion model draws well: its checkpoints scored by kernel distance (figure 5b).

runs/convergence-NAME-HASH/  config.json step-0000250.json step-0000500.json ... summary.json
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from maetok_lab.analysis.definitions import definition
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.evaluation.features import Reference, about_net, make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult
from maetok_lab.evaluation.sample_sets import sampling_options
from maetok_lab.experiments.comparison import distance_columns
from maetok_lab.files import read_record, write_json
from maetok_lab.generation.images import generate
from maetok_lab.identity import fingerprint, fingerprint_of
from maetok_lab.inference import device_of
from maetok_lab.protocols import AnyTokenizer, Net
from maetok_lab.runs import Run, runs_root
from maetok_lab.runs.checkpoints import read_state
from maetok_lab.training.diffusion import DiffusionTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convergence:
    """The config of a run of scores: all that they depend on."""

    protocol: EvalProtocol  # how every checkpoint draws
    references: dict[str, str]  # hash of what samples are compared with, by column
    labels: str  # hash of them, in order
    tokenizer: str  # its fingerprint
    checkpoints: dict[str, str]  # hash of each, by step


def milestone_steps(config: DiffusionTraining, count: int = 6) -> list[int]:
    """Up to `count` steps, evenly spaced, after which a training saves; its end is the last.

    For `run.keep_milestones(*steps)` before it starts: else the newest checkpoints alone stay.
    """
    every = config.save_every
    steps = {config.num_steps}
    for number in range(1, count):
        near = every * max(1, round(config.num_steps * number / count / every))
        steps.add(min(near, config.num_steps))
    return sorted(steps)


def convergence_run(
    run: Run,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    labels: torch.Tensor,
    references: Mapping[str, Reference],
    *,
    protocol: EvalProtocol,
    net: Net,
    root: str | Path | None = None,
) -> Run:
    """One image a label by the averaged weights of every milestone of a finished diffusion run, and
    of its end, scored; what is scored is not scored again.

    `protocol` is of `sampling_protocol(run)`; `references` are by column: "kid" test images,
    "kid_gap" what the tokenizer makes of them. Raises ValueError for other runs.
    """
    newest = run.checkpoint_steps()[-1:]
    steps = sorted({*run.milestones(), *newest} & set(run.checkpoint_steps()))
    checkpoints = {}
    for step in steps:
        checkpoints[str(step)] = fingerprint_of(read_state(run.folder, step)["sha256"])
    config = Convergence(
        protocol=protocol.filled(num_images=len(labels), **about_net(net)),
        references={column: side.sha256 for column, side in references.items()},
        labels=fingerprint_of(labels.tolist()),
        tokenizer=tokenizer.fingerprint,
        checkpoints=checkpoints,
    )

    name = f"convergence-{run.name.removeprefix('diffusion-')}-{fingerprint(config)[:8]}"
    with Run.open(name, config, root=root, parents=[run]) as scores:
        if scores.finished:
            return scores
        # each checkpoint's scores are one file: what is stopped goes on with the next
        files = {step: scores.folder / f"step-{step:07d}.json" for step in steps}
        for step, file in files.items():
            if file.exists():
                continue
            model = load_diffusion(run.folder, ema=protocol.ema, step=step)
            model = model.to(device_of(tokenizer))
            options = sampling_options(config.protocol)
            images = generate(model, tokenizer, space, labels, **options)
            results = _score(images, references, config.protocol, net)
            write_json(file, {"images": step * run.config["batch_size"], "results": results})
        last = convergence_table(scores).iloc[-1]
        scores.finish(last.to_dict(), files=files.values())
    return scores


def _score(
    images: torch.Tensor, references: Mapping[str, Reference], protocol: EvalProtocol, net: Net
) -> dict[str, Any]:
    """The kernel distances to all references, as JSON; features are computed once."""
    samples = make_reference(images, net, name="samples", rounding=protocol.rounding)
    results = {}
    for column, side in references.items():
        result = evaluate_generation(samples, side, net=net, protocol=protocol, metrics=["kid"])
        results[column] = result.to_json()
    return results


def convergence_table(scores: Run) -> pd.DataFrame:
    """One line a scored checkpoint: step, images (that the training had seen by then), and for each
    column of references, such as "kid", its value and 95 % interval (kid_low, kid_high).

    `.attrs` holds the protocol of the first column in words, `net`, and the definition of
    `steps_to_reach`.
    """
    lines = []
    attrs: dict[str, Any] = {"definition": definition("steps_to_reach")}
    for file in sorted(scores.folder.glob("step-*.json")):
        record = read_record(file, needs=("images", "results"))
        line = {"step": int(file.stem.removeprefix("step-")), "images": record["images"]}
        for column, data in record["results"].items():
            result = EvalResult.from_json(data)
            line |= distance_columns(column, result)
            protocol = result.protocol
            attrs = {"protocol": protocol.describe(), "net": protocol.net} | attrs
        lines.append(line)
    table = pd.DataFrame(lines)
    table.attrs = attrs
    return table


def curves_beside(scores: Run, root: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The tables of this run of scores and of all finished ones that share its protocol (but EMA
    rate and path), labels and test images, by the name of the diffusion run.
    """
    tables = {_trained(scores): convergence_table(scores)}
    for file in sorted(runs_root(root).glob("convergence-*/config.json")):
        try:
            other = Run(file.parent)
            if other.finished and _common(other) == _common(scores):
                tables.setdefault(_trained(other), convergence_table(other))
        except ValueError as problem:  # one folder must not keep the others from being read
            warnings.warn(str(problem), stacklevel=2)
    return tables


def _trained(scores: Run) -> str:
    return scores.provenance["parents"][0]["run"]


def _common(scores: Run) -> tuple[Any, ...]:
    """What curves that share a figure have in common."""
    own = {"ema": None, "path": None}
    config = scores.config
    return config["protocol"] | own, config["labels"], config["references"].get("kid")


def steps_to_reach(table: pd.DataFrame, threshold: float, *, column: str = "kid") -> float:
    """Training images seen until `column` is at most `threshold` for the first time.

    Linear between two checkpoints; what the first one reaches is reached by its images at the
    latest. NaN where none does.
    """
    table = table.dropna(subset=[column])
    images = table["images"].tolist()
    values = table[column].tolist()
    for number, value in enumerate(values):
        if value > threshold:
            continue
        if number == 0:
            return float(images[0])
        before = values[number - 1]
        share = (before - threshold) / (before - value)
        return images[number - 1] + share * (images[number] - images[number - 1])
    return math.nan
