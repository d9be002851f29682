"""The losses of Figure 11: worked by hand in numpy, beside torchdistill's, and with slopes where features are zero.

Shape suffixes: B images, K classes or negatives, C channels, H height, W width, E numbers of an embedding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rnascl_cli.distill.baselines.at import attention_transfer_loss, same_side
from rnascl_cli.distill.baselines.crd import ContrastiveLoss
from rnascl_cli.distill.baselines.kd import soft_label_loss
from rnascl_cli.distill.baselines.pkt import neighbour_loss
from rnascl_cli.distill.baselines.rkd import angle_loss, distance_loss, relational_loss
from rnascl_cli.distill.baselines.sp import similarity_loss
from rnascl_cli.distill.baselines.vid import VariationalLoss
from tests.distill.beside import Array, arrays, io, slopes

pytestmark = pytest.mark.unit


@pytest.fixture
def stages(generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Three pairs of maps: the teacher's larger, of the same size, and the student's larger."""
    shapes = [((5, 3, 4, 4), (5, 6, 8, 8)), ((5, 4, 4, 4), (5, 6, 4, 4)), ((5, 2, 4, 4), (5, 3, 2, 2))]
    pairs = [[torch.randn(*shape, generator=generator) for shape in pair] for pair in shapes]
    return [(student, teacher) for student, teacher in pairs]


def pooled(map_BCHW: Array, side: int) -> Array:
    """The means of the equal squares into which a map is cut."""
    images, channels, height, _ = map_BCHW.shape
    block = height // side
    cut = map_BCHW.reshape(images, channels, side, block, side, block)
    mean: Array = cut.mean(axis=(3, 5))
    return mean


# KD


def test_soft_labels_by_hand() -> None:
    # At T = 4, p = (3/4, 1/4) and q = (1/2, 1/2); T^2 = 16.
    student_BK, teacher_BK = torch.tensor([[4 * math.log(3), 0.0]]), torch.zeros(1, 2)
    golden = 16 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert soft_label_loss(student_BK, teacher_BK, temperature=4.0).item() == pytest.approx(golden, rel=1e-6)


def test_soft_labels_as_torchdistill(theirs: Any, generator: torch.Generator) -> None:
    student_BK = (3 * torch.randn(5, 7, generator=generator)).requires_grad_(True)
    teacher_BK, y_B = 3 * torch.randn(5, 7, generator=generator), torch.arange(5)
    module = theirs.KDLoss("s", "output", "t", "output", temperature=4.0, alpha=0.1)
    expected = module(io(s=student_BK), io(t=teacher_BK), y_B)
    ce = nn.functional.cross_entropy(student_BK, y_B)
    ours = 0.1 * ce + 0.9 * soft_label_loss(student_BK, teacher_BK, temperature=4.0)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(slopes(ours, student_BK), slopes(expected, student_BK))


# AT


def at_by_hand(student_BCHW: Array, teacher_BCHW: Array) -> float:
    total = 0.0
    for student, teacher in zip(student_BCHW, teacher_BCHW, strict=True):
        maps = [(features**2).mean(axis=0).flatten() for features in (student, teacher)]
        one, other = (found / np.sqrt((found**2).sum()) for found in maps)
        total += ((one - other) ** 2).mean()
    return total / len(student_BCHW)


def test_attention_transfer_of_two_pixels_by_hand() -> None:
    # Q = (9, 16) / sqrt(337) and (1, 0).
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    golden = ((9 / math.sqrt(337) - 1) ** 2 + (16 / math.sqrt(337)) ** 2) / 2
    assert attention_transfer_loss([(student, teacher)]).item() == pytest.approx(golden, rel=1e-6)


def test_attention_transfer_by_hand(stages: list[tuple[Tensor, Tensor]]) -> None:
    total = 0.0
    for student, teacher in (arrays(*pair) for pair in stages):
        side = min(student.shape[-1], teacher.shape[-1])
        total += at_by_hand(pooled(student, side), pooled(teacher, side))
    assert attention_transfer_loss(stages).item() == pytest.approx(total, rel=1e-5)


