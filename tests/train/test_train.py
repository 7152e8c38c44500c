"""`trilobit train`: it learns, tells how, and goes on exactly where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import stock
import torch
from fables import (
    FABLES,
    HELD_OUT,
    RECIPE,
    WINDOW,
    Run,
    arguments,
    command,
    one_error,
    train,
    write_recipe,
)
from ports import kept_port
from program import AFTER, HEAR_CTRL_C
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    default_data_collator,
)

from trilobit.errors import OutputError
from trilobit.model.ternary import absmean_ternary
from trilobit.train.checkpoint import check, claim, fill
from trilobit.train.data.token_file import TokenFile, token_dtype
from trilobit.train.data.windows import HeldOutWindows, Passes, TrainingWindows
from trilobit.train.launch import threads_worth, training_arguments
from trilobit.train.monitor import _evaluations_left
from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe
from trilobit.train.schedule import learning_rate
from trilobit.train.sums import write_sums
from trilobit.train.trainer import RunMixin

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 120


def _log(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def _curve(output: Path) -> list[dict[str, float]]:
    """The log without its clock."""
    return [{k: v for k, v in entry.items() if k != "tokens_per_s"} for entry in _log(output)]


def _weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def _checkpoints(output: Path) -> set[str]:
    return {path.name for path in output.glob("checkpoint-*")}


def _held_out_windows(output: Path) -> torch.Tensor:
    """The held-out fables as their definition says, by way of the exported tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    ids: list[int] = []
    for fable in HELD_OUT:
        inner = tokenizer(fable, add_special_tokens=False).input_ids
        ids += [tokenizer.bos_token_id, *inner, tokenizer.eos_token_id]
    whole = len(ids) // WINDOW * WINDOW
    return torch.tensor(ids[:whole]).reshape(-1, WINDOW)


# ---- learning, and what is told of it -----------------------------------------------------------


def test_loss_falls_on_real_text(run: Run) -> None:
    losses = [entry["loss"] for entry in _log(run.output) if "loss" in entry]
    assert losses[0] > 0.9 * math.log(320)  # knows nothing yet
    assert losses[-1] < losses[0] - 1.5


def test_log_has_a_line_for_every_interval(run: Run) -> None:
    entries = _log(run.output)
    training = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in training] == list(range(5, STEPS + 1, 5))
    assert all(entry["tokens"] == entry["step"] * 4 * WINDOW for entry in training)
    assert all(entry["tokens_per_s"] > 0 for entry in training)
    assert [entry["weight_decay"] for entry in training] == [0.1] * 12 + [0.0] * 12
    # The rate of the step that the line is about: the first one of stage 2 is step 61.
    assert training[11]["learning_rate"] == pytest.approx(2e-2 + 1e-2 / 60, rel=1e-3)
    assert training[12]["learning_rate"] == pytest.approx(1e-2 * 56 / 60, rel=1e-3)
    held_out = [entry for entry in entries if "held_out_loss" in entry]
    assert [entry["step"] for entry in held_out] == [40, 80, 120]


def test_progress_lines_tell_loss_speed_and_time_left(run: Run) -> None:
    lines = [line for line in run.outcome.err.splitlines() if line.startswith("step ")]
    training = [line for line in lines if "loss" in line]
    assert len(training) == STEPS // 5
    form = r"step \d+/120: loss \d+\.\d{4}, \d+ tokens/s, (\d+ h )?(\d+ min )?(\d+ s )?left"
    assert all(re.fullmatch(form, line) for line in training)
    held_out = [line for line in lines if line not in training]
    assert len(held_out) == 3
    form = r"step \d+/120: held-out \d\.\d{3} bits a byte, perplexity \d+\.\d\d"
    assert all(re.fullmatch(form, x) for x in held_out)


def test_result_is_printed_as_json(run: Run) -> None:
    result = json.loads(run.outcome.out)
    last = _log(run.output)[-1]
    assert result["steps"] == STEPS
    assert round(result["held_out_loss"], 4) == last["held_out_loss"]
    assert round(result["held_out_perplexity"], 3) == last["held_out_perplexity"]
    for key in ("model", "hf_packed", "packed"):
        assert Path(result[key]).exists()


def test_held_out_perplexity_is_that_of_transformers(run: Run) -> None:
    ids = _held_out_windows(run.output)
    # Not a multiple of the batch: the last one must not weigh more than its windows.
    assert len(ids) % 4
    expected = math.exp(
        stock.held_out_loss(stock.logits(stock.load(run.output / "model"), ids), ids)
    )
    told = json.loads(run.outcome.out)["held_out_perplexity"]
    # float32 means are good for 1e-6; a rounding tie changes one token's loss by some 1e-3,
    # which is 1e-5 of the mean of more than 500.
    assert told == pytest.approx(expected, rel=1e-4)


