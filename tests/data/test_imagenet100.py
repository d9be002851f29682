"""The class lists of ImageNet and ImageNet-100, and their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError
from rnascl_cli.data import folder, load_data
from rnascl_cli.data.folder import imagenet100_classes, imagenet_classes
from rnascl_cli.recipes.settings import DataSettings
from tests.data.conftest import write_image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet100-classes.txt"


def test_the_list() -> None:
    classes = imagenet100_classes()
    assert len(set(classes)) == 100
    assert classes == sorted(classes)
    assert classes[0] == "n01558993"


def test_the_thousand_are_the_usual_ones_in_their_usual_order() -> None:
    from timm.data import ImageNetInfo

    assert imagenet_classes() == ImageNetInfo().label_names()
    assert set(imagenet100_classes()) <= set(imagenet_classes())


@pytest.mark.skipif(not SHARED.is_file(), reason="the list as handed out is not beside this checkout")
def test_the_list_is_the_one_handed_out() -> None:
    assert SHARED.read_text().split() == folder._class_list("imagenet100-classes.txt", folder.IMAGENET100_SHA256)


@pytest.mark.parametrize("constant", ["IMAGENET_SHA256", "IMAGENET100_SHA256"])
def test_a_list_that_has_changed_is_noticed(constant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, constant, "0" * 64)
    with pytest.raises(AssertionError, match=r"class list .* has changed"):
        imagenet_classes() if constant == "IMAGENET_SHA256" else imagenet100_classes()


def test_other_folders_are_left_alone_and_missing_ones_named(tmp_path: Path) -> None:
    for name in [*imagenet100_classes(), "n00000000"]:
        write_image(tmp_path / "val" / name / "a.png", side=(20, 30))
    settings = DataSettings(spec=f"imagenet100:{tmp_path}", limit_test=10)
    data = load_data(settings, seed=0, training=False)
    assert (data.num_classes, data.input_size, len(data.test)) == (100, 224, 10)
    with pytest.raises(UserError, match="no train/ folder"):
        load_data(settings, seed=0)
    (tmp_path / "val" / "n01558993" / "a.png").unlink()
    (tmp_path / "val" / "n01558993").rmdir()
    with pytest.raises(UserError, match=r"1 of ImageNet-100's class folders are missing \(n01558993\)"):
        load_data(settings, seed=0, training=False)


@pytest.mark.parametrize("name", ["imagenet", "imagenet100"])
def test_a_folder_that_is_not_sorted_by_class(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", side=(20, 30))
    with pytest.raises(
        UserError, match=r"val: has none of ImageNet.*'s class folders .*sort its images into one folder"
    ):
        load_data(DataSettings(spec=f"{name}:{tmp_path}"), seed=0, training=False)
    (tmp_path / "val").rename(tmp_path / "validation")
    with pytest.raises(UserError, match=r"has no val/ or test/ folder"):
        load_data(DataSettings(spec=f"{name}:{tmp_path}"), seed=0, training=False)


def test_the_challenge_s_unlabelled_test_folder_is_not_taken_for_val(tmp_path: Path) -> None:
    for name in imagenet100_classes():
        write_image(tmp_path / "val" / name / "a.png", side=(20, 30))
    write_image(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG", side=(20, 30))
    data = load_data(DataSettings(spec=f"imagenet100:{tmp_path}", limit_test=1), seed=0, training=False)
    assert len(data.test) == 1
