"""``timm:NAME`` as a teacher and as a model to attack. timm's own loading runs; only its download is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from rnascl_cli import load
from rnascl_cli.artifacts.documents import AttackDocument, DerivedDocument, SearchDocument
from rnascl_cli.artifacts.store import read_document
from rnascl_cli.core.errors import UserError
from rnascl_cli.loading import resolve_model
from rnascl_cli.models.attention_maps import attention_layers, record_attention_maps
from rnascl_cli.teachers.architectures.timm_models import tensors_sha256, timm_model
from rnascl_cli.teachers.forward import tutor_layers
from rnascl_cli.teachers.load import read_teacher
from rnascl_cli.teachers.public_checkpoints import IDENTITY, NormalisationConstants
from rnascl_cli.teachers.state_dict_conversion import convert_state_dict, expected_tensors
from tests.command import done, refused, rnascl
from tests.conftest import FAST
from tests.teachers.conftest import images, shake

NET = "test_resnet"  # timm's own for tests: 0.5 M params, 160 pixels, mean and std one half
FULL = f"{NET}.r160_in1k"
VIT = "vit_tiny_patch16_224"
SMALL_DATA = ("--data", "digits", "--limit-train", 40, "--limit-test", 20)


def weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(name)
        shake(network)
    return dict(network.state_dict())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has random weights of any model; what was asked for, in order."""
    asked: list[str] = []

    def fetched(model_id: str, *_: object, **__: object) -> dict[str, Tensor]:
        asked.append(model_id)
        return weights(model_id.removeprefix("timm/").partition(".")[0])

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetched)
    return asked


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fails)


def test_a_timm_network_is_a_teacher(hub: list[str]) -> None:
    teacher = read_teacher(f"timm:{NET}", num_classes=1000)
    assert hub == [f"timm/{FULL}"]
    assert (teacher.architecture, teacher.num_classes) == (f"timm:{FULL}", 1000)
    assert (teacher.reference.source, teacher.reference.path) == (f"timm:{NET}", f"timm:{FULL}")
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    plain = timm.create_model(NET)
    plain.load_state_dict(weights(NET))
    by_hand = (images(64) - 0.5) / 0.5
    torch.testing.assert_close(teacher.module(images(64)), plain.eval()(by_hand), atol=1e-5, rtol=1e-5)


def test_its_identity_is_that_of_its_tensors(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (read_teacher(f"timm:{name}").reference.sha256 for name in (NET, FULL))
    assert first == again
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: weights(NET, seed=1))
    assert read_teacher(f"timm:{NET}").reference.sha256 != first
    module = nn.BatchNorm1d(2)
    constants = IDENTITY
    before = tensors_sha256(module, constants)
    assert before == tensors_sha256(nn.BatchNorm1d(2), constants)
    assert before != tensors_sha256(module, NormalisationConstants((0.5, 0.0, 0.0), (1.0, 1.0, 1.0)))
    module.running_mean[0] = 1e-7  # type: ignore[index]
    assert before != tensors_sha256(module, constants)


def test_its_convolutions_are_tapped(hub: list[str]) -> None:
    module = read_teacher(f"timm:{NET}").module
    names = list(attention_layers(module, "conv"))
    assert len(names) == 15
    assert names[0] == "network.conv1.0"
    with torch.no_grad(), record_attention_maps(module, side=4) as recorder:
        module(images(64))
        assert recorder.pop().shape == (2, 15, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", r"timm has no model 'resnet_18'; did you mean 'resnet18'"),
        ("resnet18.a1_in1", r"no weights 'a1_in1' of resnet18; did you mean 'a1_in1k'"),
        ("hf-hub:somebody/x", r"timm has no model 'hf-hub:somebody/x'"),
        ("", r"timm has no model ''"),
        ("vit_base_patch16_sapiens2", r"takes 3x1024x768 inputs, not square RGB images"),
        ("resnet101c", None),
    ],
)
def test_unknown_names(name: str, message: str | None) -> None:
    if message is None:
        assert timm_model(name).name.startswith(name)
        return
    with pytest.raises(UserError, match=message) as raised:
        read_teacher(f"timm:{name}")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.usefixtures("offline")
