"""What a whole checkpoint is: the manifest that seals it, and the files that one without a manifest must hold."""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST_NAME = "hf_distill_checkpoint.json"
_TEMPORARY_NAME = f"{MANIFEST_NAME}.temporary"
# A whole checkpoint that is written anew is set aside under this prefix until the new one is whole: no Trainer takes
# the name for a checkpoint's, and the Trainer's pushes leave out what begins with an underscore.
ASIDE_PREFIX = "_replaced-"
_CHECKPOINT_NAME = re.compile(rf"^({ASIDE_PREFIX})?checkpoint-(\d+)$")
# transformers' own mark, there while its SIGTERM callback writes a checkpoint.
_SIGTERM_MARK = "checkpoint-is-incomplete.txt"
# A push leaves out training_args.bin, which holds the token, and no resume reads it.
_NOT_SEALED = (MANIFEST_NAME, _SIGTERM_MARK, "training_args.bin")
_INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")


def missing_parts(folder: str | Path, *, save_only_model: bool = False, world_size: int = 1) -> list[str]:
    """Say what a checkpoint lacks; an empty list means that it is whole.

    Args:
        folder: the checkpoint.
        save_only_model: ask for the weights and the trainer's state alone, as ``TrainingArguments.save_only_model``.
        world_size: number of processes whose random state a checkpoint without a manifest must hold, if it holds
            that of several; what has a manifest is judged by the number of processes that wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return ["the folder does not exist"]
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        return _missing_from_files(folder, save_only_model, world_size)
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        whole = manifest["whole"]
    except (ValueError, KeyError, TypeError):
        return [f"{MANIFEST_NAME} cannot be read"]
    if not whole:
        still_missing = _missing_from_files(folder, save_only_model, manifest["world_size"])
        return ["the run stopped while writing it", *still_missing]
    missing = []
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            missing.append(f"{name} is missing")
        elif path.stat().st_size != size:
            missing.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif not _is_readable(
            path
        ):  # of its size, and not what was written: zeros after a loss of power, say
            missing.append(f"{name} cannot be read")
    if manifest["save_only_model"] and not save_only_model:
        missing.append("optimizer, scheduler and random state are missing (save_only_model=True wrote it)")
    return missing


def _missing_from_files(folder: Path, save_only_model: bool, world_size: int) -> list[str]:
    """What a checkpoint without a manifest lacks, by the files that transformers writes."""
    missing = _missing_weights(folder)
    if not (folder / "trainer_state.json").is_file():
        missing.append("trainer_state.json is missing")
    elif not _is_readable(folder / "trainer_state.json"):
        missing.append("trainer_state.json cannot be read")
    if (folder / _SIGTERM_MARK).exists():
        missing.append(f"{_SIGTERM_MARK} says that it was still being written")
    if save_only_model:
        return missing
    if not _holds_deepspeed(folder):  # which keeps optimizer and scheduler in its own folder
        if not any(folder.glob("optimizer*")) and not any(folder.glob("rank*-of-*-optimizer.pt")):
            missing.append("optimizer.pt is missing")
        if not (folder / "scheduler.pt").is_file():
            missing.append("scheduler.pt is missing")
    ranks = {int(path.stem.removeprefix("rng_state_")) for path in folder.glob("rng_state_[0-9]*.pth")}
    if ranks:  # several processes wrote it: at least two, and one more than the highest rank seen
        expected = range(max(2, max(ranks) + 1, world_size))
        missing.extend(f"rng_state_{rank}.pth is missing" for rank in expected if rank not in ranks)
    elif not (folder / "rng_state.pth").is_file():
        missing.append("rng_state.pth is missing")
    archives = [folder / "optimizer.pt", folder / "scheduler.pt", *folder.glob("rng_state*.pth")]
    missing.extend(
        f"{path.name} is cut off" for path in archives if path.is_file() and not _is_readable(path)
    )
    return missing


def _missing_weights(folder: Path) -> list[str]:
    """What the weights lack: every shard that an index names, or one file of weights in any of the usual places."""
    if _holds_deepspeed(folder) or any(folder.glob("pytorch_model_fsdp*")):
        return []
    for index in (folder / name for name in _INDEX_NAMES):
        if index.is_file():
            if not _is_readable(index):
                return [f"{index.name} cannot be read"]
            weights = sorted(
                {folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
            )
            break
    else:
        places = [folder, *(path for path in folder.iterdir() if path.is_dir())]  # PEFT: a folder per adapter
        weights = [place / name for place in places for name in _WEIGHT_NAMES if (place / name).is_file()]
        if not weights:
            return ["model.safetensors is missing"]
    missing = [f"{path.name} is missing" for path in weights if not path.is_file()]
    return missing + [
        f"{path.name} is cut off" for path in weights if path.is_file() and not _is_readable(path)
    ]


def _holds_deepspeed(folder: Path) -> bool:
    """Whether DeepSpeed wrote its own folder there, and the file that names it, which it writes last."""
    latest = folder / "latest"
    return latest.is_file() and any(folder.glob(f"{latest.read_text('utf-8').strip() or '-'}/*"))


def _is_readable(path: Path) -> bool:
    """Whether a file ends where its own format says that it ends."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text("utf-8"))
        except ValueError:
            return False
    elif path.suffix in (".pt", ".pth"):  # torch writes zip archives, whose table comes last
        return zipfile.is_zipfile(path)
    elif path.suffix == ".safetensors":  # eight bytes of header length, the header, the data
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if header_length == 0 or 8 + header_length > size:
                return False
            try:
                header = json.loads(file.read(header_length))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            except (ValueError, KeyError, TypeError, AttributeError):
                return False
        return size == 8 + header_length + max(ends, default=0)
    return True


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the latest step first, and one set aside after its successor."""
    folder = Path(output_dir)
    paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    named = [(match, path) for path in paths if (match := _CHECKPOINT_NAME.match(path.name))]
    return [path for _, path in sorted(named, key=lambda pair: (-int(pair[0][2]), pair[0][1] is not None))]


def last_whole_checkpoint(
    output_dir: str | Path, *, save_only_model: bool = False, world_size: int = 1
) -> str | None:
    """Find the last whole checkpoint of a run, with a warning that names each incomplete one after it.

    Args:
        output_dir: the run's output folder, which may not exist yet.
        save_only_model: as in :func:`missing_parts`.
        world_size: as in :func:`missing_parts`.

    Returns:
        Its path, to give to ``train(resume_from_checkpoint=...)``, or None where there is none.

    Example:
        >>> print(last_whole_checkpoint("a_folder_that_is_not_there"))
        None
    """
    reports = {
        path: missing_parts(path, save_only_model=save_only_model, world_size=world_size)
        for path in checkpoints(output_dir)
    }
    whole = next((path for path, missing in reports.items() if not missing), None)
    warn_of_skipped({path.name: missing for path, missing in reports.items()}, whole.name if whole else None)
    return str(whole) if whole else None


def written_by(folder: str | Path) -> int:
    """Count the processes that wrote a checkpoint, from its manifest or its random states."""
    manifest = Path(folder) / MANIFEST_NAME
    if manifest.is_file():
        return int(json.loads(manifest.read_text("utf-8"))["world_size"])
    return len(list(Path(folder).glob("rng_state_[0-9]*.pth"))) or 1


def warn_of_skipped(reports: dict[str, list[str]], whole: str | None) -> None:
    """Name each incomplete checkpoint that comes after the whole one, and what it lacks."""
    for name, missing in reports.items():
        if name == whole:
            return
        outcome = f"resuming from {whole}" if whole else "no whole checkpoint is left"
        logger.warning("%s is incomplete: %s; %s", name, ", ".join(missing), outcome)


def is_ours(folder: Path) -> bool:
    """Whether a checkpoint was opened by this package, if only just: the place is cleared before it writes."""
    return (
        (folder / MANIFEST_NAME).exists() or (folder / _TEMPORARY_NAME).exists() or not any(folder.iterdir())
    )


def open_manifest(folder: Path, world_size: int) -> None:
    """Mark a checkpoint as not whole, before anything else is written into it."""
    _write_manifest(folder, {"whole": False, "world_size": world_size})


def settings_of(folder: str | Path) -> dict[str, Any]:
    """Return the settings that a checkpoint's manifest holds, or nothing where it has none."""
    path = Path(folder) / MANIFEST_NAME
    held = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    settings: dict[str, Any] = held.get("settings", {})
    return settings


def seal_manifest(
    folder: Path, *, world_size: int, save_only_model: bool, settings: dict[str, Any] | None = None
) -> None:
    """Mark a checkpoint as whole: all its files are on the disk, and the manifest lists them with their sizes."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_SEALED:
            _flush(path)
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    content = {"whole": True, "world_size": world_size, "save_only_model": save_only_model, "files": files}
    _write_manifest(folder, {**content, "settings": settings or {}})


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Put the manifest in its place in one step, so that it is the old or the new one at any moment."""
    temporary = folder / _TEMPORARY_NAME
    temporary.write_text(json.dumps({"format": 1, **content}, indent=1, default=str) + "\n", encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, folder / MANIFEST_NAME)
    _flush(folder)


def _flush(path: Path) -> None:
    """Have the disk hold a file or a folder's entries, so that they are there after a loss of power too."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
