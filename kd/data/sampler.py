"""The balanced sampler: every class equally often in an epoch, in a stateless order."""

from __future__ import annotations

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.data.split import UNLABELLED
from kd.errors import InputError, unknown
from kd.rng import BALANCE, hashed

SAMPLERS = ("balanced",)


def check_sampler(sampler: str | None, repeats: int = 1) -> None:
    """Raises InputError for an unknown sampler, or a sampler together with ``repeats``."""
    if sampler not in (None, *SAMPLERS):
        raise unknown("sampler", str(sampler), (*SAMPLERS, "null"))
    if sampler and repeats > 1:
        raise InputError(
            f"sampler={sampler} and repeats={repeats} both set how often an image occurs: give one of them"
        )


def balanced(labels: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The positions [N] of an epoch, and the number [N] of each occurrence in that epoch, counted from 0.

    There are as many positions as samples. Each class among ``labels`` [N] gets an equal number of the labelled ones,
    up to one: a frequent class shows a subset of its images, others in another epoch; a rare class repeats its images.
    Samples without a label (-1) occur once each, as without a sampler.
    """
    classes, counts = labels.unique(return_counts=True)  # in ascending order, as the sorted labels are
    members = dict(zip(classes.tolist(), labels.argsort(stable=True).split(counts.tolist())))
    unlabelled = members.pop(UNLABELLED, torch.arange(0))
    positions, times = [unlabelled], [torch.zeros_like(unlabelled)]
    for number, images in enumerate(members.values()):
        count = _share(len(labels) - len(unlabelled), len(members), (number + epoch) % len(members))
        turn = torch.arange(-(-count // len(images)) * len(images))
        time, member = turn // len(images), images[turn % len(images)]
        # sorted by (time, hash): each round has the whole class in another order; the last round is cut
        order = hashed(seed, epoch, member, BALANCE + 2**16 * time)
        chosen = (time * 2**32 + order).argsort()[:count]
        positions.append(member[chosen])
        times.append(time[chosen])
    mixed = permutation(len(labels), seed, epoch)
    return torch.cat(positions)[mixed], torch.cat(times)[mixed]


def rounds(labels: Tensor) -> int:
    """The maximum number of occurrences of an image in an epoch of :func:`balanced`."""
    labelled = labels[labels != UNLABELLED]
    counts = labelled.unique(return_counts=True)[1]
    return max((-(-_share(len(labelled), len(counts), 0) // int(count)) for count in counts), default=1)


def _share(samples: int, classes: int, number: int) -> int:
    return samples // classes + (number < samples % classes)
