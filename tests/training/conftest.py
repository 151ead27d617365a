"""A run that nothing befell, for all tests of what may befall one."""

from pathlib import Path

import pytest
import torch
from circumstances import CHANGES

import small_run
from onward.artifact import Folders
from onward.pipeline import Run


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return small_run.write_inputs(tmp_path_factory.mktemp("circumstances") / "inputs")


@pytest.fixture(scope="session")
def reference(inputs: Path) -> Path:
    """The folder of a run that nothing befell; its caches serve all others."""
    folders = Folders(inputs.parent / "cache", inputs.parent / "runs")
    return Run(small_run.recipe(inputs, **CHANGES), folders=folders, workers=1).all().folder