def test_offline_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as raised:
        read_teacher(f"timm:{NET}")
    text = str(raised.value)
    assert "\n" not in text
    for part in ("not in timm's cache", "OSError: Name or service not known", f"https://huggingface.co/timm/{FULL}"):
        assert part in text
    assert f"rnascl teacher import FILE --arch timm:{FULL}" in text
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_weights_that_are_not_there_or_no_classifier(hub: list[str]) -> None:
    with pytest.raises(UserError, match=r"timm has no weights of it; import your own by .*--arch timm:test_mambaout"):
        read_teacher("timm:test_mambaout")
    with pytest.raises(UserError, match=r"timm's weights have no classifier, only features"):
        read_teacher("timm:vit_small_patch14_dinov2")
    assert hub == []


def test_classes_are_checked_before_anything_is_downloaded(hub: list[str]) -> None:
    line = refused("search", "--space", "S3", *SMALL_DATA, "--teacher", f"timm:{NET}")
    assert f"teacher timm:{NET} has 1000 classes, the data has 10" in line
    assert "--paradigm icc" in line
    assert hub == []


def test_the_chain_with_a_timm_teacher_of_other_classes(tmp_path: Path, hub: list[str]) -> None:
    """Without the KL term its thousand classes do not matter; every stage finds the same teacher again."""
    search = ("search", "--space", "S3", *SMALL_DATA, "--teacher", f"timm:{NET}", "--paradigm", "icc", "--epochs", 1)
    done(*search, *FAST, "--out", tmp_path / "search")
    found = read_document(tmp_path / "search" / "search.json", SearchDocument)
    assert len(found.teacher_layers) == 15
    assert found.provenance.teacher is not None
    assert found.provenance.teacher.path == f"timm:{FULL}"
    done("train", tmp_path / "search", "--epochs", 1, *FAST, "--out", tmp_path / "train")
    derived = read_document(tmp_path / "train" / "derived.json", DerivedDocument)
    assert derived.tutors is not None
    assert derived.tutors.teacher.sha256 == read_teacher(f"timm:{NET}").reference.sha256
    line = refused("train", tmp_path / "search", "--set", "paradigm=rnas-cl", "--out", tmp_path / "again")
    assert "has 1000 classes, the data has 10" in line
    done("report", tmp_path / "train", "--out", tmp_path / "report")
    assert f"timm:{FULL}" in (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    maps_are_drawn_or_missed(tmp_path, hub)


def maps_are_drawn_or_missed(folder: Path, hub: list[str]) -> None:
    image = folder / "image.png"
    Image.new("RGB", (32, 32), (200, 100, 50)).save(image)
    hub.clear()
    done("report", folder / "train", "--image", image, "--out", folder / "maps")
    assert hub
    assert list((folder / "maps" / "figures").glob("maps-*"))


def test_other_weights_are_not_the_tutor_maps_teacher(
    tmp_path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ("search", "--space", "S3", *SMALL_DATA, "--teacher", f"timm:{NET}", "--paradigm", "icc", "--epochs", 1)
    done(*search, *FAST, "--out", tmp_path / "search")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: weights(NET, seed=1))
    arguments = ("train", tmp_path / "search", "--epochs", 1, *FAST, "--out", tmp_path / "train")
    code_line = refused_last(*arguments)
    assert "is not that of the tutor map's teacher" in code_line


def refused_last(*arguments: object) -> str:
    """The refusal of a command that first says that it takes weights from timm."""
    outcome = rnascl(*arguments)
    assert outcome.code == 2, outcome
    return outcome.err.splitlines()[-1]


def test_a_transformer_has_one_tutor_and_one_size(tmp_path: Path, hub: list[str]) -> None:
    search = ("search", "--space", "S3", "--teacher", f"timm:{VIT}", "--paradigm", "icc", "--epochs", 1, *FAST)
    line = refused_last(*search, *SMALL_DATA, "--out", tmp_path / "a")
    assert f"--teacher timm:{VIT}: does not take images of 32x32 pixels" in line
    assert not (tmp_path / "a").exists()


def test_networks_with_one_conv_or_none(hub: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    vit = read_teacher("timm:test_vit")
    capsys.readouterr()
    assert tutor_layers(vit, "conv") == ["network.patch_embed.proj"]
    assert "every student layer has the same tutor" in " ".join(capsys.readouterr().err.split())
    for tap in ("norm", "block"):
        with pytest.raises(UserError, match=rf"timm:test_vit: has no {tap} layers to be tutors; use --paradigm kl"):
            tutor_layers(vit, tap)


def test_it_can_be_attacked_and_loaded(tmp_path: Path, hub: list[str]) -> None:
    loaded = resolve_model(f"timm:{NET}")
    assert (loaded.kind, loaded.num_classes, str(loaded.path)) == ("teacher", 1000, f"timm:{FULL}")
    torch.testing.assert_close(load(f"timm:{NET}")(images(64)), loaded.module(images(64)))
    folder = thousand_classes(tmp_path / "data")
    options = ("--data", f"folder:{folder}", "--attack", "fgsm", "--eps", "4/255", "--device", "cpu")
    done("attack", f"timm:{NET}", *options, "--out", tmp_path / "attack")
    document = read_document(tmp_path / "attack" / "attack.json", AttackDocument)
    assert document.model_sha256 == loaded.sha256
    assert document.n == 1000


def thousand_classes(root: Path) -> Path:
    for number in range(1000):
        (root / "test" / f"{number:04}").mkdir(parents=True)
        colour = (number % 256, number // 4, 128)
        Image.new("RGB", (32, 32), colour).save(root / "test" / f"{number:04}" / "0.png")
    return root


def test_attack_names_what_is_wrong(hub: list[str]) -> None:
    assert refused("attack", "timm:tset_resnet", "--data", "digits").startswith("rnascl: timm:tset_resnet: timm has no")
    assert "has 1000 classes and --data digits has 10" in refused_last("attack", f"timm:{NET}", "--data", "digits")


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}], ids=["plain", "wrapped"])
def test_a_checkpoint_of_ones_own(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    network = timm.create_model(NET, num_classes=7)
    shake(network)
    prefix = "module." if wrap({}) else ""
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save(wrap(state), tmp_path / "mine.pt")
    out = tmp_path / "mine.safetensors"
    outcome = done("teacher", "import", tmp_path / "mine.pt", "--arch", f"timm:{NET}", "--out", out, "--json")
    report = json.loads(outcome.out)
    assert (report["architecture"], report["num_classes"]) == (f"timm:{FULL}", 7)
    assert (report["mean"], report["std"]) == ([0.5] * 3, [0.5] * 3)
    assert "the usual mean 0.5" in outcome.err
    expected = network.eval()((images(64) - 0.5) / 0.5)
    torch.testing.assert_close(load(out)(images(64)), expected, atol=1e-5, rtol=1e-5)
    again = read_teacher(str(out), num_classes=7)
    assert again.architecture == f"timm:{FULL}"
    shown = json.loads(done("teacher", "show", out, "--json").out)
    assert shown["layers"][0] == {"layer": "network.conv1.0", "channels": 16, "side": 80}
    assert len(shown["layers"]) == 15


@pytest.mark.parametrize("name", ["test_maxvit", "test_vit", "test_convnext", "test_efficientnet"])
def test_other_kinds_of_network(tmp_path: Path, name: str) -> None:
    """MaxViT keeps tables of positions outside its state dict; the head is called differently in each."""
    network = timm.create_model(name, num_classes=3).eval()
    save_file(dict(network.state_dict()), tmp_path / "t.safetensors")
    out = tmp_path / "out.safetensors"
    done("teacher", "import", tmp_path / "t.safetensors", "--arch", f"timm:{name}", "--out", out)
    x_BCHW = images(160, 1)
    teacher = read_teacher(str(out))
    with torch.no_grad():
        normalised = teacher.module.normalise(x_BCHW)  # type: ignore[operator]
        torch.testing.assert_close(teacher.module(x_BCHW), network(normalised), atol=1e-5, rtol=1e-4)


def test_tensors_whose_own_names_begin_like_a_prefix() -> None:
    """VOLO's are called ``network.0...``; a prefix is only what stands before them."""
    shapes = expected_tensors("timm:volo_d1_224", 5)
    assert any(name.startswith("network.") for name in shapes)
    state = {f"module.{name}": torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    found = convert_state_dict(state, architecture="timm:volo_d1_224", where="x")
    assert (set(found.tensors), found.num_classes) == (set(shapes), 5)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "t.pt")
    line = refused("teacher", "import", tmp_path / "t.pt", "--arch", f"timm:{NET}")
    assert f"not a timm:{FULL}; it has no fc.weight" in line
    torch.save({**weights(NET), "extra": torch.zeros(1)}, tmp_path / "u.pt")
    line = refused("teacher", "import", tmp_path / "u.pt", "--arch", f"timm:{NET}")
    assert "1 tensors unexplained (extra)" in line
    assert "unknown" not in line
    assert "timm has no model 'nope'" in refused("teacher", "import", tmp_path / "u.pt", "--arch", "timm:nope")
