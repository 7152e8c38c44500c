"""What a run's folder holds between two calls: whose it is, and checkpoints that are whole.

Whatever is written here is written under another name and renamed: a run that is killed, or
whose disk runs full, leaves nothing that looks like a result.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from trilobit.errors import FormatError, OutputError, RecipeError
from trilobit.formats.whole_file import write_remedy
from trilobit.train.recipe import Recipe


def claim(recipe: Recipe, output: Path, *, fresh: bool) -> None:
    """Make the folder this run's own.

    fresh: delete an earlier run's checkpoints and logs first.
    Raises RecipeError when the folder holds checkpoints of another recipe.
    """
    path = output / "recipe.json"
    try:
        if fresh:
            for old in (*output.glob("checkpoint-*"), output / "tensorboard"):
                shutil.rmtree(old, ignore_errors=True)
            (output / "log.jsonl").unlink(missing_ok=True)
        elif last_checkpoint(output):
            _refuse_another(recipe, path)
        output.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial-recipe.json")
        partial.write_text(json.dumps(recipe.as_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        remedy = write_remedy(error, "choose another --output")
        raise OutputError(f"{output}: cannot write there ({error.strerror}); {remedy}") from error


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint of a run; a half-written one never bears such a name."""
    steps = {
        int(match[1]): path
        for path in output.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return steps[max(steps)] if steps else None


def check(checkpoint: Path) -> None:
    """Raise FormatError when a file of a checkpoint is missing or cut short."""
    try:
        for weights in list(checkpoint.glob("*.safetensors")) or [checkpoint / "model.safetensors"]:
            with safe_open(weights, framework="np"):
                pass
        for name in ("optimizer.pt", "scheduler.pt"):
            zipfile.ZipFile(checkpoint / name).close()
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, zipfile.BadZipFile, ValueError) as error:
        raise FormatError(
            f"{checkpoint}: is damaged ({first_line(error)}); delete it to go on from the one "
            "before"
        ) from error


def write_whole(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a folder, which then replaces the one of that name.

    Raises OutputError when it cannot be written; then the old folder stays.
    """
    partial = folder.with_name(f"unfinished-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except WRITE_ERRORS as error:
        raise OutputError(
            f"{folder}: cannot be written ({first_line(error)}); {remedy_of(error)}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


# A full disk, as safetensors and torch.save tell of it.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def remedy_of(error: BaseException) -> str:
    """What to do when a part of a run cannot be written, by its cause."""
    code = error.errno if isinstance(error, OSError) else _errno_in(str(error))
    what = write_remedy(OSError(code, ""), "choose another --output")
    return f"{what}; the same command goes on from the last checkpoint, if there is one"


def _errno_in(text: str) -> int:
    # safetensors has the system's error in its text. torch.save has none; where it is called, files
    # beside its own have just been written, so that little but a lack of room is left.
    match = re.search(r"os error (\d+)", text)
    return int(match[1]) if match else errno.ENOSPC


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _refuse_another(recipe: Recipe, path: Path) -> None:
    try:
        theirs = Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecipeError) as error:
        raise RecipeError(
            f"{path}: cannot tell whose checkpoints lie beside it ({first_line(error)}); choose "
            "another --output, or --fresh to delete them"
        ) from error
    # A run may be made longer or shorter, and logged otherwise; and its text may have moved:
    # whether it is still the same text, the corpus tells.
    theirs = dataclasses.replace(
        theirs,
        schedule=recipe.schedule,
        log_every=recipe.log_every,
        evaluate_every=recipe.evaluate_every,
        save_every=recipe.save_every,
        data=dataclasses.replace(theirs.data, files=recipe.data.files),
    )
    mine, other = recipe.as_dict(), theirs.as_dict()
    if changed := [key for key in mine if mine[key] != other[key]]:
        raise RecipeError(
            f"{path.parent}: holds checkpoints of another recipe (it differs in "
            f"{', '.join(changed)}); choose another --output, or --fresh to delete them"
        )
