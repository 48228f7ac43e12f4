"""FSDP2: the diffusion transformer's blocks sharded over two processes learn what one process
learns.

torch's `fully_shard` on gloo, on the CPU; Accelerate's own FSDP2 wants GPUs. The path on GPUs is
not measured.
"""

import os

import pytest
import torch
from torch.distributed.tensor import DTensor

from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.path import velocity_loss
from maetok_lab.rng import generator

STEPS, BATCH = 3, 8


def make_model():
    draw = torch.Generator().manual_seed(0)
    model = DiffusionTransformer(
        DiffusionConfig(width=16, depth=2, num_heads=2), num_tokens=4, latent_dim=3, num_classes=5
    )
    for parameter in (
        model.parameters()
    ):  # adaLN-zero: at its start the model gives zeros, whatever its blocks do
        torch.nn.init.normal_(parameter, std=0.2, generator=draw)
    return model


def learn(model, rows):
    """A few steps on these rows of each global batch; -> the losses. Not AdamW, which makes much of
    gradients that are only rounding (of the keys' biases).
    """
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for step in range(STEPS):
        draw = generator(0, "toy", step)
        latents, noise = (torch.randn(BATCH, 4, 3, generator=draw) for _ in range(2))
        t = torch.rand(BATCH, generator=draw)
        labels = torch.arange(BATCH) % 5
        loss = velocity_loss(
            model, latents[rows], labels[rows], t=t[rows], noise=noise[rows]
        ).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _process(rank, port, queue):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    torch.distributed.init_process_group("gloo")
    mesh, model = init_device_mesh("cpu", (2,)), make_model()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    sharded = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    losses = learn(model, slice(rank, None, 2))
    weights = {
        name: parameter.full_tensor().tolist() for name, parameter in model.named_parameters()
    }
    queue.put((rank, sharded, held, losses, weights))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_share_the_weights_learn_what_one_learns(in_two_processes):
    found = {rank: rest for rank, *rest in in_two_processes(_process, timeout=90)}
    whole = make_model()
    losses = learn(whole, slice(None))
    total = sum(parameter.numel() for parameter in whole.parameters())
    for sharded, held, _, weights in found.values():
        assert sharded
        assert held < 0.6 * total  # half, but for what does not divide
        for name, parameter in whole.named_parameters():
            assert torch.allclose(torch.tensor(weights[name]), parameter, atol=1e-4), name
    assert [sum(pair) / 2 for pair in zip(found[0][2], found[1][2])] == pytest.approx(
        losses, rel=1e-4
    )
