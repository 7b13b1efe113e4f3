"""What every test shares: no Hub, no trackers, and the data that lies beside the checkout."""

import os

# Read when the libraries are imported, hence before everything else. Where the Hub can't be reached, a call to it
# takes up to a minute to give up; with this it fails at once, and a test that needs it is seen to.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# A Trainer reports to no tracker unless told to; these hold for a test that says "all" on a developer's machine.
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("DISABLE_MLFLOW_INTEGRATION", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ``shared/data`` beside the checkout, or a skip that says where it was looked for."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder} is not there")
    return folder
