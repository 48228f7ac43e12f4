"""A latent cache is written once, normalised by its statistics, and bound to its tokenizer."""

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data import latents as latents_module
from maetok_lab.data.images import open_images
from maetok_lab.data.latents import (
    LatentCaching,
    LatentDataset,
    LatentSpace,
    load_latent_space,
    spread_rows,
    write_latents,
)
from maetok_lab.runs import Run

CPU = torch.device("cpu")


def test_a_cache_holds_what_the_tokenizer_gives_for_images_and_mirror_images(
    cache, pictures, tokenizer
):
    latents = cache(dtype="fp32")
    everything = torch.arange(22)
    with torch.inference_mode():
        for view, flip in ((0, False), (1, True)):
            images, labels = pictures.batch(everything, flip=torch.full((22,), flip))
            assert torch.allclose(
                latents.latents(everything, view=view), tokenizer.encode(images), atol=1e-5
            )
    assert torch.equal(latents.labels, labels)
    assert (len(latents), latents.views, latents.num_tokens, latents.latent_dim) == (22, 2, 3, 2)
    assert torch.equal(latents.all_latents(), latents.latents(everything))


def test_pictures_that_must_not_be_mirrored_have_the_same_latents_in_both_views(cache, pictures):
    latents = cache(dtype="fp32", batch_size=22)
    same = (
        (latents.latents(torch.arange(22)) == latents.latents(torch.arange(22), view=1))
        .flatten(1)
        .all(1)
    )
    assert torch.equal(same, ~pictures.flippable)
    assert cache("one", flips=False).views == 1


def test_fp16_is_fp32_rounded_and_read_back_as_float32(cache):
    exact, rounded = cache("a", dtype="fp32"), cache("b", dtype="fp16")
    index = torch.arange(22)
    assert rounded.latents(index).dtype == torch.float32
    assert torch.equal(rounded.latents(index), exact.latents(index).half().float())
    assert rounded._shards[0].dtype == np.float16


@pytest.mark.parametrize("memory_limit", [8e9, 0])
def test_bf16_is_fp32_rounded_and_read_back_as_float32(cache, memory_limit):
    exact, rounded = cache("a", dtype="fp32"), cache("b", dtype="bf16", memory_limit=memory_limit)
    index = torch.arange(22)
    expected = exact.latents(index).bfloat16().float()
    assert rounded.latents(index).dtype == torch.float32
    assert torch.equal(rounded.latents(index), expected)
    assert torch.equal(rounded.all_latents(), expected)
    assert rounded._shards[0].dtype == np.int16  # its bits
    assert torch.allclose(rounded.space.mean, expected.double().mean((0, 1)).float(), atol=1e-6)
    assert torch.allclose(
        rounded.space.std, expected.double().std((0, 1), correction=0).float(), atol=1e-6
    )


def test_the_memory_mapped_path_is_the_in_memory_path(cache):
    held, mapped = cache(), cache(memory_limit=0)
    assert held._all is not None
    assert mapped._all is None
    assert held.place == mapped.place == CPU
    index, view = torch.tensor([21, 0, 7, 8, 16, 8]), torch.tensor([0, 1, 1, 0, 1, 1])
    for views in (0, 1, view):
        expected = held.batch(index, view=views)
        for from_memory, from_file in zip(expected, mapped.batch(index, view=views)):
            assert torch.equal(from_memory, from_file)
    assert torch.equal(
        held.latents(index, view=view)[1], held.latents(torch.tensor([0]), view=1)[0]
    )


# Statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "axes"), [("scalar", (0, 1, 2)), ("channel", (0, 1)), ("element", 0)]
)
def test_statistics_are_numpys_over_the_unmirrored_images(cache, kind, axes):
    latents = cache(statistics=kind)
    values = latents.all_latents().double().numpy()
    assert np.allclose(latents.space.mean, values.mean(axes), atol=1e-6)
    assert np.allclose(latents.space.std, values.std(axes), rtol=1e-5)
    assert latents.space.mean.shape == {"scalar": (), "channel": (2,), "element": (3, 2)}[kind]


