"""The package's leave_together, without the seconds that importing the whole package takes in each process."""

import runpy
from pathlib import Path

leave_together = runpy.run_path(str(Path(__file__).parents[1] / "hf_distill" / "launch.py"))["leave_together"]
