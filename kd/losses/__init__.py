"""The loss zoo: ``kd.losses["kl"]`` is a class, ``list(kd.losses)`` the names, ``kd.losses.register`` adds one.

Grouped by kind of signal: ``hard`` labels and the network's own distribution, ``logits`` of the teacher.
A loss is any module whose ``forward`` names what it needs out of ``student, teacher, labels, index`` and
returns an unweighted scalar; pure functions stand above the classes.
"""

import sys

from kd.losses.hard import CE, Entropy, cross_entropy, entropy
from kd.losses.logits import (
    JS,
    KL,
    TV,
    AlphaBeta,
    GaussianKL,
    ReverseKL,
    SoftCE,
    SymmetricKL,
    alpha_beta,
    gaussian_kl,
    js,
    kl,
    kl_div,
    reverse_kl,
    soft_cross_entropy,
    symmetric_kl,
    total_variation,
)
from kd.registry import RegistryPackage
from kd.registry import losses as registry

sys.modules[__name__].__class__ = RegistryPackage

__all__ = [
    "CE",
    "JS",
    "KL",
    "TV",
    "AlphaBeta",
    "Entropy",
    "GaussianKL",
    "ReverseKL",
    "SoftCE",
    "SymmetricKL",
    "alpha_beta",
    "cross_entropy",
    "entropy",
    "gaussian_kl",
    "js",
    "kl",
    "kl_div",
    "registry",
    "reverse_kl",
    "soft_cross_entropy",
    "symmetric_kl",
    "total_variation",
]