def test_attention_transfer_as_torchdistill(theirs: Any, stages: list[tuple[Tensor, Tensor]]) -> None:
    leaves = [student.clone().requires_grad_(True) for student, _ in stages]
    ours = attention_transfer_loss([(leaf, teacher) for leaf, (_, teacher) in zip(leaves, stages, strict=True)])
    pairs = {str(index): {"student": where, "teacher": where} for index, where in enumerate(places(stages))}
    # Theirs wants maps of one size.
    alike = [same_side(leaf, teacher) for leaf, (_, teacher) in zip(leaves, stages, strict=True)]
    student = io(**{str(index): pair[0] for index, pair in enumerate(alike)})
    teacher = io(**{str(index): pair[1] for index, pair in enumerate(alike)})
    expected = theirs.ATLoss(pairs, mode="code")(student, teacher)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(slopes(ours, *leaves), slopes(expected, *leaves))


def places(stages: list[tuple[Tensor, Tensor]]) -> list[dict[str, str]]:
    return [{"io": "output", "path": str(index)} for index in range(len(stages))]


# SP


def sp_by_hand(student: Array, teacher: Array) -> float:
    def gram(features: Array) -> Array:
        rows = features.reshape(len(features), -1)
        products = np.array([[float(one @ other) for other in rows] for one in rows])
        normed: Array = products / np.sqrt((products**2).sum(axis=1, keepdims=True))
        return normed

    return float(((gram(teacher) - gram(student)) ** 2).sum() / len(student) ** 2)


def test_similarity_of_two_images_by_hand() -> None:
    # Student: orthogonal, G = I. Teacher: the same image twice, every row (1, 1) / sqrt 2.
    student, teacher = torch.eye(2), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    golden = (2 * (1 - 1 / math.sqrt(2)) ** 2 + 2 * 0.5) / 4
    assert similarity_loss(student, teacher).item() == pytest.approx(golden, rel=1e-6)


def test_similarity_by_hand(stages: list[tuple[Tensor, Tensor]]) -> None:
    for student, teacher in stages:
        assert similarity_loss(student, teacher).item() == pytest.approx(
            sp_by_hand(*arrays(student, teacher)), rel=1e-5
        )


def test_similarity_as_torchdistill_with_the_paper_s_norm(theirs: Any, stages: list[tuple[Tensor, Tensor]]) -> None:
    module = theirs.SPKDLoss("s", "t", reduction="batchmean")
    # 1.1.5 calls normalize(G, 1), whose second argument is the norm and not the dimension: rows of unit L1 norm, where
    # the paper, and the implementation that its author verified (RepDistiller's), have L2.
    module.matmul_and_normalize = lambda rows: nn.functional.normalize(rows.flatten(1) @ rows.flatten(1).T, dim=1)
    for student, teacher in stages:
        leaf = student.clone().requires_grad_(True)
        ours, expected = similarity_loss(leaf, teacher), module(io(s=leaf), io(t=teacher))
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(slopes(ours, leaf), slopes(expected, leaf))


# VID


