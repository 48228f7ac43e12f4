"""Samples on disk: the same images whatever was interrupted, by any number of processes."""

import copy
import dataclasses
import inspect
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.sampling import Guidance, sample_steps
from maetok_lab.evaluation.npz import NpzImages
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.sample_sets import (
    class_labels,
    image_path,
    sample_set,
    sampling_options,
    write_samples,
)
from maetok_lab.generation.images import generate
from maetok_lab.identity import fingerprint, tensors_fingerprint
from maetok_lab.pictures import to_uint8
from maetok_lab.runs import Run

SPACE = LatentSpace("weights", torch.tensor([0.5, -0.5]), torch.tensor([2.0, 0.5]))
PROTOCOL = EvalProtocol(
    num_images=7,
    labels="equal",
    sampler="heun",
    steps=3,
    path="linear",
    guidance_scale=1.5,
    guidance_high=0.8,
    seed=5,
)


def opened(model, tokenizer, root, name="samples", protocol=PROTOCOL):
    labels = class_labels(protocol, 4)
    config = sample_set(protocol, model, tokenizer, labels)
    return (model, tokenizer, SPACE, labels, config), Run.open(name, config, root=root)


def pixels(run):
    with np.load(run.folder / "samples.npz") as file:
        return file["arr_0"]


def test_pngs_and_npz_hold_what_generate_draws(model, tokenizer, tmp_path):
    request, run = opened(model, tokenizer, tmp_path)
    assert list(write_samples(*request, run, batch_size=3)) == [(3, 7), (6, 7), (7, 7)]
    expected = generate(
        model, tokenizer, SPACE, request[3], batch_size=7, **sampling_options(PROTOCOL)
    )
    expected = to_uint8(expected).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels(run).astype(int) - expected).max() <= 1  # a rounding boundary
    assert (pixels(run) == expected).mean() > 0.99
    for row in range(7):
        np.testing.assert_array_equal(
            np.asarray(Image.open(image_path(run, row))), pixels(run)[row]
        )
    source = NpzImages(run.folder / "samples.npz")
    assert source.batch(torch.arange(7))[1].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert run.finished
    assert list(write_samples(*request, run)) == []


def test_a_stopped_run_draws_only_what_is_missing(model, tokenizer, tmp_path):
    request, whole = opened(model, tokenizer, tmp_path, "whole")
    list(write_samples(*request, whole, batch_size=2))
    _, stopped = opened(model, tokenizer, tmp_path, "stopped")
    steps = write_samples(*request, stopped, batch_size=2)
    assert next(steps) == (2, 7)
    steps.close()
    assert not stopped.finished
    image_path(stopped, 0).unlink()
    before = image_path(stopped, 1).stat().st_mtime_ns
    assert list(write_samples(*request, stopped, batch_size=2)) == [(3, 7), (5, 7), (7, 7)]
    assert image_path(stopped, 1).stat().st_mtime_ns == before
    assert (np.abs(pixels(stopped).astype(int) - pixels(whole)) <= 1).all()


def test_another_model_or_other_labels_are_refused(model, tokenizer, tmp_path):
    request, run = opened(model, tokenizer, tmp_path)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(
        ValueError, match="configured for another model, tokenizer or other labels: model: "
    ):
        next(write_samples(*request, run))
    with pytest.raises(ValueError, match="7 labels for 8 images"):
        sample_set(dataclasses.replace(PROTOCOL, num_images=8), model, tokenizer, request[3])
    run.close()
    with pytest.raises(ValueError, match=r"protocol\.seed: 6, not 5"):
        opened(model, tokenizer, tmp_path, protocol=dataclasses.replace(PROTOCOL, seed=6))


