"""Adversarial training losses of six methods, which replace the cross-entropy.

With p the student, q the teacher, y the label, x the clean and x' the adversarial image:

- PGD-AT (Madry et al. 2018), Fast-AT (Wong et al. 2020): CE(p(x'), y);
- TRADES (Zhang et al. 2019): CE(p(x), y) + beta KL(p(x) || p(x'));
- MART (Wang et al. 2020): BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x));
- ARD (Goldblum et al. 2020): alpha T^2 KL(q_T(x) || p_T(x')) + (1 - alpha) CE(p(x), y);
- RSLAD (Zi et al. 2021): 5/6 KL(q(x) || p(x')) + 1/6 KL(q(x) || p(x)).

The functions return the terms without their weights, as means over the batch. A KL is summed over the classes; the
published code of ARD and RSLAD takes the mean over the classes, 1/K of it.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rnascl_cli.distill.losses import cross_entropy, kl_divergence, trades_kl

Terms = dict[str, Tensor]


def adversarial_ce_terms(perturbed_BK: Tensor, y_B: Tensor) -> Terms:
    """Return the term of PGD-AT and Fast-AT: ``adversarial``, the cross-entropy on the adversarial images."""
    return {"adversarial": cross_entropy(perturbed_BK, y_B)}


def trades_terms(clean_BK: Tensor, perturbed_BK: Tensor, y_B: Tensor) -> Terms:
    """Return TRADES's terms: ``ce`` on the clean images, and ``adversarial``, KL(p(x) || p(x'))."""
    return {"ce": cross_entropy(clean_BK, y_B), "adversarial": trades_kl(clean_BK, perturbed_BK)}


def mart_terms(clean_BK: Tensor, perturbed_BK: Tensor, y_B: Tensor) -> Terms:
    """Return MART's terms: ``adversarial``, the boosted cross-entropy, and ``weighted_kl``.

    The KL is weighted by 1 - p_y(x), so that misclassified images count more.
    """
    log_p_BK, log_r_BK = (F.log_softmax(logits_BK.float(), dim=1) for logits_BK in (clean_BK, perturbed_BK))
    kl_B = (log_p_BK.exp() * (log_p_BK - log_r_BK)).sum(dim=1)
    weight_B = 1 - log_p_BK.gather(1, y_B[:, None]).squeeze(1).exp()
    return {"adversarial": bce_loss(perturbed_BK, y_B), "weighted_kl": (kl_B * weight_B).mean()}


def bce_loss(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """Return MART's BCE: -log p_y - log(1 - max_{k != y} p_k), the mean over the batch."""
    logits_BK = logits_BK.float()
    other_B1 = logits_BK.scatter(1, y_B[:, None], -torch.inf).argmax(dim=1, keepdim=True)
    # log(1 - p_k) is computed from the other logits: near p_k = 1 the difference would be rounded to 0.
    without_other_B = logits_BK.scatter(1, other_B1, -torch.inf).logsumexp(dim=1)
    return cross_entropy(logits_BK, y_B) - (without_other_B - logits_BK.logsumexp(dim=1)).mean()


def ard_terms(
    clean_BK: Tensor, perturbed_BK: Tensor, y_B: Tensor, teacher_BK: Tensor, *, temperature: float = 30.0
) -> Terms:
    """Return ARD's terms: ``adversarial``, T^2 KL(q_T(x) || p_T(x')), and ``ce`` on the clean images."""
    return {
        "adversarial": kl_divergence(perturbed_BK, teacher_BK, direction="teacher-student", temperature=temperature),
        "ce": cross_entropy(clean_BK, y_B),
    }


def rslad_terms(clean_BK: Tensor, perturbed_BK: Tensor, teacher_BK: Tensor) -> Terms:
    """Return RSLAD's terms: the KL from the teacher's soft labels, ``adversarial`` and ``clean_kl``.

    Hard labels are not used.
    """
    return {
        "adversarial": kl_divergence(perturbed_BK, teacher_BK, direction="teacher-student"),
        "clean_kl": kl_divergence(clean_BK, teacher_BK, direction="teacher-student"),
    }