@pytest.mark.parametrize("kind", ["scalar", "channel", "element"])
def test_normalised_latents_have_mean_zero_and_std_one_and_come_back(cache, kind):
    latents = cache(statistics=kind)
    x, _ = latents.batch(torch.arange(22))
    axes = {"scalar": (0, 1, 2), "channel": (0, 1), "element": 0}[kind]
    assert x.mean(axes).abs().max() < 1e-5
    assert (x.std(axes, correction=0) - 1).abs().max() < 1e-5
    assert torch.allclose(
        latents.space.denormalise(x), latents.latents(torch.arange(22)), atol=1e-6
    )
    assert latents.space.check(x, tokenizer="weights").startswith("normalised latents: mean")


def test_constant_latents_cannot_be_normalised(tmp_path, pictures, caching):
    class Constant(torch.nn.Module):
        fingerprint = "weights"

        def encode(self, images):
            return torch.zeros(len(images), 3, 2)

    config = caching()
    with pytest.raises(
        ValueError, match="the latents are constant in some channel: there is nothing to normalise"
    ):
        list(
            write_latents(
                Constant(), pictures, config, Run.open("a", config, root=tmp_path), device=CPU
            )
        )


# The latent space ---------------------------------------------------------------------------------


def test_a_latent_space_refuses_another_tokenizer_and_latents_far_from_its_scale():
    space = LatentSpace("weights", torch.tensor(0.0), torch.tensor(1.0))
    x = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match="these latents belong to tokenizer weights, not to others"
    ):
        space.check(x, tokenizer="others")
    assert space.check(x)
    for scale in (0.3, 3.0, float("nan")):
        with pytest.raises(
            ValueError, match="normalised latents should have a std near 1, but this batch has mean"
        ):
            space.check(x * scale)


def test_a_latent_space_is_found_by_name_and_by_folder(cache, tmp_path, pictures, caching):
    space = cache().space
    for source, root in (("cache", tmp_path), (tmp_path / "cache", None)):
        loaded = load_latent_space(source, root=root)
        assert loaded.tokenizer == "weights"
        assert torch.equal(loaded.mean, space.mean)
        assert torch.equal(loaded.std, space.std)
    with pytest.raises(FileNotFoundError, match="nowhere is not a run"):
        load_latent_space("nowhere", root=tmp_path)
    Run.open("begun", caching(), root=tmp_path).close()
    with pytest.raises(
        FileNotFoundError, match=r"begun holds no latent space: it needs latent_space.safetensors"
    ):
        load_latent_space("begun", root=tmp_path)


def test_a_cache_is_held_when_half_of_the_free_memory_can_hold_it(cache, monkeypatch):
    run = cache().run
    size = (
        sum(path.stat().st_size for path in (run.folder / "latents").glob("*.npy")) - 3 * 128
    )  # headers
    for free, held in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr("maetok_lab.data.latents.free_memory", lambda device, free=free: free)
        assert (LatentDataset(run)._all is not None) == held


def test_the_tokenizer_gets_its_mode_back_even_when_caching_stops(
    tmp_path, pictures, tokenizer, caching
):
    config = caching()
    stopped = write_latents(
        tokenizer.train(), pictures, config, Run.open("a", config, root=tmp_path), device=CPU
    )
    next(stopped)
    during = tokenizer.training
    stopped.close()
    after = tokenizer.training
    tokenizer.eval()
    assert (during, after) == (False, True)


# Errors -------------------------------------------------------------------------------------------


