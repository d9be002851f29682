"""The public robust checkpoints that the paper's teachers are: where they are, and what is published of them."""

from __future__ import annotations

from dataclasses import dataclass

from rnascl_cli.models.teachers.imagenet import IMAGENET_MEAN, IMAGENET_STD

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]
IDENTITY: Constants = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


@dataclass(frozen=True)
class PublicTeacher:
    """A checkpoint of RobustBench (Croce et al. 2021).

    Attributes:
        robustbench: Its name there, all L-inf.
        gdrive_id: Its Google Drive id.
        architecture: As in ``--arch``.
        dataset: What it was trained on.
        constants: Mean and std inside the model. The file itself may not hold them.
        eps: The perturbation it was evaluated at.
        clean: Published clean accuracy, where we know it.
        autoattack: Published AutoAttack accuracy, where we know it.
    """

    robustbench: str
    gdrive_id: str
    architecture: str
    dataset: str
    constants: Constants
    eps: str
    clean: float | None = None
    autoattack: float | None = None

    @property
    def url(self) -> str:
        """The page to download it from by hand."""
        return f"https://drive.google.com/uc?id={self.gdrive_id}"


def _imagenet(name: str, gdrive_id: str, architecture: str) -> PublicTeacher:
    return PublicTeacher(name, gdrive_id, architecture, "imagenet", (IMAGENET_MEAN, IMAGENET_STD), "4/255")


PUBLIC: dict[str, PublicTeacher] = {
    "r18": PublicTeacher(
        "Sehwag2021Proxy_R18", "1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu", "r18", "cifar10", IDENTITY, "8/255", 0.8459, 0.5554
    ),
    "r50": PublicTeacher(
        "Engstrom2019Robustness",
        "1etqmQsksNIWBvBQ4r8ZFk_3FJlLWr8Rr",
        "r50",
        "cifar10",
        (CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
        "8/255",
        0.8703,
        0.4925,
    ),
    "wrt34": PublicTeacher(
        "Rice2020Overfitting",
        "1vC_Twazji7lBjeMQvAD9uEQxi9Nx2oG-",
        "wrn-34-20",
        "cifar10",
        (CIFAR10_MEAN, (0.2471, 0.2435, 0.2616)),
        "8/255",
        0.8534,
        0.5342,
    ),
    "wrt50": _imagenet("Salman2020Do_50_2", "1OT7xaQYljrTr3vGbM37xK9SPoPJvbSKB", "imagenet-wrn-50-2"),
    "imagenet-r18": _imagenet("Salman2020Do_R18", "1OThCOQCOxY6lAgxZxgiK3YuZDD7PPfPx", "imagenet-r18"),
    "imagenet-r50": _imagenet("Salman2020Do_R50", "1TmT5oGa1UvVjM3d-XeSj_XmKqBNRUg8r", "imagenet-r50"),
}
"""By the name in the teacher cache. The CIFAR ones are listed at RobustBench with the accuracies given here."""
