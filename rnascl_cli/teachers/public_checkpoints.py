"""The public robust checkpoints that the paper's teachers are: where they are, and what is published of them.

No tensors here, so that a teacher's name is understood without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]
# The authors' own files of Salman et al. 2020, in the dialect of MadryLab's robustness: repository and commit.
SALMAN = "hf:madrylab/robust-imagenet-models@3f04ac96136001cfe402022100728124cbe3fac5"
IDENTITY: Constants = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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
        mirror: Where the same network is on the Hugging Face Hub; None for nowhere that we know of.
        mirror_sha256: Of the file there, as the Hub publishes it, where we know it.
    """

    robustbench: str
    gdrive_id: str
    architecture: str
    dataset: str
    constants: Constants
    eps: str
    clean: float | None = None
    autoattack: float | None = None
    mirror: str | None = None
    mirror_sha256: str | None = None

    @property
    def url(self) -> str:
        """The page to download it from by hand."""
        return f"https://drive.google.com/uc?id={self.gdrive_id}"

    @property
    def addresses(self) -> tuple[tuple[str, str | None], ...]:
        """Where to fetch it from, in this order, each with the sha256 that the file must have, where one is known.

        RobustBench publishes no checksums.
        """
        drive = (f"gdrive:{self.gdrive_id}", None)
        return (drive,) if self.mirror is None else (drive, (self.mirror, self.mirror_sha256))


def _imagenet(
    name: str,
    gdrive_id: str,
    architecture: str,
    clean: float,
    autoattack: float,
    *,
    mirror: str,
    sha256: str | None = None,
) -> PublicTeacher:
    return PublicTeacher(
        name,
        gdrive_id,
        architecture,
        "imagenet",
        (IMAGENET_MEAN, IMAGENET_STD),
        "4/255",
        clean,
        autoattack,
        mirror=f"{SALMAN}/{mirror}",
        mirror_sha256=sha256,
    )


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
    "wrt50": _imagenet(
        "Salman2020Do_50_2",
        "1OT7xaQYljrTr3vGbM37xK9SPoPJvbSKB",
        "imagenet-wrn-50-2",
        0.6846,
        0.3814,
        mirror="wide_resnet50_2_linf_eps4.0.ckpt",
    ),
    "imagenet-r18": _imagenet(
        "Salman2020Do_R18",
        "1OThCOQCOxY6lAgxZxgiK3YuZDD7PPfPx",
        "imagenet-r18",
        0.5292,
        0.2532,
        mirror="resnet18_linf_eps4.0.ckpt",
        sha256="6f8ccef1ae4958c381617081e9e0fb5f50e7cccd4965192d1caa452fd6c5cd1e",
    ),
    "imagenet-r50": _imagenet(
        "Salman2020Do_R50",
        "1TmT5oGa1UvVjM3d-XeSj_XmKqBNRUg8r",
        "imagenet-r50",
        0.6402,
        0.3496,
        mirror="resnet50_linf_eps4.0.ckpt",
        sha256="9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db",
    ),
}
"""By the name in the teacher cache, with the accuracies that RobustBench lists."""