def test_held_out_bits_per_byte_are_those_of_all_tokens_that_cost_something(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.output / "model")
    tokens = sum(len(tokenizer(f, add_special_tokens=False).input_ids) + 1 for f in HELD_OUT)
    size = sum(len(fable.encode()) for fable in HELD_OUT)
    result, last = json.loads(run.outcome.out), _log(run.output)[-1]
    expected = math.log2(result["held_out_perplexity"]) * tokens / size
    assert result["held_out_bits_per_byte"] == pytest.approx(expected, rel=1e-12)
    assert last["held_out_bits_per_byte"] == round(expected, 4)
    assert list(result).index("held_out_bits_per_byte") < list(result).index("held_out_loss")


def test_health_of_every_layer_is_that_of_its_codes_and_inputs(run: Run) -> None:
    lines = [json.loads(line) for line in (run.output / "health.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [40, 80, 120]
    names = list(load_file(run.output / "model" / "model.safetensors"))
    layers = {n.removesuffix(".weight") for n in names if n.endswith("_proj.weight")}
    assert all(set(line["layers"]) == layers for line in lines)
    weights = load_file(run.output / "model" / "model.safetensors")
    for name, told in lines[-1]["layers"].items():
        codes, scale = absmean_ternary(weights[f"{name}.weight"])
        shares = [float((codes == code).mean()) for code in (-1, 0, 1)]
        assert [told["minus"], told["zero"], told["plus"]] == pytest.approx(shares, abs=1e-3)
        assert told["scale"] == pytest.approx(float(scale), rel=1e-3)
    assert all(told["flips"] is None for told in lines[0]["layers"].values())
    flips = [told["flips"] for told in lines[1]["layers"].values()]
    assert 0 < max(flips) < 1
    down = lines[-1]["layers"]["model.layers.0.mlp.down_proj"]
    q = lines[-1]["layers"]["model.layers.0.self_attn.q_proj"]
    # Squared ReLU leaves half of the inputs of down at most; a norm's outputs are all there.
    assert down["density"] < 0.6 < q["density"]
    assert q["absmax"] == lines[-1]["layers"]["model.layers.0.self_attn.k_proj"]["absmax"] > 1


def test_tensorboard_has_the_curves(run: Run) -> None:
    scalars = _scalars(run.output)
    log = _log(run.output)
    # The log has four digits, TensorBoard a float32.
    losses = {int(e["step"]): e["loss"] for e in log if "loss" in e}
    assert scalars["train/loss"] == pytest.approx(losses, abs=1.5e-4)
    assert list(scalars["train/learning_rate"]) == list(range(5, STEPS + 1, 5))
    assert list(scalars["eval/loss"]) == [40, 80, 120]


def _scalars(output: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    scalars = {}
    for tag in ("train/loss", "train/learning_rate", "eval/loss"):
        values = [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]
        scalars[tag] = dict(values)
        assert len(scalars[tag]) == len(values), f"{tag} has two values for a step"
    return scalars


def test_run_folder_holds_what_the_manual_says(run: Run) -> None:
    names = {path.name for path in run.output.iterdir()}
    assert names == {
        "health.jsonl",
        "recipe.json",
        "corpus",
        "checkpoint-117",
        "checkpoint-120",
        "tensorboard",
        "log.jsonl",
        "model",
        "packed",
    }


def test_the_folder_of_a_run_is_a_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path))
    asked = ("generate", "A Fox", "--max-tokens", "8", "--temperature", "0", "--model")
    packed = command(*asked, str(run.output.parent / "fables.trilobit"))
    folder = command(*asked, str(run.output))
    assert (folder.code, folder.out) == (0, packed.out)


def test_a_finished_run_only_tells_its_result_again(run: Run) -> None:
    before, curve = _weights(run.output), _curve(run.output)
    again = train(run.recipe, run.output, "--json")
    assert again.code == 0
    first = json.loads(run.outcome.out)
    assert json.loads(again.out) == {**first, "packed": None}
    assert _weights(run.output) == before
    assert _curve(run.output) == curve


# ---- the same again -----------------------------------------------------------------------------


def test_same_seed_gives_the_same_model_bit_for_bit(run: Run, tmp_path: Path) -> None:
    assert train(run.recipe, tmp_path / "again").code == 0
    assert _curve(tmp_path / "again") == _curve(run.output)
    assert _weights(tmp_path / "again") == _weights(run.output)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    short = RECIPE.replace("steps = 120", "steps = 20")
    outputs = []
    for seed in (0, 1):
        recipe = write_recipe(tmp_path, short.replace("log_every", f"seed = {seed}\nlog_every"))
        outputs.append(tmp_path / f"seed-{seed}")
        assert train(recipe, outputs[-1]).code == 0
    assert _weights(outputs[0]) != _weights(outputs[1])


# ---- stopped, and gone on -----------------------------------------------------------------------


# At a moment of its own, whoever is faster: a signal to a run, when Python tells of an event.
_SIGNAL_WHEN = """
import os, sys
left = [{number}]
def when(event, args):
    if {when} and left:
        os.kill(os.getpid(), left.pop())
sys.addaudithook(when)
"""


def _signalled(run: Run, output: Path, number: signal.Signals, when: str) -> subprocess.Popen[str]:
    before = f"{HEAR_CTRL_C}{_SIGNAL_WHEN.format(number=int(number), when=when)}"
    command = [sys.executable, "-c", before + AFTER, *arguments(run.recipe, output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _gets_its_name(checkpoint: str) -> str:
    return f"event == 'os.rename' and str(args[1]).endswith({checkpoint!r})"


def test_kill_9_loses_nothing_that_a_checkpoint_holds(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    killed = _signalled(run, output, signal.SIGKILL, _gets_its_name("checkpoint-26"))
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert _checkpoints(output) == {"checkpoint-13"}
    assert not (output / "model").exists()
    time.sleep(1)  # tensorboard orders its files by the second in their names
    assert train(run.recipe, output).code == 0
    assert _curve(output) == _curve(run.output)
    assert _weights(output) == _weights(run.output)
    assert _scalars(output)["train/loss"] == _scalars(run.output)["train/loss"]


def test_ctrl_c_keeps_the_last_step_and_exits_with_130(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "interrupted"
    # While the log of step 15 is written.
    when = "event == 'open' and str(args[0]).endswith('log.jsonl') and args[1] == 'a'"
    when += " and os.path.exists(args[0]) and 'step\": 10' in open(args[0]).read()"
    stopped = _signalled(run, output, signal.SIGINT, when)
    out, err = stopped.communicate()
    assert stopped.returncode == 130, err
    assert "Traceback" not in err
    # Of the next step, not of the last multiple of 13.
    assert _checkpoints(output) == {"checkpoint-13", "checkpoint-16"}
    assert err.splitlines()[-1] == (
        f"interrupted; run the same command again to go on from {output / 'checkpoint-16'}"
    )
    assert out == ""
    assert not (output / "model").exists()
    assert train(run.recipe, output).code == 0
    assert _curve(output) == _curve(run.output)
    assert _weights(output) == _weights(run.output)


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let the system refuse to write a file beyond a size, as a full disk does.

    Only around the command: pytest's own output may go to a file that is larger.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full_keeps_the_checkpoint_before(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "full"
    assert train(run.recipe, output, "--max-steps", "20").code == 0
    before = _checkpoints(output)
    optimizer = (output / "checkpoint-20" / "optimizer.pt").stat().st_size
    model = (output / "checkpoint-20" / "model.safetensors").stat().st_size
    for limit in (model - 4096, optimizer - 4096):
        with largest_file(limit):
            outcome = train(run.recipe, output)
        error = one_error(outcome)
        assert error.startswith(f"{output / 'checkpoint-26'}: cannot write the checkpoint (")
        assert error.endswith(
            "; free space, or choose another --output; the same command goes on from the last "
            "checkpoint, if there is one"
        )
        assert _checkpoints(output) == before
        assert not list(output.rglob(".*.part"))
    assert train(run.recipe, output).code == 0
    assert _log(output)[-1]["step"] == STEPS


def test_disk_full_before_the_first_step_leaves_no_half_corpus(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path), tmp_path / "full"
    with largest_file(2000):  # the recipe fits, the tokens do not
        outcome = train(recipe, output)
    error = one_error(outcome)
    assert error.startswith(f"{output / 'corpus'}: cannot be written (")
    assert {path.name for path in output.iterdir()} == {"recipe.json"}


def test_a_flipped_byte_in_any_file_of_a_checkpoint_is_named(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "damaged"
    assert train(run.recipe, output, "--max-steps", "20").code == 0
    last = output / "checkpoint-20"
    files = sorted(last.iterdir())
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "running_loss.json"} < {
        path.name for path in files
    }
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (flipped, whole[:middle], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            error = one_error(train(run.recipe, output))
            assert error.startswith(f"{last}: is damaged (")
            assert error.endswith("; delete it to go on from checkpoint-13")
            path.write_bytes(whole)
    shutil.rmtree(last)
    path = output / "checkpoint-13" / "scheduler.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert one_error(train(run.recipe, output)).endswith("; begin anew with --fresh")
    assert train(run.recipe, output, "--max-steps", "14", "--fresh").code == 0


def test_a_checkpoint_in_shards_is_gone_on_from(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(run.recipe, output, "--max-steps", "13").code == 0
    shutil.copytree(output, tmp_path / "whole")
    last = output / "checkpoint-13"
    weights = load_file(last / "model.safetensors")
    (last / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, last / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: s for s, part in shards.items() for n in part}}
    (last / "model.safetensors.index.json").write_text(json.dumps(index))
    (last / "sums.json").unlink()
    write_sums(last)
    for folder in (output, tmp_path / "whole"):
        assert train(run.recipe, folder, "--max-steps", "18").code == 0
    assert _weights(output) == _weights(tmp_path / "whole")


def test_two_runs_in_one_folder_are_refused(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = _signalled(run, output, signal.SIGSTOP, _gets_its_name("checkpoint-13"))
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_status == signal.SIGSTOP
    try:
        errors = {one_error(train(run.recipe, output, *more)) for more in ((), ("--fresh",))}
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate()
    assert errors == {
        f"{output}: another run is at work there; wait for its end, or choose another --output"
    }
    assert process.returncode == 0
    assert _weights(output) == _weights(run.output)
    assert not (output / "lock").exists()


def test_fewer_steps_than_a_checkpoint_has_are_refused(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(run.recipe, output, "--max-steps", "20").code == 0
    before = _weights(output)
    error = one_error(train(run.recipe, output, "--max-steps", "19"))
    assert error.startswith(f"{output / 'checkpoint-20'}: is beyond the 19 steps asked for; ")
    assert _weights(output) == before


def test_a_diverged_run_is_no_success(tmp_path: Path) -> None:
    # No line of the log is written on the way, and the numbers stay finite.
    wild = RECIPE.replace("log_every = 5", "log_every = 1000").replace("[3e-2, 2e-2]", "[50, 50]")
    recipe = write_recipe(tmp_path, wild.replace("[1e-2, 0.0]", "[50, 50]"))
    output = tmp_path / "run"
    error = one_error(train(recipe, output, "--max-steps", "12"))
    assert re.match(r"(the run diverged: its held-out loss is|the loss is (nan|inf) at)", error)
    assert not (output / "model").exists()
    assert not (output / "packed").exists()
    # Who asks for its model is told the same, until it is begun anew.
    asked = one_error(command("generate", "A Fox", "--model", str(output)))
    assert asked == f"{output}: a training run that came to nothing: {error}"
    assert " at step " in asked
    claim(load_recipe(recipe), output, fresh=True)
    assert not (output / "failed.txt").exists()


def test_a_run_that_ends_in_its_warm_up_says_so(tmp_path: Path) -> None:
    wild = RECIPE.replace("\nwarmup_steps = 10", "\nwarmup_steps = 12")
    recipe = write_recipe(tmp_path, wild.replace("[3e-2, 2e-2]", "[50, 50]"))
    outcome = train(recipe, tmp_path / "run", "--max-steps", "12")
    assert "warning: schedule.warmup_steps is 12: the run ends before" in outcome.err
    error = one_error(outcome)
    assert re.match(r"(the run ended in its warm-up, and its held|the loss is (nan|inf) at)", error)


def test_a_checkpoint_of_a_loss_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    wild = RECIPE.replace("log_every = 5", "log_every = 1000").replace("[3e-2, 2e-2]", "[1e30, 1]")
    recipe = write_recipe(tmp_path, wild.replace("\nwarmup_steps = 10", ""))
    error = one_error(train(recipe, tmp_path / "run"))
    assert re.match(r"the loss is (nan|inf) at step 13; lower the learning rates ", error)
    assert not _checkpoints(tmp_path / "run")


@pytest.mark.parametrize("name", ["train.npy", "held_out.npy", "tokenizer.json", "sums.json"])
def test_damaged_tokens_are_made_again_or_the_loss_is_told(
    run: Run, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "run"
    assert train(run.recipe, output, "--max-steps", "13").code == 0
    path = output / "corpus" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    outcome = train(run.recipe, output, "--max-steps", "14")
    if name == "sums.json":  # what they were cannot be known any more
        error = one_error(outcome)
        assert error.startswith(f"{output / 'corpus'}: the checkpoints beside it were trained on ")
        return
    assert outcome.code == 0, outcome.err
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"a": 1}\n[]\n3\n"x"\n', b"[" * 9999])
def test_a_damaged_log_does_not_stop_a_run(run: Run, tmp_path: Path, content: bytes) -> None:
    output = tmp_path / "run"
    assert train(run.recipe, output, "--max-steps", "13").code == 0
    log = output / "log.jsonl"
    log.write_bytes(content + b"\n" + log.read_bytes())
    assert train(run.recipe, output, "--max-steps", "14").code == 0
    assert [e["step"] for e in _log(output) if "loss" in e] == [5, 10]


def test_disk_full_at_the_first_checkpoint_is_one_line(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "full"
    tokenizer = (run.output / "corpus" / "tokenizer.json").stat().st_size
    before = (run.output / "corpus" / "train.npy").stat().st_size
    assert before < tokenizer
    assert train(run.recipe, output, "--max-steps", "11").code == 0  # the tokens are there
    shutil.rmtree(output / "checkpoint-11")
    real = PreTrainedTokenizerFast.save_pretrained

    def full(self: Any, *args: Any, **rest: Any) -> Any:
        with largest_file(tokenizer - 4096):
            return real(self, *args, **rest)

    with mock.patch.object(PreTrainedTokenizerFast, "save_pretrained", full):
        error = one_error(train(run.recipe, output))
    assert error.startswith(f"{output / 'checkpoint-13'}: cannot write the checkpoint (")
    assert "free space, or choose another --output" in error
    assert not _checkpoints(output)


def test_a_file_of_its_own_is_what_is_held_out(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, RECIPE.replace("held_out_every", 'validation = "v.txt"\nheld_out_every')
    )
    (tmp_path / "v.txt").write_text("\n\n".join(HELD_OUT))
    assert train(recipe, tmp_path / "run", "--max-steps", "11").code == 0
    tokens = {n: np.load(tmp_path / "run" / "corpus" / f"{n}.npy") for n in ("train", "held_out")}
    assert tokens["train"].tolist().count(0) == len(FABLES)
    assert tokens["held_out"].tolist().count(0) == 1  # one block


def test_an_empty_file_of_its_own_is_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, RECIPE.replace("held_out_every", 'validation = "v.txt"\nheld_out_every')
    )
    (tmp_path / "v.txt").write_text("\n")
    error = one_error(train(recipe, tmp_path / "run"))
    assert error.startswith(f"{tmp_path / 'v.txt'}: no text in it; data.validation is what is held")


def test_a_line_comes_before_pytorch_is_loaded(run: Run, tmp_path: Path) -> None:
    # As a timing would say it on a quiet machine: the seconds before are those of the imports.
    code = (
        "import sys\n"
        "class Err:\n"
        "    def write(self, text):\n"
        "        print('torch' in sys.modules, text.strip(), flush=True); sys.exit(0)\n"
        "    def flush(self): pass\n"
        f"sys.argv = ['trilobit', 'train', {str(run.recipe)!r}, '--output', {str(tmp_path)!r}]\n"
        "from trilobit.cli import main\n"
        "sys.stderr = Err()\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == f"False fables: 120 steps in {tmp_path}"


def test_time_left_counts_evaluations() -> None:
    state = SimpleNamespace(max_steps=100, global_step=30)
    assert _evaluations_left(state, 40) == 3  # 40, 80, and behind the last step
    assert _evaluations_left(state, 50) == 2
    state.global_step = 100
    assert _evaluations_left(state, 50) == 0


def test_more_than_65536_tokens_are_32_bits_wide(tmp_path: Path) -> None:
    ids = [1, 70_000]
    for vocabulary, dtype in ((65_536, np.uint16), (65_537, np.uint32)):
        assert token_dtype(vocabulary) == dtype
    path = tmp_path / "tokens.npy"
    with TokenFile(path, np.dtype(np.uint32), bos_id=70_001, eos_id=None) as file:
        file.append(ids)
    assert np.load(path).tolist() == [70_001, *ids]


def test_another_recipe_may_not_go_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    short = RECIPE.replace("steps = 120", "steps = 20")
    assert train(write_recipe(tmp_path, short), output).code == 0
    wider = write_recipe(
        tmp_path, short.replace("intermediate_size = 64", "intermediate_size = 96")
    )
    assert one_error(train(wider, output)) == (
        f"{output}: holds checkpoints of another recipe (it differs in model); "
        "choose another --output, or --fresh to delete them"
    )
    assert _checkpoints(output) == {"checkpoint-13", "checkpoint-20"}
    assert train(wider, output, "--fresh").code == 0
    assert [entry["step"] for entry in _log(output) if "loss" in entry] == [5, 10, 15, 20]
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["intermediate_size"] == 96


def test_the_text_may_move_but_not_change(tmp_path: Path) -> None:
    output, recipe = tmp_path / "run", write_recipe(tmp_path)
    assert train(recipe, output, "--max-steps", "13").code == 0
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "fables.jsonl").rename(moved)
    assert train(recipe, output, "--data", str(moved), "--max-steps", "26").code == 0
    moved.write_text(moved.read_text().replace("Crow", "Raven"))
    error = one_error(train(recipe, output, "--data", str(moved), "--max-steps", "39"))
    assert error.startswith(f"{output}: its checkpoints were trained on other text than {moved} ")


def test_a_run_may_be_prolonged(tmp_path: Path) -> None:
    output, recipe = tmp_path / "run", write_recipe(tmp_path)
    assert train(recipe, output, "--max-steps", "13").code == 0
    finer = write_recipe(tmp_path, RECIPE.replace("log_every = 5", "log_every = 4"))
    outcome = train(finer, output, "--max-steps", "26", "--json")
    assert json.loads(outcome.out)["steps"] == 26
    steps = [entry["step"] for entry in _log(output) if "loss" in entry]
    assert steps == [5, 10, 16, 20, 24]


# ---- kinds of runs ------------------------------------------------------------------------------


def _losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in _log(output) if "loss" in entry]


def test_yaml_trains_as_toml_does(tmp_path: Path) -> None:
    toml = write_recipe(tmp_path)
    import yaml

    values = load_recipe(toml).as_dict()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    for recipe, name in ((toml, "toml"), (path, "yaml")):
        assert train(recipe, tmp_path / name, "--max-steps", "15").code == 0
    assert _curve(tmp_path / "toml") == _curve(tmp_path / "yaml")


@pytest.mark.parametrize("weights", ["float", "sign"])
def test_other_weights_learn_too(tmp_path: Path, weights: str) -> None:
    output = tmp_path / "run"
    outcome = train(
        write_recipe(tmp_path), output, "--max-steps", "40", "--weights", weights, "--json"
    )
    assert outcome.code == 0
    losses = _losses(output)
    assert losses[-1] < losses[0] - 1
    result = json.loads(outcome.out)
    assert (result["hf_packed"] is None) == (weights == "float")


def test_bfloat16_products_learn_as_float32_ones(run: Run, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 'precision = "bf16"\n' + RECIPE)
    output = tmp_path / "run"
    assert train(recipe, output, "--max-steps", "40").code == 0
    losses = _losses(output)
    # Eight bits of significand instead of 24: another model, but one that learns alike.
    assert losses != _losses(run.output)[: len(losses)]
    assert losses[-1] < losses[0] - 1
    weights = torch.load(output / "checkpoint-40" / "optimizer.pt", weights_only=True)["state"]
    assert all(state["exp_avg"].dtype == torch.float32 for state in weights.values())


def _first_losses(tmp_path: Path, name: str, text: str) -> list[float]:
    folder = tmp_path / name
    folder.mkdir()
    assert train(write_recipe(folder, text), folder / "run", "--max-steps", "12").code == 0
    return _losses(folder / "run")


def test_accumulated_parts_are_the_batch(tmp_path: Path) -> None:
    one = RECIPE.replace("log_every = 5", "log_every = 3")
    parts = one.replace("batch_windows = 4", "batch_windows = 4\naccumulate_steps = 4")
    whole, accumulated = _first_losses(tmp_path, "1", one), _first_losses(tmp_path, "4", parts)
    # The gradients add up in another order, and Adam's first steps blow up the last bit of those
    # near 0: some 1e-4 after a dozen steps.
    assert accumulated == pytest.approx(whole, abs=2e-3)
    assert whole[-1] < whole[0] - 0.5


def _together(*words: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trilobit", *words],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_two_processes_share_the_batch(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "two"
    more = ("--max-steps", "15", "--json", "--processes", "2")
    process = _together(*arguments(run.recipe, output, *more))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err.startswith("2 processes; here number 0 to 1\nfables: 15 steps in")
    assert "Warning" not in err
    assert err.count("reading the text") == err.count("step 15/15: loss") == 1
    assert json.loads(out)["steps"] == 15
    # One tells, and the losses are those of the whole batch: see accumulated parts.
    alone = tmp_path / "alone"
    assert train(run.recipe, alone, "--max-steps", "15").code == 0
    assert _losses(output) == pytest.approx(_losses(alone), abs=2e-3)
    assert _checkpoints(output) == {"checkpoint-13", "checkpoint-15"}
    assert {p.name for p in (output / "checkpoint-15").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


# ---- input that cannot be used ------------------------------------------------------------------


def test_a_wrong_recipe_is_one_line_before_anything_is_written(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("window", "windows"))
    error = one_error(train(recipe, tmp_path / "run"))
    assert error.startswith(f"{recipe}: unknown key 'data.windows'; known here: files, vali")
    assert not (tmp_path / "run").exists()


def test_two_nodes_train_as_one_machine(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "two"
    with kept_port() as port:
        nodes = ("--max-steps", "15", "--nodes", "2", "--main", f"localhost:{port}")
        words = arguments(run.recipe, output, *nodes, "--node-rank")
        processes = [_together(*words, rank) for rank in "01"]
        (_, first), (_, second) = (process.communicate() for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert "step 15/15: held-out" in first
    assert second == "2 processes; here number 1\n"
    alone = tmp_path / "alone"
    assert train(run.recipe, alone, "--max-steps", "15").code == 0
    assert _losses(output) == pytest.approx(_losses(alone), abs=2e-3)


def test_one_of_several_processes_that_fails_ends_all_with_one_line(
    run: Run, tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "no.jsonl")
    more = ("--data", nowhere, "--processes", "2")
    process = _together(*arguments(run.recipe, tmp_path / "run", *more))
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith(f"error: {nowhere}: cannot read the training text")
    assert err.count("error:") == 1
    assert "Traceback" not in err


def _endless(folder: Path) -> Path:
    return write_recipe(folder, RECIPE.replace("steps = 120", "steps = 1_000_000"))


def test_a_process_that_is_killed_ends_all_with_one_line(tmp_path: Path) -> None:
    words = arguments(_endless(tmp_path), tmp_path / "run", "--processes", "2")
    with _together(*words) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("step "))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        err = process.stderr.read()
    assert process.returncode == 2
    assert err.splitlines()[-1] == (
        "error: process 1 was ended by signal 9; run the same command again to go on from the last "
        "checkpoint"
    )
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_ctrl_c_ends_all_processes_quietly(tmp_path: Path) -> None:
    words = arguments(_endless(tmp_path), tmp_path / "run", "--processes", "2")
    ready = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell may have it ignored
    with _together(*words, start_new_session=True, preexec_fn=ready) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("step "))
        os.killpg(process.pid, signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", "2"), "several nodes must meet; give --main HOST:PORT, a free port of node 0"),
        (("--node-rank", "1"), "--node-rank is 1; of 1 nodes the last is 0"),
        (("--nodes", "2", "--main", "here"), "--main is 'here'; give HOST:PORT"),
        (("--nodes", "2", "--main", "a:70000"), "--main is 'a:70000'; give HOST:PORT"),
    ],
)
def test_nodes_that_cannot_meet_are_one_line(
    run: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    assert one_error(train(run.recipe, tmp_path / "run", *words)).startswith(message)


def test_a_batch_that_cannot_be_shared_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    error = one_error(train(write_recipe(tmp_path), tmp_path / "run"))
    assert error.startswith("schedule.batch_windows 4 cannot be shared among 3 processes or GPUs ")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    wild = RECIPE.replace("[3e-2, 2e-2]", "[1e30, 1e30]").replace("\nwarmup_steps = 10", "")
    error = one_error(train(write_recipe(tmp_path, wild), tmp_path / "run"))
    assert re.match(r"the loss is (nan|inf) at step \d+; lower the learning rates ", error)


@pytest.mark.parametrize("package", ["torch", "tensorboard", "pyarrow"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [*sys.modules]:
        if name.startswith(("trilobit.train.", "trilobit.nn", "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    error = one_error(train(write_recipe(tmp_path), tmp_path / "run"))
    assert error == f"training needs the package '{package}'; pip install 'trilobit[train]'"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("no/model.trilobit", "make its folder first"),
        ("run.toml/x", "another place"),
        (".", "a dir"),
        ("fables.jsonl", "exists, and is no packed model; choose another name"),
    ],
)
def test_a_packed_file_that_cannot_be_written_is_refused_at_once(
    place: str, reason: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "run.toml").touch()
    before = {path.name for path in tmp_path.iterdir()}
    outcome = train(recipe, tmp_path / "run", "--packed", str(tmp_path / place))
    error = one_error(outcome)
    assert str(tmp_path / place) in error
    assert reason in error
    assert {path.name for path in tmp_path.iterdir()} == before


def test_packed_float_weights_are_refused_at_once(tmp_path: Path) -> None:
    outcome = train(
        *(write_recipe(tmp_path), tmp_path / "run", "--weights", "float", "--packed", "x")
    )
    assert one_error(outcome) == "--packed needs ternary or sign weights, and these are float"
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = one_error(train(write_recipe(tmp_path), tmp_path / "file" / "run"))
    reason = "cannot write there (Not a directory); choose another --output"
    assert error == f"{tmp_path / 'file' / 'run'}: {reason}"


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free space, or choose"),
        (PermissionError(errno.EACCES, "Permission denied"), "allow writing there, or choose"),
        (OSError(errno.EROFS, "Read-only file system"), "choose"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "allow writing there, or"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "free space, or"),
        (RuntimeError("unexpected pos 64 vs 0"), "free space, or choose"),  # as torch.save says it
    ],
)
def test_the_remedy_is_that_of_the_cause(tmp_path: Path, cause: Exception, remedy: str) -> None:
    def write(folder: Path) -> None:
        raise cause

    with pytest.raises(OutputError) as error:
        fill(tmp_path / "model", write)
    why = "probably no space left" if type(cause) is RuntimeError else cause
    assert str(error.value).startswith(f"{tmp_path / 'model'}: cannot be written ({why}); {remedy}")
    assert str(error.value).endswith(
        "another --output; the same command goes on from the last checkpoint, if there is one"
    )


# ---- on this machine ----------------------------------------------------------------------------


def test_a_model_beyond_the_memory_is_refused_before_it_is_built(tmp_path: Path) -> None:
    large = RECIPE.replace("hidden_size = 32", "hidden_size = 131072")
    large = large.replace("num_hidden_layers = 2", "num_hidden_layers = 1024")
    large = large.replace("num_attention_heads = 4", "num_attention_heads = 256")
    error = one_error(train(write_recipe(tmp_path, large), tmp_path / "run"))
    assert error.startswith("the run needs at least ")
    wide = RECIPE.replace("batch_windows = 4", "batch_windows = 1048576")
    for key in ("max_position_embeddings", "\nwindow"):
        wide = wide.replace(f"{key} = {WINDOW}", f"{key} = 16384")
    error = one_error(train(write_recipe(tmp_path, wide), tmp_path / "run"))
    assert error.startswith("the run needs at least ")
    assert not (tmp_path / "run").exists()


def test_threads_follow_from_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    assert recipe.model is not None
    with (
        mock.patch("trilobit.train.launch.available_cores", return_value=8),
        mock.patch.dict(os.environ, {"OMP_NUM_THREADS": ""}),
    ):
        assert threads_worth(recipe, recipe.model.config(320)) == 1
        wide = dataclasses.replace(recipe.model, hidden_size=1024, intermediate_size=4096)
        schedule = dataclasses.replace(recipe.schedule, batch_windows=16)
        large = dataclasses.replace(recipe, model=wide, schedule=schedule)
        assert threads_worth(large, wide.config(320)) == 8


def test_more_threads_than_cores_are_warned_of(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("fables.jsonl", "gone.jsonl"))
    outcome = train(recipe, tmp_path / "run", "--threads", "999")
    assert re.search(
        r"^warning: 999 threads on \d+ cores? wait for each other; ", outcome.err, re.M
    )


def test_one_process_of_accelerate_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as `accelerate launch --cpu` sets it
    recipe = write_recipe(tmp_path)
    outcome = train(recipe, tmp_path / "run", "--max-steps", "11")
    assert "1 thread; one process (accelerate launch --cpu starts no more; --proc" in outcome.err


class _Foreign(Trainer):
    """A trainer with a loss of its own, as trl's have."""

    def compute_loss(self, model: Any, inputs: Any, *more: Any, **rest: Any) -> Any:
        outputs = model(**inputs)
        loss = 2 * outputs.loss
        return (loss, outputs) if rest.get("return_outputs") else loss


class _Ours(RunMixin, _Foreign):
    pass


def test_the_mixin_gives_any_trainer_our_schedule_and_checkpoints(run: Run, tmp_path: Path) -> None:
    recipe = load_recipe(run.recipe)
    recipe = dataclasses.replace(
        recipe, schedule=dataclasses.replace(recipe.schedule, steps=13), log_every=13
    )
    torch.manual_seed(0)
    model = build_model(recipe, 320, bos=0, eos=1)
    tokens = np.load(run.output / "corpus" / "train.npy")
    trainer = _Ours(
        recipe=recipe,
        output=tmp_path,
        args=training_arguments(recipe, tmp_path),
        model=model,
        data_collator=default_data_collator,
        train_dataset=TrainingWindows(Passes(tokens, window=WINDOW, seeds=(0,)), count=52),
        eval_dataset=HeldOutWindows(tokens, window=WINDOW, bos_id=0),
    )
    trainer.train()
    check(tmp_path / "checkpoint-13", steps=13)
    assert trainer.state.log_history[0]["loss"] > 1.5 * math.log(320)  # twice the usual
    assert trainer.state.log_history[0]["learning_rate"] == learning_rate(recipe.schedule, 13 - 1)