def test_other_images_or_another_tokenizer_than_the_configs_are_refused(
    tmp_path, pictures, make_pictures, tokenizer, caching
):
    for name, wrong, source in (
        ("a", {"tokenizer": "other"}, pictures),
        ("b", {}, make_pictures(22, 8, seed=1)),
    ):
        config = caching(**wrong)
        with pytest.raises(
            ValueError, match=r"configured for (tokenizer other|images pictures-22-8-0), but"
        ):
            list(
                write_latents(
                    tokenizer, source, config, Run.open(name, config, root=tmp_path), device=CPU
                )
            )
        assert not (tmp_path / name / "latents").exists()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), "fp16"), (float("inf"), "fp32"), (1e5, "fp16")],
    ids=["nan", "inf", "too large"],
)
def test_latents_that_are_not_finite_are_an_error_that_names_the_images(
    tmp_path, pictures, value, dtype, caching
):
    class Broken(torch.nn.Module):
        fingerprint = "weights"

        def encode(self, images):
            latents = images[:, :, :2, :2].flatten(2).clone()
            latents[(images == pictures.images[10]).flatten(1).all(1)] = value
            return latents

    config = caching(dtype=dtype)
    run = Run.open("a", config, root=tmp_path)
    with pytest.raises(ValueError, match=f"latents of images 8 to 10 are not finite in {dtype}"):
        list(write_latents(Broken(), pictures, config, run, device=CPU))
    assert sorted(p.name for p in (run.folder / "latents").iterdir()) == [
        "shard-00000.npy",
        "shard-00000.sha256",
    ]  # kept


def test_each_image_is_decoded_once_and_workers_change_no_bit(tmp_path, tokenizer, monkeypatch):
    random = np.random.default_rng(0)
    for i in range(23):
        folder = tmp_path / "set" / ("train" if i < 20 else "val") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    images = open_images(tmp_path / "set", split="train", image_size=8)
    decoded = []
    decode = images_module.ImageSource._decode
    monkeypatch.setattr(
        images_module.ImageSource,
        "_decode",
        lambda source, row, *crop: decoded.append(row) or decode(source, row, *crop),
    )
    caches = []
    for workers in (0, 1, 2):
        config = LatentCaching(
            tokenizer="weights", images=images.fingerprint, shard_size=8, batch_size=3
        )
        run = Run.open(f"cache-{workers}", config, root=tmp_path)
        steps = list(write_latents(tokenizer, images, config, run, device=CPU, workers=workers))
        assert steps == [(8, 20), (16, 20), (20, 20)]
        if workers == 0:  # the others decode in processes of their own
            assert sorted(decoded) == sorted(images._rows.tolist())
        caches.append(LatentDataset(run))
    for view in (0, 1):
        first, *others = (cache.latents(torch.arange(20), view=view) for cache in caches)
        assert all(torch.equal(first, other) for other in others)


def test_a_cache_that_was_stopped_decodes_only_what_is_missing(
    tmp_path, tokenizer, pictures, caching
):
    config = caching()
    run = Run.open("stopped", config, root=tmp_path)
    steps = write_latents(tokenizer, pictures, config, run, device=CPU, workers=0)
    assert next(steps) == (8, 22)
    steps.close()
    read = pictures.read
    rows = []
    pictures.read = lambda indices, **o: rows.extend(indices.tolist()) or read(indices, **o)
    run.close()
    run = Run.open("stopped", config, root=tmp_path)
    assert list(write_latents(tokenizer, pictures, config, run, device=CPU)) == [
        *((8, 22), (16, 22), (22, 22))
    ]
    assert rows == list(range(8, 22))


def test_processes_on_one_cpu_map_a_large_cache_and_do_not_hold_it_each(cache, monkeypatch):
    path = cache().run.folder
    monkeypatch.setattr(latents_module, "process_group", lambda: (0, 2))
    monkeypatch.setattr(latents_module, "SHARED_BYTES", 100)
    mapped = LatentDataset(Run(path))
    assert mapped._all is None
    monkeypatch.setattr(latents_module, "process_group", lambda: (0, 1))
    held = LatentDataset(Run(path))
    assert torch.equal(held.latents(torch.arange(22)), mapped.latents(torch.arange(22)))


def test_the_check_of_a_cache_takes_latents_of_all_classes():
    assert spread_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = spread_rows(1400)
    assert len(rows) == 512
    assert 0.45 < (rows < 700).float().mean() < 0.55
    assert rows[-1] == 1399
