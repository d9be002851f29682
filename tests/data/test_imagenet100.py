"""ImageNet-100's list and folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rnascl_cli.data import load_data
from rnascl_cli.data.folder import imagenet100_classes
from rnascl_cli.errors import UserError
from rnascl_cli.recipes import DataSettings
from tests.data.conftest import write_image


def test_the_list() -> None:
    classes = imagenet100_classes()
    assert len(set(classes)) == 100
    assert classes == sorted(classes)
    assert classes[0] == "n01558993"


def test_other_folders_are_left_alone_and_missing_ones_named(tmp_path: Path) -> None:
    for name in [*imagenet100_classes(), "n00000000"]:
        write_image(tmp_path / "val" / name / "a.png", side=(20, 30))
    settings = DataSettings(spec=f"imagenet100:{tmp_path}", limit_test=10)
    data = load_data(settings, seed=0, training=False)
    assert (data.num_classes, data.input_size, len(data.test)) == (100, 224, 10)
    with pytest.raises(UserError, match="no train/ folder, only test images"):
        load_data(settings, seed=0)
    (tmp_path / "val" / "n01558993" / "a.png").unlink()
    (tmp_path / "val" / "n01558993").rmdir()
    with pytest.raises(UserError, match=r"1 of ImageNet-100's class folders are missing \(n01558993\)"):
        load_data(settings, seed=0, training=False)
