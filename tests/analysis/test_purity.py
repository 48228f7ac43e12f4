"""Neighbours' labels: chance where they are random, 1 where classes are apart, by hand else."""

import math

import numpy as np
import pytest
import torch

from maetok_lab.analysis.purity import label_purity
from maetok_lab.rng import generator


def randn(*shape, name="x"):
    return torch.randn(*shape, generator=generator(0, name))


@pytest.mark.parametrize("pool", [True, False])
def test_random_labels_have_the_purity_of_their_printed_chance(pool):
    latents = randn(150, 4, 6)
    labels = torch.arange(150).sqrt().long()  # 13 classes of 1 to 25 images
    scores = []
    for seed in range(300):
        order = torch.randperm(150, generator=generator(seed, "labels"))
        scores.append(label_purity(latents, labels[order], pool=pool))
    for name in ("gsq", "lnc"):
        values = np.array([getattr(score, name) for score in scores])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - scores[0].chance) < 3 * error, name
        # and the error of one score is about what scores of other labels differ by
        errors = np.array([getattr(score, f"{name}_error") for score in scores])
        assert errors.mean() == pytest.approx(values.std(), rel=0.3)
    sizes = torch.bincount(labels).double()
    assert scores[0].chance == pytest.approx(
        float((sizes / 150 * (sizes - 1) / 149).sum()), rel=1e-12
    )


@pytest.mark.parametrize("pool", [True, False])
def test_classes_that_are_apart_are_pure(pool):
    labels = torch.arange(60) % 3
    centres = 10 * randn(3, 4, 6, name="centres")
    score = label_purity(1000 + centres[labels] + 0.1 * randn(60, 4, 6), labels, pool=pool)
    assert (score.gsq, score.lnc) == (1, 1)
    assert (score.gsq_error, score.lnc_error) == (0, 0)
    assert score.chance == pytest.approx(19 / 59)


def test_purity_agrees_with_cosines_by_hand_whatever_the_offset():
    latents, labels = randn(40, 3, 5), torch.randint(4, (40,), generator=generator(0, "four"))
    rows = latents.mean(dim=1).double()
    centred = (rows - rows.mean(0)).numpy()
    norms = np.linalg.norm(centred, axis=1)
    cosine = centred @ centred.T / np.outer(norms, norms)
    np.fill_diagonal(cosine, -2)
    order = np.argsort(-cosine, axis=1)
    alike = labels.numpy()[order] == labels.numpy()[:, None]
    for offset in (0, 7.0):
        score = label_purity(latents.double() + offset, labels, neighbours=3)
        assert score.gsq == pytest.approx(alike[:, 0].mean())
        assert score.lnc == pytest.approx(alike[:, :3].mean())


def test_what_pooling_hides_is_seen_in_flattened_tokens():
    labels = torch.arange(80) % 4
    centres = 5 * randn(4, 6, 8, name="centres")
    centres -= centres.mean(dim=1, keepdim=True)  # nothing of the class is left in the mean token
    latents = centres[labels] + randn(80, 6, 8)
    flat, pooled = (label_purity(latents, labels, pool=pool) for pool in (False, True))
    assert flat.gsq == 1
    assert pooled.gsq < pooled.chance + 4 * pooled.gsq_error


def test_errors_say_what_is_missing():
    latents, labels = randn(6, 2, 3), torch.arange(6)
    with pytest.raises(ValueError, match=r"between 1 and 4, .* not 5; take fewer neighbours"):
        label_purity(latents[:5], labels[:5])
    with pytest.raises(ValueError, match="not 0; take"):
        label_purity(latents, labels, neighbours=0)
    with pytest.raises(ValueError, match="constant"):
        label_purity(torch.full((6, 2, 3), 0.1), labels)
    with pytest.raises(ValueError, match="NaN"):
        label_purity(latents * math.nan, labels)
    with pytest.raises(ValueError, match=r"labels must be \(6,\)"):
        label_purity(latents, labels[:5])
