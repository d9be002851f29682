"""Models trained once for all attack tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rnascl_cli.artifacts.documents import Architecture, Provenance, TrainDocument
from rnascl_cli.artifacts.store import sha256_file, write_document
from rnascl_cli.data import load_data
from rnascl_cli.models.files import build_student, save_student
from rnascl_cli.models.student import Student
from rnascl_cli.recipes.settings import DataSettings
from rnascl_cli.spaces import network_cost, space_named
from tests.attacks import tiny


@pytest.fixture(scope="session")
def robust() -> nn.Sequential:
    """A small network trained on PGD images."""
    return tiny.trained(adversarial=True)


@pytest.fixture(scope="session")
def plain() -> nn.Sequential:
    """The same network trained on clean images."""
    return tiny.trained(adversarial=False)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student file of random features, whose linear layer is fitted to digits."""
    space = space_named("S3")
    cost = network_cost(space, space.smallest, num_classes=10, input_size=32)
    architecture = Architecture(
        space="S3",
        widths=list(space.smallest),
        num_classes=10,
        input_size=32,
        params=cost.params,
        macs=cost.macs,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_student(architecture, mean=(0.3, 0.3, 0.3), std=(0.25, 0.25, 0.25))
    _fit_classifier(network.eval())
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, network, architecture)
    return path


@torch.no_grad()
def _fit_classifier(network: Student) -> None:
    images = load_data(DataSettings(spec="digits", limit_train=600), seed=0).train
    features: list[torch.Tensor] = []
    hook = network.classifier.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    network(images.images_NCHW.float() / 255)
    hook.remove()
    with_bias = torch.cat([features[0], torch.ones(len(images), 1)], dim=1).double()
    scale = with_bias.abs().mean()
    gram = with_bias.T @ with_bias + 1e-4 * scale**2 * torch.eye(with_bias.shape[1])
    wanted = torch.nn.functional.one_hot(images.labels_N, 10).double() - 0.1
    fitted = torch.linalg.solve(gram, with_bias.T @ wanted).T.float()
    network.classifier.weight.copy_(fitted[:, :-1])
    network.classifier.bias.copy_(fitted[:, -1])


@pytest.fixture
def trained_run(student: Path, tmp_path: Path, provenance: Provenance) -> Path:
    """A run directory of ``train``, on digits."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(student, folder / "student.safetensors")
    space = space_named("S3")
    cost = network_cost(space, space.smallest, num_classes=10, input_size=32)
    document = TrainDocument(
        provenance=provenance,
        paradigm="rnas-cl",
        architecture=Architecture(
            space="S3", widths=list(space.smallest), num_classes=10, input_size=32, params=cost.params, macs=cost.macs
        ),
        student_sha256=sha256_file(folder / "student.safetensors"),
        clean_accuracy=0.1,
        epochs=1,
        seconds=1.0,
        history=[],
    )
    write_document(folder / "train.json", document)
    return folder