def test_labels_are_equal_random_or_none():
    assert class_labels(PROTOCOL, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert class_labels(dataclasses.replace(PROTOCOL, labels="none"), 3).tolist() == [3] * 7
    many = dataclasses.replace(PROTOCOL, labels="random", num_images=2000)
    assert class_labels(many, 4).bincount().tolist() == pytest.approx([500] * 4, rel=0.2)
    pool = torch.tensor([0, 0, 0, 2])
    assert class_labels(many, 4, pool=pool).bincount().tolist() == pytest.approx(
        [1500, 0, 500], rel=0.2
    )
    assert class_labels(many, 4).equal(class_labels(many, 4))
    with pytest.raises(ValueError, match=r"must state num_images and labels .* not None and None"):
        class_labels(EvalProtocol(), 3)


def test_the_protocol_alone_says_how_samples_are_drawn():
    options = sampling_options(PROTOCOL)
    assert (options["method"], options["num_steps"], options["seed"]) == ("heun", 3, 5)
    assert (options["guidance"].scale, options["guidance"].low, options["guidance"].high) == (
        1.5,
        0.0,
        0.8,
    )
    assert sampling_options(dataclasses.replace(PROTOCOL, guidance_scale=None))["guidance"] is None
    with pytest.raises(ValueError, match="must state sampler, path before"):
        sampling_options(EvalProtocol(steps=3))


STATED_BY = {  # the protocol's fields for each option of `sample_steps`
    "method": ["sampler"],
    "num_steps": ["steps"],
    "guidance": ["guidance_scale", "guidance_low", "guidance_high"],
    "path": ["path"],
    "weak_model": ["weak_model"],
    "time_shift": ["time_shift"],
    "seeds": ["seed"],
    "sde_noise": ["seed"],  # drawn from the seeds
}


def test_no_option_of_the_sampler_is_forgotten_by_the_protocol():
    # a sample's noise is at t = 1
    inputs = {"model", "noise", "start", "labels"}
    options = set(inspect.signature(sample_steps).parameters) - inputs
    assert options == set(STATED_BY)
    stated = {"num_images", "labels", "precision", "ema", "rounding"}.union(*STATED_BY.values())
    assert stated <= {field.name for field in dataclasses.fields(EvalProtocol)}
    assert options - set(sampling_options(PROTOCOL)) == {"seeds", "sde_noise"}


def test_time_shift_and_weak_model_are_drawn_with_as_stated(model, tokenizer, tmp_path):
    weak = copy.deepcopy(model)
    with torch.no_grad():
        weak.final_layer.linear.weight.mul_(0.5)
    changes = {"time_shift": 3.0, "weak_model": tensors_fingerprint(weak.state_dict())}
    protocol = dataclasses.replace(PROTOCOL, **changes)
    assert "time shift 3, " in protocol.describe()
    assert f"by weights {changes['weak_model']}" in protocol.describe()

    labels = class_labels(protocol, 4)
    config = sample_set(protocol, model, tokenizer, labels, weak_model=weak)
    run = Run.open("weak", config, root=tmp_path)
    request = (model, tokenizer, SPACE, labels)
    list(write_samples(*request, config, run, weak_model=weak))
    guidance = Guidance(1.5, 0.0, 0.8)
    drawing = {"method": "heun", "num_steps": 3, "guidance": guidance, "seed": 5}
    expected = generate(*request, **drawing, time_shift=3.0, weak_model=weak)
    expected = to_uint8(expected).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels(run).astype(int) - expected).max() <= 1
    plain = to_uint8(generate(*request, **drawing)).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels(run).astype(int) - plain).max() > 1

    for given in (None, model):
        with pytest.raises(ValueError, match=r"says weak_model = '.*', but the one given is "):
            sampling_options(protocol, given)
    with pytest.raises(ValueError, match="says weak_model = None, but"):
        sampling_options(PROTOCOL, weak)


def test_a_protocol_without_a_shift_follows_the_model_and_no_sample_starts_on_the_way(
    model, tokenizer
):
    request = (model, tokenizer, SPACE, class_labels(PROTOCOL, 4))
    model.set_training("linear", time_shift=3.0)
    own, none, three = (
        generate(*request, **sampling_options(dataclasses.replace(PROTOCOL, time_shift=shift)))
        for shift in (None, 1.0, 3.0)
    )
    assert torch.equal(own, three)
    assert not torch.allclose(own, none, atol=1e-3)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'start'"):
        generate(*request, num_steps=2, start=0.5)


def test_protocols_without_the_younger_fields_keep_their_names():
    # of commit 95809ad
    assert fingerprint(PROTOCOL) == "44bc8a37128340e8"
    for change in ({"time_shift": 2.0}, {"weak_model": "0123"}, {"rounding": "truncated"}):
        assert fingerprint(dataclasses.replace(PROTOCOL, **change)) != fingerprint(PROTOCOL)


def test_samples_are_truncated_where_the_protocol_says_so(model, tokenizer, tmp_path):
    protocol = dataclasses.replace(PROTOCOL, rounding="truncated")
    request, run = opened(model, tokenizer, tmp_path, protocol=protocol)
    list(write_samples(*request, run))
    drawn = generate(*request[:4], **sampling_options(protocol))
    # ADM's image_sample.py: ((sample + 1) * 127.5).clamp(0, 255).to(uint8), which truncates
    expected = ((drawn + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (pixels(run) == expected).mean() > 0.99
    request, nearest = opened(model, tokenizer, tmp_path, "nearest")
    list(write_samples(*request, nearest))
    lower = pixels(nearest).astype(int) - pixels(run)
    assert (lower.min(), lower.max()) == (0, 1)
    assert 0.2 < lower.mean() < 0.8


def _process(rank, port, root, model, tokenizer, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    request, run = opened(
        model, tokenizer, root, f"part-{rank}"
    )  # a lock each: the second reads the first one's folder
    run = run if rank == 0 else Run(root / "part-0")
    progress = list(write_samples(*request, run, batch_size=2))
    drawn = generate(
        model, tokenizer, SPACE, request[3], batch_size=2, **sampling_options(PROTOCOL)
    )
    queue.put((rank, progress, drawn.tolist()))
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_images(model, tokenizer, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request, whole = opened(model, tokenizer, tmp_path, "whole")
    list(write_samples(*request, whole, batch_size=7))
    Run.open("part-0", request[4], root=tmp_path).close()
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=_process, args=(r, port, tmp_path, model, tokenizer, queue))
        for r in range(2)
    ]
    for worker in workers:
        worker.start()
    results = {
        rank: (progress, torch.tensor(drawn))
        for rank, progress, drawn in (queue.get(timeout=60) for _ in workers)
    }
    for worker in workers:
        worker.join()
    assert [results[0][0][-1], results[1][0][-1]] == [(4, 4), (3, 3)]
    shared = Run(tmp_path / "part-0")
    assert shared.finished
    assert (np.abs(pixels(shared).astype(int) - pixels(whole)) <= 1).all()
    expected = generate(model, tokenizer, SPACE, request[3], **sampling_options(PROTOCOL))
    for _, drawn in results.values():
        assert torch.allclose(drawn, expected, atol=1e-4)