def variational(stages: list[tuple[Tensor, Tensor]]) -> VariationalLoss:
    module = VariationalLoss([(student.shape[1], teacher.shape[1]) for student, teacher in stages], variance=5.0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("alpha"):  # or every channel would have the same variance
                parameter.add_(torch.linspace(-1, 1, len(parameter)))
    return module


def test_the_variance_begins_where_it_is_told() -> None:
    for variance in (1e-3, 5.0, 1e4):
        (alpha,) = [p for name, p in VariationalLoss([(1, 2)], variance=variance).named_parameters() if "alpha" in name]
        assert (nn.functional.softplus(alpha) + 1e-5).tolist() == pytest.approx([variance] * 2, rel=1e-4)


def test_variational_by_hand(stages: list[tuple[Tensor, Tensor]]) -> None:
    module, total = variational(stages), 0.0
    for number, (student, teacher) in enumerate(arrays(*pair) for pair in stages):
        state = {name: value.double().numpy() for name, value in module.stages[number].state_dict().items()}
        side = min(student.shape[-1], teacher.shape[-1])
        hidden, taught = pooled(student, side), pooled(teacher, side)
        for layer in (0, 2, 4):
            hidden = np.einsum("oi,bihw->bohw", state[f"mean.{layer}.weight"][:, :, 0, 0], hidden)
            hidden = hidden if layer == 4 else np.maximum(hidden, 0)
        variance = np.log1p(np.exp(state["alpha"])) + 1e-5
        for channel, of_channel in enumerate(variance):
            squared = (hidden[:, channel] - taught[:, channel]) ** 2
            total += 0.5 * (squared.mean() / of_channel + math.log(of_channel)) / len(variance)
    assert module(stages).item() == pytest.approx(total, rel=1e-5)


def test_variational_as_torchdistill(theirs: Any, stages: list[tuple[Tensor, Tensor]]) -> None:
    from torchdistill.models.wrapper import Regressor4VID

    module = variational(stages)
    predicted, taught = {}, {}
    copies: list[nn.Module] = []
    for number, (student, teacher) in enumerate(stages):
        width = teacher.shape[1]
        copy = Regressor4VID(student.shape[1], width, width, eps=1e-5, init_pred_var=5.0)
        state = module.stages[number].state_dict()
        names = {name: name.replace("mean", "regressor").replace("alpha", "soft_plus_param") for name in state}
        copy.load_state_dict({names[name]: value for name, value in state.items()})
        smaller, taught[str(number)] = same_side(student, teacher)
        predicted[str(number)] = copy(smaller)
        copies.append(copy)
    pairs = {str(number): {"student": where, "teacher": where} for number, where in enumerate(places(stages))}
    expected = theirs.VIDLoss(pairs)(io(**predicted), io(**taught))
    ours = module(stages)
    torch.testing.assert_close(ours, expected)
    learned = sorted(value.sum().item() for value in slopes(ours, *module.parameters()))
    of_copies = [parameter for copy in copies for parameter in copy.parameters()]
    assert learned == pytest.approx(sorted(value.sum().item() for value in slopes(expected, *of_copies)), abs=1e-6)


# RKD


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def rkd_by_hand(student: Array, teacher: Array) -> tuple[float, float]:
    count = range(len(student))

    def distances(embedding: Array) -> Array:
        found = np.array([[np.linalg.norm(one - other) for other in embedding] for one in embedding])
        scaled: Array = found / found[found > 0].mean()
        return scaled

    def cosine(embedding: Array, at: int, one: int, other: int) -> float:
        edges = [embedding[end] - embedding[at] for end in (one, other)]
        lengths = [float(np.linalg.norm(edge)) for edge in edges]
        return float(edges[0] @ edges[1]) / (lengths[0] * lengths[1]) if min(lengths) > 0 else 0.0

    apart = distances(student) - distances(teacher)
    turned = [cosine(student, *three) - cosine(teacher, *three) for three in itertools.product(count, repeat=3)]
    return float(np.mean([huber(value) for value in apart.flat])), float(np.mean([huber(value) for value in turned]))


def test_relational_by_hand(embeddings: tuple[Tensor, Tensor]) -> None:
    distance, angle = rkd_by_hand(*arrays(*embeddings))
    assert distance_loss(*embeddings).item() == pytest.approx(distance, rel=1e-4)
    assert angle_loss(*embeddings).item() == pytest.approx(angle, rel=1e-4)
    both = relational_loss(*embeddings, distance=25.0, angle=50.0)
    assert both.item() == pytest.approx(25 * distance + 50 * angle, rel=1e-4)


def test_relations_do_not_change_with_size_and_place(embeddings: tuple[Tensor, Tensor]) -> None:
    student_BE, _ = embeddings
    assert relational_loss(student_BE, 3 * student_BE + 1, distance=1.0, angle=1.0).item() == pytest.approx(0, abs=1e-6)


def test_relational_as_torchdistill(theirs: Any, embeddings: tuple[Tensor, Tensor]) -> None:
    student_BE, teacher_BE = embeddings[0].requires_grad_(True), embeddings[1]
    module = theirs.RKDLoss("s", "t", dist_factor=25.0, angle_factor=50.0, reduction="mean")
    expected = module(io(s=student_BE), io(t=teacher_BE))
    ours = relational_loss(student_BE, teacher_BE, distance=25.0, angle=50.0)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes(ours, student_BE), slopes(expected, student_BE), rtol=1e-3, atol=1e-4)


