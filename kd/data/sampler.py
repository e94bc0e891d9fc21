"""The balanced sampler: every class equally often in an epoch, in an order that is computed like every other."""

from __future__ import annotations

import torch
from torch import Tensor

from kd.data.augment import permutation
from kd.data.split import UNLABELLED
from kd.errors import InputError, unknown
from kd.rng import BALANCE, hashed

SAMPLERS = ("balanced",)


def check_sampler(sampler: str | None, repeats: int = 1) -> None:
    """Refuses an unknown sampler, and one beside ``repeats``, by an InputError."""
    if sampler not in (None, *SAMPLERS):
        raise unknown("sampler", str(sampler), (*SAMPLERS, "null"))
    if sampler and repeats > 1:
        raise InputError(f"sampler={sampler} and repeats={repeats} both say how often an image comes: give one of them")


def balanced(labels: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The positions [N] of an epoch, and which time [N] of that epoch each comes, counted from 0.

    As many positions as there are samples. Each class among ``labels`` [N] gets an equal number of the labelled ones,
    up to one: a frequent class shows a part of its images, another part in another epoch, a rare one shows all of its
    images, again and again. Samples without a label (-1) come once each, as without a sampler.
    """
    classes, counts = labels.unique(return_counts=True)  # in ascending order, as the sorted labels are
    members = dict(zip(classes.tolist(), labels.argsort(stable=True).split(counts.tolist())))
    rest = members.pop(UNLABELLED, torch.arange(0))
    positions, times = [rest], [torch.zeros_like(rest)]
    for place, own in enumerate(members.values()):
        count = _share(len(labels) - len(rest), len(members), (place + epoch) % len(members))
        turn = torch.arange(-(-count // len(own)) * len(own))
        time, member = turn // len(own), own[turn % len(own)]
        # sorted by (time, hash): every time all of the class in another order, of the last time the first of them
        order = hashed(seed, epoch, member, BALANCE + 2**16 * time)
        chosen = (time * 2**32 + order).argsort()[:count]
        positions.append(member[chosen])
        times.append(time[chosen])
    mixed = permutation(len(labels), seed, epoch)
    return torch.cat(positions)[mixed], torch.cat(times)[mixed]


def rounds(labels: Tensor) -> int:
    """The most often that an image comes in an epoch of :func:`balanced`."""
    known = labels[labels != UNLABELLED]
    counts = known.unique(return_counts=True)[1]
    return max((-(-_share(len(known), len(counts), 0) // int(count)) for count in counts), default=1)


def _share(samples: int, classes: int, place: int) -> int:
    return samples // classes + (place < samples % classes)
