"""Settings of the distillation baselines of Figure 11.

The default weights are those of Tian et al. (2020): each loss is added to the cross-entropy, without a KL term.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rnascl_cli.recipes.base import Settings

Weight = Annotated[float, Field(ge=0.0)]


class KD(Settings):
    """Soft labels (Hinton et al. 2015)."""

    name: Literal["kd"]
    weight: Weight = 0.9
    ce_weight: Weight = Field(default=0.1, description="weight of the cross-entropy; 1 in the other baselines")
    temperature: float = Field(default=4.0, gt=0.0)


class AT(Settings):
    """Attention transfer between stages (Zagoruyko and Komodakis 2017)."""

    name: Literal["at"]
    weight: Weight = 1000.0


class SP(Settings):
    """Similarities between the images of a batch, at the last stage (Tung and Mori 2019)."""

    name: Literal["sp"]
    weight: Weight = 3000.0


class VID(Settings):
    """Variational information distillation between stages (Ahn et al. 2019)."""

    name: Literal["vid"]
    weight: Weight = 1.0
    variance: float = Field(default=5.0, gt=1e-5, description="initial variance of each teacher channel")


class RKD(Settings):
    """Distances and angles between the embeddings of a batch (Park et al. 2019)."""

    name: Literal["rkd"]
    weight: Weight = Field(default=1.0, description="weight of the sum of both parts")
    distance: Weight = 25.0
    angle: Weight = 50.0


class CRD(Settings):
    """Contrastive representation distillation of embeddings (Tian et al. 2020)."""

    name: Literal["crd"]
    weight: Weight = 0.8
    dim: int = Field(default=128, ge=1, le=4096, description="dimension of the embeddings")
    negatives: int = Field(
        default=16384, ge=1, description="number of images of other classes per image, at most as many as there are"
    )
    temperature: float = Field(default=0.07, gt=0.0)
    momentum: float = Field(default=0.5, ge=0.0, lt=1.0, description="momentum of the memory banks")


class PKT(Settings):
    """Probabilities of being neighbours, between embeddings (Passalis and Tefas 2018)."""

    name: Literal["pkt"]
    weight: Weight = 30000.0


BaselineSettings = KD | AT | SP | VID | RKD | CRD | PKT
