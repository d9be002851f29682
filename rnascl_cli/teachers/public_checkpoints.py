"""The public robust checkpoints that the paper's teachers are: where they are, and their published accuracies.

This module imports no torch, so that ``rnascl study`` can check a teacher's name without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class NormalisationConstants(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in self)
        return f"mean {mean}, std {std}"


IDENTITY = NormalisationConstants((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = NormalisationConstants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
# The authors' own files of Salman et al. 2020, as MadryLab's robustness writes them: repository and commit.
SALMAN = "hf:madrylab/robust-imagenet-models@3f04ac96136001cfe402022100728124cbe3fac5"


@dataclass(frozen=True)
class PublicTeacher:
    """A checkpoint of RobustBench (Croce et al. 2021).

    Attributes:
        robustbench: Its name there, in the L-inf tables.
        gdrive_id: Its Google Drive id.
        architecture: As in ``--arch``.
        constants: Normalisation inside the model; the file itself may not hold it.
        clean: Published clean accuracy, in [0, 1].
        autoattack: Published accuracy under AutoAttack, in [0, 1].
        dataset: What it was trained on.
        eps: The L-inf perturbation it was evaluated at.
        mirror: Address of the same network on the Hugging Face Hub; None where there is none.
        mirror_sha256: sha256 of the file there, as the Hub publishes it; None where unknown.
    """

    robustbench: str
    gdrive_id: str
    architecture: str
    constants: NormalisationConstants
    clean: float | None
    autoattack: float | None
    dataset: str = "cifar10"
    eps: str = "8/255"
    mirror: str | None = None
    mirror_sha256: str | None = None

    @property
    def url(self) -> str:
        """The page to download it from by hand."""
        return f"https://drive.google.com/uc?id={self.gdrive_id}"

    @property
    def addresses(self) -> tuple[tuple[str, str | None], ...]:
        """Addresses to fetch it from, in this order, each with the file's sha256 where it is published.

        RobustBench publishes no checksums.
        """
        drive = (f"gdrive:{self.gdrive_id}", None)
        return (drive,) if self.mirror is None else (drive, (self.mirror, self.mirror_sha256))

    @property
    def published(self) -> dict[str, Any]:
        """The published accuracies, as kept in the header of a teacher file."""
        return {
            "name": self.robustbench,
            "data": self.dataset,
            "eps": self.eps,
            "clean": self.clean,
            "autoattack": self.autoattack,
        }


PUBLIC: dict[str, PublicTeacher] = {
    "r18": PublicTeacher(
        "Sehwag2021Proxy_R18", "1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu", "r18", IDENTITY, clean=0.8459, autoattack=0.5554
    ),
    "r50": PublicTeacher(
        "Engstrom2019Robustness",
        "1etqmQsksNIWBvBQ4r8ZFk_3FJlLWr8Rr",
        "r50",
        NormalisationConstants(CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
        clean=0.8703,
        autoattack=0.4925,
    ),
    "wrt34": PublicTeacher(
        "Rice2020Overfitting",
        "1vC_Twazji7lBjeMQvAD9uEQxi9Nx2oG-",
        "wrn-34-20",
        NormalisationConstants(CIFAR10_MEAN, (0.2471, 0.2435, 0.2616)),
        clean=0.8534,
        autoattack=0.5342,
    ),
    "wrt50": PublicTeacher(
        "Salman2020Do_50_2",
        "1OT7xaQYljrTr3vGbM37xK9SPoPJvbSKB",
        "imagenet-wrn-50-2",
        IMAGENET,
        clean=0.6846,
        autoattack=0.3814,
        dataset="imagenet",
        eps="4/255",
        mirror=f"{SALMAN}/wide_resnet50_2_linf_eps4.0.ckpt",
    ),
    "imagenet-r18": PublicTeacher(
        "Salman2020Do_R18",
        "1OThCOQCOxY6lAgxZxgiK3YuZDD7PPfPx",
        "imagenet-r18",
        IMAGENET,
        clean=0.5292,
        autoattack=0.2532,
        dataset="imagenet",
        eps="4/255",
        mirror=f"{SALMAN}/resnet18_linf_eps4.0.ckpt",
        mirror_sha256="6f8ccef1ae4958c381617081e9e0fb5f50e7cccd4965192d1caa452fd6c5cd1e",
    ),
    "imagenet-r50": PublicTeacher(
        "Salman2020Do_R50",
        "1TmT5oGa1UvVjM3d-XeSj_XmKqBNRUg8r",
        "imagenet-r50",
        IMAGENET,
        clean=0.6402,
        autoattack=0.3496,
        dataset="imagenet",
        eps="4/255",
        mirror=f"{SALMAN}/resnet50_linf_eps4.0.ckpt",
        mirror_sha256="9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db",
    ),
}
"""By the name in the teacher cache, with the accuracies that RobustBench lists."""
