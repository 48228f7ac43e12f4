"""What notebooks do with `processes`, from tokenizer to scores: two give what one gives."""

import pytest
import torch

from maetok_lab.config import override
from maetok_lab.data.caching import cached_latents
from maetok_lab.data.images import open_images
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.generation.images import generate
from maetok_lab.nets import load_net
from maetok_lab.ranks import in_processes
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import DECODER_TUNING, diffusion_training, tokenizer_training
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

CPU = torch.device("cpu")
# Muon orthogonalises in bf16, which makes much of rounding; and each part of a batch has its own
# adaptive weight and spectral norms
ADAM = {
    **{"precision": "fp32", "accumulate": 1},
    **{"optimizer.name": "adamw", "optimizer.learning_rate": 1e-4},
}
PATCHGAN = {
    "losses.adversarial": {
        **{"discriminator": "patchgan", "width": 8, "layers": 1},
        **{"trains_from": 2, "counts_from": 4},
    }
}


def losses(run: Run) -> dict[str, list[float]]:
    """All that a run logged of its training."""
    return run.metrics("train").drop(columns=["images", "split"]).to_dict("list")


def path_of(root, processes: int) -> dict[str, object]:
    """Every stage with so many processes. -> what is compared, by stage"""
    found = {}
    options = {"cpu": True, "processes": processes}
    images = open_images("emoji", split="val", image_size=32)

    changes = {**ADAM, **PATCHGAN, "num_steps": 8, "log_every": 1, "model.image_size": 32}
    first = override(tokenizer_training("test"), changes)
    with Run.open("tokenizer", first, root=root) as run:
        list(train_tokenizer(first, images, run, **options))
    found["tokenizer"] = losses(run)

    tuning = DECODER_TUNING["test"] | {"num_steps": 6}
    second = decoder_tuning(first, parent=run, **tuning)
    with Run.open("tuned", second, root=root, parents=[run]) as tuned:
        list(finetune_decoder(second, images, tuned, parent=run, **options))
    found["tuning"] = losses(tuned)

    tokenizer = load_tokenizer(tuned.folder)
    latents = cached_latents(tokenizer, images, "latents", root=root, processes=processes)
    found["latents"] = latents.all_latents()

    changes = {**ADAM, "num_steps": 6, "log_every": 1}
    config = override(diffusion_training("test", latents, num_classes=26), changes)
    with Run.open("diffusion", config, root=root, parents=[latents.run]) as run:
        list(train_diffusion(config, latents, run, **options))
    found["diffusion"] = losses(run)

    models = (load_diffusion(run.folder), tokenizer, latents.space)
    labels = torch.arange(6)
    found["samples"] = in_processes(processes, CPU, generate, *models, labels, num_steps=3)
    scores = in_processes(processes, CPU, evaluate_reconstruction, tokenizer, images)
    found["scores"] = scores.metrics
    net = load_net("squeezenet1_1")
    part = images.select(torch.arange(20))
    reference = in_processes(processes, CPU, make_reference, part, net, name="val")
    found["features"] = reference.features
    return found


@pytest.mark.slow
def test_two_processes_give_what_one_gives_in_every_stage(tmp_path):
    one = path_of(tmp_path / "one", 1)
    two = path_of(tmp_path / "two", 2)
    assert one["tokenizer"]["adversarial"][-1] != 0
    for stage in ("tokenizer", "tuning", "diffusion"):
        assert one[stage].keys() == two[stage].keys()
        for name, values in one[stage].items():
            assert two[stage][name] == pytest.approx(values, rel=1e-5, abs=1e-5, nan_ok=True), (
                stage,
                name,
            )
    for stage in ("latents", "samples", "features"):
        # stored in fp16, a latent may be rounded the other way
        torch.testing.assert_close(two[stage], one[stage], rtol=1e-3, atol=1e-3)
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-5)
