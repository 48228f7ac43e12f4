"""A cache that was stopped, damaged or short of room goes on with what is missing."""

import errno
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maetok_lab.data.latents import LatentDataset, write_latents
from maetok_lab.identity import file_hash
from maetok_lab.runs import Run

CPU = torch.device("cpu")


def test_a_cache_killed_between_shards_goes_on_with_the_first_that_is_missing(
    cache, tmp_path, pictures, tokenizer, caching
):
    whole = cache("whole")
    config = caching()
    run = Run.open("cut", config, root=tmp_path)
    stopped = write_latents(tokenizer, pictures, config, run, device=CPU)
    assert [next(stopped), next(stopped)] == [(8, 22), (16, 22)]
    stopped.close()
    (run.folder / "latents" / ".shard-00002.npy.123.abc").write_bytes(
        b"half"
    )  # what a kill leaves behind
    with pytest.raises(
        ValueError, match=r"latent cache cut is not finished \(it was stopped, or goes on\)"
    ):
        LatentDataset(Run(run.folder))
    encoded = []

    class Counting(torch.nn.Module):
        fingerprint = "weights"

        def encode(self, images):
            encoded.append(len(images))
            return tokenizer.encode(images)

    run = Run.open("cut", config, root=tmp_path)
    assert list(write_latents(Counting(), pictures, config, run, device=CPU)) == [
        (8, 22),
        (16, 22),
        (22, 22),
    ]
    assert sum(encoded) == 2 * 6
    assert LatentDataset(Run(run.folder)).run.summary["images"] == 22
    for name in ("latents/sha256.json", "labels.npy", "latent_space.safetensors"):
        assert (run.folder / name).read_bytes() == (whole.run.folder / name).read_bytes()
    assert list(write_latents(tokenizer, pictures, config, Run(run.folder), device=CPU)) == []


def test_a_cache_that_lost_a_shard_is_refused(cache, tmp_path):
    run = cache().run
    for lost in ("00001", "00000", "00002"):
        (run.folder / "latents" / f"shard-{lost}.npy").unlink()
        with pytest.raises(ValueError, match=r"not finished \(.*shard-0000.\.npy is gone"):
            LatentDataset(Run(run.folder))


def test_a_damaged_shard_is_refused_and_encoded_again_alone(
    cache, tmp_path, pictures, tokenizer, caching
):
    run = cache().run
    whole = LatentDataset(run).all_latents()
    path = run.folder / "latents" / "shard-00001.npy"
    sound = path.read_bytes()
    for damage in (
        sound[:-1],
        sound[:-1] + bytes([sound[-1] ^ 1]),
        b"",
    ):  # cut short, one bit, emptied
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"damaged: shard-00001|shard-00001.npy is damaged"):
            LatentDataset(run)
    (run.folder / "summary.json").unlink()
    config, calls = caching(), []
    counting = SimpleNamespace(
        fingerprint="weights",
        training=False,
        eval=lambda: None,
        train=lambda mode: None,
        encode=lambda images: calls.append(len(images)) or tokenizer.encode(images),
    )
    list(
        write_latents(
            counting, pictures, config, Run.open("cache", config, root=tmp_path), device=CPU
        )
    )
    assert sum(calls) == 2 * 8
    assert torch.equal(LatentDataset(run).all_latents(), whole)


def test_a_shard_whose_writing_was_cut_off_is_encoded_again(
    cache, tmp_path, pictures, tokenizer, caching
):
    whole, config = cache("whole"), caching()
    run = Run.open("cut", config, root=tmp_path)
    stopped = write_latents(tokenizer, pictures, config, run, device=CPU)
    next(stopped)
    stopped.close()
    (run.folder / "latents" / "shard-00001.npy").write_bytes(
        b"half of it"
    )  # a file system that lost it, without a checksum
    list(write_latents(tokenizer, pictures, config, run, device=CPU))
    assert torch.equal(LatentDataset(Run(run.folder)).all_latents(), whole.all_latents())


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_done(
    cache, tmp_path, pictures, tokenizer, monkeypatch, caching
):
    whole, config = cache("whole"), caching()
    run = Run.open("full", config, root=tmp_path)
    save, saved = np.save, []

    def full(file, array):
        saved.append(array)
        if len(saved) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    monkeypatch.setattr("maetok_lab.data.shards.np.save", full)
    with pytest.raises(
        OSError,
        match=r"the latent cache .*full was not written \(its 1 finished shards are kept\):"
        r" the disk is full: 0.0 MB more are needed and .* MB are free; free some",
    ):
        list(write_latents(tokenizer, pictures, config, run, device=CPU))
    monkeypatch.undo()
    assert sorted(p.name for p in (run.folder / "latents").iterdir()) == [
        "shard-00000.npy",
        "shard-00000.sha256",
    ]
    assert list(write_latents(tokenizer, pictures, config, run, device=CPU))[-1] == (22, 22)
    assert torch.equal(LatentDataset(Run(run.folder)).all_latents(), whole.all_latents())


def test_a_disk_that_will_not_do_is_known_after_the_first_shard(
    tmp_path, pictures, tokenizer, monkeypatch, caching
):
    config = caching()
    run = Run.open("small", config, root=tmp_path)
    needed = 14 * 2 * 3 * 2 * 2  # images left, views, tokens, channels, bytes
    for free in (needed - 1, needed):
        monkeypatch.setattr(
            "maetok_lab.data.shards.shutil.disk_usage",
            lambda folder, free=free: SimpleNamespace(free=free),
        )
        caching_it = write_latents(tokenizer, pictures, config, run, device=CPU)
        if free < needed:
            with pytest.raises(OSError, match="the disk is full"):
                next(caching_it)
        else:
            assert next(caching_it) == (8, 22)
    assert (run.folder / "latents" / "shard-00000.npy").exists()


def test_the_hashes_are_of_the_shards(cache):
    run = cache().run
    hashes = json.loads((run.folder / "latents" / "sha256.json").read_text())
    assert list(hashes) == ["shard-00000.npy", "shard-00001.npy", "shard-00002.npy"]
    assert [file_hash(run.folder / "latents" / name) for name in hashes] == list(hashes.values())
    assert not list((run.folder / "latents").glob("*.sha256"))  # they are together now
