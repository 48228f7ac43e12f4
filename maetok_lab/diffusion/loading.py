"""Load a diffusion transformer's averaged weights from where training left them."""

from pathlib import Path

from maetok_lab.config import from_json
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.runs import find_run
from maetok_lab.weights import load_strictly


def load_diffusion(
    source: str | Path, *, ema: float | None = None, root: str | Path | None = None
) -> DiffusionTransformer:
    """The EMA weights of a diffusion run (its name, or its folder), in eval mode, on the CPU; `ema` chooses among its rates.

    Raises FileNotFoundError for what is not a run, ValueError for a run of another kind, a rate it has not, or no checkpoint.
    """
    run = find_run(source, root)
    if run is None:
        raise FileNotFoundError(f"{source} is not a run")
    if run.class_name != "DiffusionTraining":
        raise ValueError(f"run {run.name} holds a {run.class_name}, not a diffusion model")
    rates = run.config["ema_decays"]
    if ema is not None and ema not in rates:
        raise ValueError(f"run {run.name} has EMA rates {rates}, not {ema}")
    group = f"ema-{rates[0] if ema is None else ema:g}"
    checkpoint = run.load_checkpoint(groups=[group])
    if checkpoint is None:
        raise ValueError(f"run {run.name} has no checkpoint yet")
    sizes = {key: checkpoint.state[key] for key in ("num_tokens", "latent_dim", "num_classes")}
    model = DiffusionTransformer(from_json(DiffusionConfig, run.config["model"]), **sizes)
    load_strictly(model, checkpoint.tensors[group], f"run {run.name}")
    return model.eval()