# PKT


def pkt_by_hand(student: Array, teacher: Array) -> float:
    def probabilities(embedding: Array) -> Array:
        unit = embedding / (np.linalg.norm(embedding, axis=1, keepdims=True) + 1e-7)
        kernel = np.array([[(float(one @ other) + 1) / 2 for other in unit] for one in unit])
        chances: Array = kernel / kernel.sum(axis=1, keepdims=True)
        return chances

    p, q = probabilities(student), probabilities(teacher)
    return float(np.mean(q * np.log((q + 1e-7) / (p + 1e-7))))


def test_neighbours_by_hand(embeddings: tuple[Tensor, Tensor]) -> None:
    golden = pkt_by_hand(*arrays(*embeddings))
    doubles = neighbour_loss(*(embedding.double() for embedding in embeddings))
    assert doubles.item() == pytest.approx(golden, rel=1e-9)
    assert neighbour_loss(*embeddings).item() == pytest.approx(golden, rel=1e-3)  # it is a small sum of large parts


def test_neighbours_as_torchdistill(theirs: Any, embeddings: tuple[Tensor, Tensor]) -> None:
    student_BE, teacher_BE = embeddings[0].double().requires_grad_(True), embeddings[1].double()
    # Theirs writes into what it has divided.
    expected = theirs.PKTLoss("s", "output", "t", "output")(io(s=student_BE), io(t=teacher_BE))
    ours = neighbour_loss(student_BE, teacher_BE)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(slopes(ours, student_BE), slopes(expected, student_BE))


# All of them

Loss = Callable[[Tensor, Tensor], Tensor]


def crd(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    rows_B = torch.arange(6)
    module = ContrastiveLoss(4, 4, images=16, dim=3)
    nn.init.zeros_(module.student_head.bias)  # so that the code too is zero where the embedding is
    loss: Tensor = module(student_BE, teacher_BE, rows_B=rows_B, negatives_BK=rows_B[:, None] + torch.arange(1, 6))
    return loss


def as_maps(features_BE: Tensor) -> Tensor:
    return features_BE.view(6, 1, 2, 2)


LOSSES: dict[str, Loss] = {
    "kd": lambda student, teacher: soft_label_loss(student, teacher, temperature=4.0),
    "at": lambda student, teacher: attention_transfer_loss([(as_maps(student), as_maps(teacher))]),
    "sp": similarity_loss,
    "vid": lambda student, teacher: VariationalLoss([(1, 1)])([(as_maps(student), as_maps(teacher))]),
    "rkd": lambda student, teacher: relational_loss(student, teacher, distance=25.0, angle=50.0),
    "crd": crd,
    "pkt": neighbour_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "one image"])
def test_slopes_are_finite_where_features_are_zero(name: str, zero: str, generator: torch.Generator) -> None:
    student_BE, teacher_BE = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    if zero in ("student", "both"):
        student_BE.zero_()
    if zero in ("teacher", "both"):
        teacher_BE.zero_()
    if zero == "one image":
        student_BE[2] = 0
    student_BE.requires_grad_(True)
    loss = LOSSES[name](student_BE, teacher_BE)
    assert loss.isfinite()
    assert slopes(loss, student_BE)[0].isfinite().all()


@pytest.mark.parametrize("name", ["kd", "at", "sp", "rkd", "pkt"])
def test_nothing_is_to_be_learned_from_oneself(name: str, generator: torch.Generator) -> None:
    features_BE = torch.randn(6, 4, generator=generator)
    assert LOSSES[name](features_BE, features_BE).item() == pytest.approx(0, abs=1e-6)
    assert LOSSES[name](features_BE, torch.randn(6, 4, generator=generator)).item() > 1e-5


# Those of kd are tested with the paradigms' KL term.
@pytest.mark.parametrize("name", ["at", "sp", "rkd", "pkt"])
def test_slopes_against_finite_differences(name: str, generator: torch.Generator) -> None:
    student_BE, teacher_BE = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    student_BE.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda leaf: LOSSES[name](leaf, teacher_BE), (student_BE,))
