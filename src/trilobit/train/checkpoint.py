"""What a run's folder holds between two calls: whose it is, and checkpoints that are whole.

Whatever is written here is written under another name and renamed: a run that is killed, or
whose disk runs full, leaves nothing that looks like a result.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trilobit.errors import FormatError, OutputError, RecipeError
from trilobit.formats.files import read_bytes
from trilobit.formats.run_folder import FAILED, RECIPE
from trilobit.formats.whole_directory import new_directory
from trilobit.formats.whole_file import remove_parts, write_remedy, write_whole
from trilobit.train.health import HEALTH
from trilobit.train.recipes import Recipe, recipe_of
from trilobit.train.sums import check_sums

_MAX_RECIPE_BYTES = 1 << 20
_ELSEWHERE = "choose another --output"


class Diverged(RecipeError):
    """A run whose loss is no number, or whose model is worse than guessing at its end."""


def claim(recipe: Recipe, output: Path, *, fresh: bool) -> None:
    """Make the folder this run's own.

    fresh: delete an earlier run's checkpoints and logs first.
    Raises RecipeError when the folder holds checkpoints of another recipe.
    """
    path = output / RECIPE
    try:
        remove_parts(output)
        if fresh:
            for old in (*output.glob("checkpoint-*"), output / "tensorboard"):
                _remove(old)
            for log in ("log.jsonl", HEALTH):
                (output / log).unlink(missing_ok=True)
        elif last_checkpoint(output):
            _refuse_another(recipe, path)
        output.mkdir(parents=True, exist_ok=True)
        (output / FAILED).unlink(missing_ok=True)
        text = json.dumps(recipe.as_dict(), indent=2) + "\n"
        write_whole(path, text.encode(), _ELSEWHERE)
    except OutputError:
        raise
    except OSError as error:
        remedy = write_remedy(error, _ELSEWHERE)
        raise OutputError(f"{output}: cannot write there ({error.strerror}); {remedy}") from error


def keep_failure(output: Path, error: Diverged) -> None:
    """Leave word of why a run came to nothing, for whoever looks for its model."""
    write_whole(output / FAILED, f"{error}\n".encode(), _ELSEWHERE)


def last_checkpoint(output: Path, before: int | None = None) -> Path | None:
    """The newest checkpoint of a run; a half-written one never bears such a name.

    before: the newest of those that have fewer steps behind them.
    """
    steps = {
        int(match[1]): path
        for path in output.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d{1,12})", path.name))
    }
    if before is not None:
        steps = {step: path for step, path in steps.items() if step < before}
    return steps[max(steps)] if steps else None


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def check(checkpoint: Path, steps: int) -> None:
    """Raise FormatError when a file of a checkpoint is missing, cut short or another.

    Raises RecipeError when it lies beyond the steps that the run is to have.
    """
    try:
        check_sums(checkpoint)
    except FormatError as error:
        reason = str(error).removeprefix(f"{checkpoint}/").replace("; check the name", "")
        previous = last_checkpoint(checkpoint.parent, before=step_of(checkpoint))
        remedy = (
            f"delete it to go on from {previous.name}" if previous else "begin anew with --fresh"
        )
        raise FormatError(f"{checkpoint}: is damaged ({reason}); {remedy}") from error
    if step_of(checkpoint) > steps:
        raise RecipeError(
            f"{checkpoint}: is beyond the {steps} steps asked for; give at least "
            f"{step_of(checkpoint)}, or choose another --output, or --fresh to begin anew"
        )


def fill(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder, which then replaces the one of that name.

    Raises OutputError when it cannot be written; then the old folder stays.
    """
    with new_directory(folder, replaces=True) as part:
        try:
            write(part)
        except WRITE_ERRORS as error:
            raise OutputError(
                f"{folder}: cannot be written ({reason_of(error)}); {remedy_of(error)}"
            ) from error


# A full disk, as safetensors and torch.save tell of it.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def remedy_of(error: BaseException) -> str:
    """What to do when a part of a run cannot be written, by its cause."""
    code = error.errno if isinstance(error, OSError) else errno_in(str(error))
    what = write_remedy(OSError(code, ""), _ELSEWHERE)
    return f"{what}; the same command goes on from the last checkpoint, if there is one"


def reason_of(error: BaseException) -> str:
    """Why a part of a run cannot be written, in a line; torch's words for a full disk are none."""
    if type(error) is RuntimeError and "os error" not in str(error):
        return "probably no space left"
    return first_line(error)


def errno_in(text: str) -> int:
    """The system's error number that the text of a library's error holds."""
    # safetensors and tokenizers have it in their text. torch.save has none; where it is called,
    # files beside its own have just been written, so that little but a lack of room is left.
    match = re.search(r"os error (\d+)", text)
    return int(match[1]) if match else errno.ENOSPC


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _refuse_another(recipe: Recipe, path: Path) -> None:
    try:
        theirs = recipe_of(json.loads(read_bytes(path, _MAX_RECIPE_BYTES)))
    except (OSError, ValueError, RecursionError, FormatError, RecipeError) as error:
        raise RecipeError(
            f"{path}: cannot tell whose checkpoints lie beside it ({first_line(error)}); choose "
            "another --output, or --fresh to delete them"
        ) from error
    if recipe.kind != theirs.kind:
        raise RecipeError(
            f'{path.parent}: holds checkpoints of a recipe with kind = "{theirs.kind}", and this '
            f'one is of kind = "{recipe.kind}"; say the kind that it is, or choose another '
            "--output, or --fresh to delete them"
        )
    # A run may be made longer or shorter, and logged otherwise; and its text may have moved:
    # whether it is still the same text, the corpus tells.
    mine, other = ({**r.as_dict(), "data": dict(r.as_dict()["data"])} for r in (recipe, theirs))
    for values in (mine, other):
        for key in recipe.may_change:
            values.pop(key, None)
        values["data"] = _without_names(values["data"])
        if "mixture" in values["data"]:
            values["data"]["mixture"] = [_without_names(x) for x in values["data"]["mixture"]]
    if changed := [key for key in mine if mine[key] != other.get(key)]:
        raise RecipeError(
            f"{path.parent}: holds checkpoints of another recipe (it differs in "
            f"{', '.join(changed)}); choose another --output, or --fresh to delete them"
        )


def _without_names(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "files": (), "validation": values["validation"] is None}
