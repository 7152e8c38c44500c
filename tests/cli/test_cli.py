"""The real program, run as a user runs it: what it prints, how it fails, what it leaves behind."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS_CONTEXT, TEXT, tiny_config
from program import (
    BROKEN_PIPE,
    HEAR_CTRL_C,
    HUNG_UP,
    INTERRUPTED,
    TERMINATED,
    TIMEOUT_S,
    UNNAMED,
    disk_full_at,
    error_of,
    fail,
    files_in,
    first_byte,
    part_appears,
    result,
    signalled,
    succeed,
    trilobit,
    trilobit_after,
)

from trilobit import LLM, SamplingParams, _native
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.conversion import convert
from trilobit.formats.dtypes import DTYPES
from trilobit.formats.hf.config import to_hf
from trilobit.formats.packed.form import declare, metadata
from trilobit.formats.text_files import TextFiles
from trilobit.model import tensor_names
from trilobit.model.shapes import shape
from trilobit.synth import synth

PROMPT = "Once upon a time"


def write_sparse(path: Path, declared: list[Any], metadata: dict[str, str]) -> None:
    """A safetensors file of any size, all its data holes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, dims in declared:
        begin, end = end, end + DTYPES[dtype].itemsize * math.prod(dims)
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def loaded_modules(python: str, *args: object) -> set[str]:
    """Modules that a command has loaded when it ends."""
    report = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    return set(trilobit_after(report + python, *args).stderr.split())


HEAVY = {"torch", "transformers", "accelerate"}


@pytest.fixture(scope="module")
def without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model that knows token ids only."""
    directory = tmp_path_factory.mktemp("ids")
    synth(tiny_config(), directory / "checkpoint", seed=1)
    convert(directory / "checkpoint", directory / "ids.trilobit")
    return directory / "ids.trilobit"


@pytest.fixture(scope="module")
def endless_text(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A packed model that was not made to chat, and writes until nobody reads it any more."""
    directory = tmp_path_factory.mktemp("endless")
    config = tiny_config(eos_token_ids=(), max_position_embeddings=ENDLESS_CONTEXT)
    synth(config, directory / "checkpoint", seed=1)
    (directory / "checkpoint/tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    convert(directory / "checkpoint", directory / "endless.trilobit")
    return directory / "endless.trilobit"


# ---- the program ------------------------------------------------------------------------------


def test_help_names_every_command_and_loads_none() -> None:
    output = succeed("--help")
    for name in ("run", "generate", "chat", "info", "convert", "verify", "synth", "train", "bench"):
        assert re.search(rf"^  {name} ", output, re.MULTILINE)
    modules = loaded_modules("", "--help")
    assert "trilobit.cli" in modules
    assert not modules & (HEAVY | {"trilobit.cli.run", "trilobit.cli.train", "numpy"})


def test_no_command_is_a_call_for_help() -> None:
    assert succeed() == succeed("--help")


def test_importing_and_generating_load_no_torch(model_file: Path) -> None:
    modules = loaded_modules(
        "", "generate", PROMPT, "--model", model_file, "--max-tokens", 2, "--json"
    )
    assert "trilobit.llm" in modules
    assert not modules & HEAVY


def test_version_is_the_packages() -> None:
    from trilobit import __version__

    assert succeed("--version").split()[-1] == __version__


# ---- run --------------------------------------------------------------------------------------

FIGURES = re.compile(
    r"(\d+) tokens? \| prefill \d+ tokens/s \| decode \d+ tokens/s \| threads (\d+) \| "
    r"ISA (\w+) \| peak memory \d+ MB \| seed (\d+)\n"
)


def test_run_tells_the_text_on_stdout_and_one_line_of_figures_on_stderr(model_file: Path) -> None:
    done = trilobit("run", model_file, "--seed", 7, "--max-tokens", 20, "--threads", 1)
    llm = LLM(model_file, threads=1)
    params = SamplingParams(max_tokens=20, seed=7, temperature=0.7, min_p=0.05)
    expected = llm.generate(PROMPT, params)
    assert done.returncode == 0
    assert done.stdout == f"{PROMPT}{expected.text}\n"
    figures = FIGURES.fullmatch(done.stderr)
    assert figures is not None
    assert figures.groups() == (str(len(expected.token_ids)), "1", _native.isa(), "7")


def test_run_begins_with_the_given_prompt(model_file: Path) -> None:
    done = trilobit("run", model_file, "The big dog", "--max-tokens", 1)
    assert done.stdout.startswith("The big dog")


def test_a_drawn_seed_is_told_and_gives_the_same_text_again(model_file: Path) -> None:
    first = trilobit("run", model_file, "--max-tokens", 20)
    figures = FIGURES.fullmatch(first.stderr)
    assert figures is not None
    again = trilobit("run", model_file, "--max-tokens", 20, "--seed", figures[4])
    assert again.stdout == first.stdout


# ---- generate ---------------------------------------------------------------------------------


def test_json_tells_text_tokens_and_rates(model_file: Path) -> None:
    options = ("--model", model_file, "--max-tokens", 9, "--seed", 3, "--threads", 1)
    values = result("generate", PROMPT, *options)
    llm = LLM(model_file, threads=1)
    expected = llm.generate(PROMPT, SamplingParams(max_tokens=9, seed=3))
    assert values["text"] == expected.text
    assert values["token_ids"] == list(expected.token_ids)
    assert values["tokens"] == len(expected.token_ids)
    assert values["prompt_tokens"] == len(llm.encode(PROMPT))
    assert values["finish_reason"] == expected.finish_reason
    assert (values["seed"], values["threads"], values["isa"]) == (3, 1, _native.isa())
    assert values["cached_tokens"] == 0
    assert 0 <= values["accepted_tokens"] <= values["drafted_tokens"]
    for rate in ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_mb"):
        assert values[rate] > 0


def test_speculation_is_switched_off_and_changes_no_token(model_file: Path) -> None:
    again = ",".join(["20", "21", "22", "23"] * 8)
    options = ("--model", model_file, "--max-tokens", 40, "--temperature", 0, "--ignore-eos")
    options = (*options, "--logit-bias", "20:99")
    on = result("generate", "--token-ids", again, *options, "--speculation")
    off = result("generate", "--token-ids", again, *options, "--no-speculation")
    assert on["token_ids"] == off["token_ids"]
    assert on["accepted_tokens"] > 0
    assert off["drafted_tokens"] == off["accepted_tokens"] == 0
    small = result("generate", "--token-ids", again, *options)  # too small to be worth it
    assert small["drafted_tokens"] == 0


def test_plain_output_is_the_text_and_a_newline(model_file: Path) -> None:
    options = ("--model", model_file, "--max-tokens", 9, "--seed", 3)
    assert (
        succeed("generate", PROMPT, *options) == result("generate", PROMPT, *options)["text"] + "\n"
    )


def test_prompts_from_stdin_file_argument_and_ids_are_one(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n")
    options = ("--model", model_file, "--max-tokens", 9, "--temperature", 0)
    from_argument = result("generate", PROMPT, *options)
    ids = ",".join(map(str, LLM(model_file).encode(PROMPT)))
    for values in (
        result("generate", "-", *options, stdin=f"{PROMPT}\n".encode()),
        result("generate", "--file", tmp_path / "prompt.txt", *options),
        result("generate", "--token-ids", ids, *options),
    ):
        assert values["token_ids"] == from_argument["token_ids"]
        assert values["prompt_tokens"] == from_argument["prompt_tokens"]


def test_only_one_newline_is_taken_off_a_piped_prompt(model_file: Path) -> None:
    options = ("--model", model_file, "--max-tokens", 1)
    values = result("generate", "-", *options, stdin=b"a\n\n")
    assert values["prompt_tokens"] == len(LLM(model_file).encode("a\n"))


def test_a_model_without_tokenizer_reads_and_prints_ids(without_tokenizer: Path) -> None:
    options = ("--token-ids", "5 6,7", "--model", without_tokenizer, "--max-tokens", 4, "--seed", 1)
    output = succeed("generate", *options)
    expected = LLM(without_tokenizer).generate([5, 6, 7], SamplingParams(max_tokens=4, seed=1))
    assert output == ",".join(map(str, expected.token_ids)) + "\n"


def test_sampling_options_reach_the_sampler(model_file: Path) -> None:
    bias = ("--logit-bias", "42:1000", "--logit-bias", "1:-inf")
    values = result("generate", "a", "--model", model_file, "--max-tokens", 5, *bias)
    assert values["token_ids"] == [42] * 5
    text = LLM(model_file).tokenizer.decode([42])  # type: ignore[union-attr]
    values = result("generate", "a", "--model", model_file, *bias, "--stop", text * 3)
    assert (values["text"], values["finish_reason"]) == ("", "stop")
    every = "--temperature 0.5 --top-k 9 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.2 "
    every += "--frequency-penalty 0.1 --presence-penalty 0.2 --seed 5 --max-tokens 30 --ignore-eos"
    values = result("generate", PROMPT, "--model", model_file, *every.split())
    params = SamplingParams(
        temperature=0.5, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.2,
        frequency_penalty=0.1, presence_penalty=0.2, seed=5, max_tokens=30, ignore_eos=True,
    )  # fmt: skip
    assert values["token_ids"] == list(LLM(model_file).generate(PROMPT, params).token_ids)


def test_context_bounds_the_output(model_file: Path) -> None:
    ids = ("--token-ids", "3,4,5", "--ignore-eos")
    values = result("generate", *ids, "--model", model_file, "--context", 12)
    assert (values["tokens"], values["finish_reason"]) == (9, "length")


# ---- info -------------------------------------------------------------------------------------


def test_info_explains_a_packed_file(model_file: Path) -> None:
    config = tiny_config()
    values = result("info", model_file)
    assert values["kind"] == "packed"
    assert values["config"] == config.to_dict()
    assert values["parameters"] == config.parameters
    assert values["ternary_parameters"] == config.ternary_parameters
    assert values["size_bytes"] == model_file.stat().st_size
    parts = values["bytes_by_part"]
    assert sum(parts.values()) == model_file.stat().st_size
    assert parts["embedding"] == config.vocab_size * config.hidden_size * 2
    assert values["bits_per_ternary_weight"] == 8 * parts["ternary"] / config.ternary_parameters
    assert values["bits_per_weight"] == 8 * model_file.stat().st_size / config.parameters
    assert (values["context"], values["tokenizer"], values["chat_template"]) == (1100, True, False)
    # two layers, keys and values, two heads of 10 padded to 16, two bytes
    assert values["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2


def test_info_in_words_has_the_same_figures(model_file: Path) -> None:
    values = result("info", model_file)
    output = succeed("info", model_file)
    assert output.startswith(f"{model_file}: packed Trilobit model, ")
    assert f"{values['parameters']:,}" in output
    assert f"{values['bits_per_ternary_weight']:.2f} ternary" in output
    for part, count in values["bytes_by_part"].items():
        assert (count == 0) != bool(re.search(rf"^ +{part} +{count:,} ", output, re.MULTILINE))


def test_info_explains_a_checkpoint_and_how_to_pack_it(checkpoint: Path, tmp_path: Path) -> None:
    values = result("info", checkpoint)
    assert values["kind"] == "checkpoint"
    assert values["config"] == tiny_config().to_dict()
    assert values["bits_per_ternary_weight"] == 2
    assert (values["tokenizer"], values["chat_template"]) == (True, False)
    out = tmp_path / "packed file.trilobit"
    command = values["convert"].split()
    assert command == ["trilobit", "convert", str(checkpoint), "tiny.trilobit"]
    succeed(*command[1:3], out)
    assert result("info", out)["kind"] == "packed"


WEIGHTS = {
    "codes": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "masters": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "divided codes": {},
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_info_says_what_a_checkpoint_s_weights_are(weights: str, tmp_path: Path) -> None:
    synth(tiny_config(), tmp_path, form="bf16" if weights == "masters" else "packed")
    change_config(tmp_path, {"quant_method": "bitnet", **WEIGHTS[weights]})
    assert result("info", tmp_path)["weights"] == weights
    word = {"codes": "multiply", "masters": "made ternary", "divided codes": "divide"}[weights]
    assert word in succeed("info", tmp_path)


def change_config(folder: Path, quantization: dict[str, str], **values: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": quantization, **values}
    path.write_text(json.dumps(config))


def test_info_explains_a_checkpoint_that_does_not_run(tmp_path: Path) -> None:
    synth(tiny_config(), tmp_path)
    change_config(tmp_path, {"quant_method": "gptq"})
    values = result("info", tmp_path)
    assert values["not_run"] == "quant_method 'gptq' is not supported; supported: 'bitnet'"
    assert values["config"] == tiny_config().to_dict()
    assert "convert" not in values
    change_config(tmp_path, {"quant_method": "gptq"}, model_type="mamba")
    values = result("info", tmp_path)
    assert values["not_run"].startswith("model_type 'mamba' is not supported")
    assert values["tensors"] == 38
    output = succeed("info", tmp_path)
    assert "Trilobit does not run it: model_type 'mamba'" in output
    assert "Pack it" not in output


def test_info_explains_one_file_of_a_checkpoint(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    values = result("info", path)
    assert values["kind"] == "safetensors"
    assert values["convert"] == f"trilobit convert {checkpoint} tiny.trilobit"
    assert values["bytes_by_dtype"]["U8"] * 4 == tiny_config().ternary_parameters
    assert "Pack it: trilobit convert" in succeed("info", path)


@pytest.mark.parametrize("form", ["packed", "checkpoint"])
def test_info_reads_no_weights(form: str, tmp_path: Path) -> None:
    config, path = shape("30b"), tmp_path / "30b.trilobit"
    declared, said = declare(config, "BF16", TextFiles()), {}
    if form == "packed":
        said = metadata(config, TextFiles(), "nowhere")
    else:
        (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
        path = tmp_path / "model.safetensors"
    write_sparse(path, declared, said)
    path = path if form == "packed" else tmp_path
    report = (
        "import atexit; from trilobit.machine import peak_rss_mb\n"
        "atexit.register(lambda: print(peak_rss_mb()))"
    )
    output = trilobit_after(report, "info", path).stdout.splitlines()
    assert f"{config.parameters:,}" in "".join(output)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 7e9
    assert float(output[-1]) < 300  # MB: Python, numpy and the header


# ---- convert and synth ------------------------------------------------------------------------


def test_convert_gives_what_python_gives(
    checkpoint: Path, model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny.trilobit"
    values = result("convert", checkpoint, out)
    assert out.read_bytes() == model_file.read_bytes()
    assert values["path"] == str(out)
    assert values["size_bytes"] == out.stat().st_size
    assert values["parameters"] == tiny_config().parameters
    assert values["tokenizer"] is True


def test_convert_replaces_a_file_only_when_forced(
    checkpoint: Path, model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny.trilobit"
    out.write_text("precious")
    assert "--force" in fail("convert", checkpoint, out)
    assert out.read_text() == "precious"
    assert f"trilobit run {out}" in succeed("convert", checkpoint, out, "--force")
    assert out.read_bytes() == model_file.read_bytes()


def test_convert_writes_a_checkpoint_and_reads_it_again(model_file: Path, tmp_path: Path) -> None:
    for form in ("hf", "hf-bf16"):
        out, again = tmp_path / form, tmp_path / f"{form}.trilobit"
        values = result("convert", model_file, out, "--to", form)
        assert (values["form"], values["tokenizer"]) == (form, True)
        assert values["size_bytes"] == sum(path.stat().st_size for path in out.iterdir())
        assert f"trilobit run {again}" in succeed("convert", out, again)
        assert again.read_bytes() == model_file.read_bytes()
    assert f"from_pretrained('{tmp_path}/out')" in succeed("convert", model_file, tmp_path / "out")


def test_force_replaces_no_directory(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "with something in it" in fail("convert", model_file, tmp_path / "out", "--force")
    assert (tmp_path / "out" / "mine").exists()


def test_force_replaces_no_device(checkpoint: Path) -> None:
    assert "no plain file" in fail("convert", checkpoint, "/dev/null", "--force")
    assert Path("/dev/null").is_char_device()


def test_synth_convert_and_generate_are_one_way(tmp_path: Path) -> None:
    size = "--hidden-size 64 --intermediate-size 96 --num-hidden-layers 2 --vocab-size 300"
    size += " --num-attention-heads 4 --num-key-value-heads 2 --head-dim 16"
    size += " --max-position-embeddings 64"
    directory, out = tmp_path / "tiny", tmp_path / "tiny.trilobit"
    values = result("synth", directory, "--shape", "2b4t", "--form", "bf16", *size.split())
    assert values["size_bytes"] == (directory / "model.safetensors").stat().st_size
    assert "--token-ids 1,2,3" in succeed("convert", directory, out)
    config = result("info", out)["config"]
    assert (config["hidden_size"], config["head_dim"], config["vocab_size"]) == (64, 16, 300)
    ids = ("--token-ids", "1,2,3", "--ignore-eos", "--max-tokens", 100)
    assert result("generate", "--model", out, *ids)["tokens"] == 61  # the context is full


def test_synth_writes_a_packed_file_that_runs(tmp_path: Path) -> None:
    size = ("--shape", "125m", "--num-hidden-layers", 1, "--vocab-size", 300)
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    succeed("synth", first, *size, "--to-packed-file", "--seed", 1)
    succeed("synth", second, *size, "--to-packed-file", "--seed", 1)
    succeed("synth", other, *size, "--to-packed-file", "--seed", 2)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    ids = ("--token-ids", "1,2,3", "--ignore-eos", "--max-tokens", 3)
    assert result("generate", "--model", first, *ids)["tokens"] == 3
    assert "exists" in fail("synth", first, *size, "--to-packed-file")


# ---- bad input: one line, exit code 2 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"GGUF\x03\0\0\0" + bytes(64), "the tensors end at byte 24"),
        (pickle.dumps({"weights": [1.0] * 99}), "a pickled PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"Once upon a time there was a file that held a story.\n", "not a safetensors file"),
    ],
    ids=["empty", "gguf", "pickle", "lfs-pointer", "text"],
)
def test_foreign_file_is_named_and_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.trilobit"
    path.write_bytes(content)
    for line in (fail("generate", "a", "--model", path, "--json"), fail("info", path)):
        assert str(path) in line
        assert reason in line


def test_truncated_file_is_refused(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.trilobit"
    for size in (9, 2000, model_file.stat().st_size - 1):
        path.write_bytes(model_file.read_bytes()[:size])
        assert str(path) in fail("run", path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("run no/such/file", "no such file"),
        ("run no-such-model", "neither a file nor a known model"),
        ("info no/such/file", "no such file"),
        ("info {folder}", "no config.json here"),
        ("run {folder}", "or the directory of a checkpoint"),
        ("run {checkpoint}/model.safetensors", "not a packed Trilobit model"),
        ("convert no/such/directory {folder}/out", "missing"),
        ("convert {folder}/nothing {folder}/out", "missing; give a packed or GGUF file"),
        ("convert {checkpoint} {folder} --to packed", "is a directory"),
        ("convert {checkpoint} {checkpoint}", "a directory with something in it"),
        ("convert {checkpoint} {folder}/out.bin", "the suffix '.bin' names no form"),
        ("convert {checkpoint} {folder}/out --to safetensors", "'safetensors' is not one of"),
        ("convert {checkpoint} {folder}/no/such/folder/out", "No such file or directory"),
        ("convert {checkpoint} {model}/out", "Not a directory"),
        ("synth {model}/out --shape 125m", "Not a directory"),
        ("synth {checkpoint} --shape 125m", "new or empty directory"),
        ("synth {folder}/out --shape 9b", "'125m'"),
        ("synth {folder}/out", "--shape"),
        ("synth {folder}/out --shape 125m --num-attention-heads 7", "not a multiple"),
        ("synth {folder}/out --shape 125m --hidden-size 0", "hidden_size is 0"),
        ("synth {folder}/out --shape 125m --form bf16 --to-packed-file", "--to-packed-file"),
        ("generate", "give one of PROMPT"),
        ("generate a --token-ids 1", "give one of PROMPT"),
        ("generate --model {model} --token-ids 1,x", "'1,x'"),
        ("generate --model {model} --token-ids 1,331", "331 is not in the vocabulary"),
        ("generate --model {model} --token-ids ,", "',' is not a list of token ids"),
        ("generate --model {model} --token-ids 1,,2", "'1,,2' is not a list of token ids"),
        ("generate --model {model} --token-ids 1,2,", "'1,2,' is not a list of token ids"),
        ("generate --model {model} --file {folder}/none", "No such file"),
        ("generate --model {model} --file {folder}", "Is a directory"),
        ("generate --model {ids} a", "has no tokenizer"),
        ("generate --model {model} a --temperature -1", "temperature is -1.0"),
        ("generate --model {model} a --temperature nan", "temperature is nan"),
        ("generate --model {model} a --top-p 2", "top_p is 2.0"),
        ("generate --model {model} a --max-tokens 0", "max_tokens is 0"),
        ("generate --model {model} a --max-tokens many", "'many'"),
        ("generate --model {model} a --threads 0", "threads is 0"),
        ("generate --model {model} a --context 1101", "2 to 1100"),
        ("generate --model {model} a --logit-bias 42", "ID:VALUE"),
        ("generate --model {model} a --logit-bias 400:1", "400"),
        ("generate --model {model} a --seed -1", "seed is -1"),
        ("generate a --no-such-option", "--no-such-option"),
        ("no-such-command", "no-such-command"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: str,
    reason: str,
    checkpoint: Path,
    model_file: Path,
    without_tokenizer: Path,
    tmp_path: Path,
) -> None:
    places = {
        "checkpoint": checkpoint,
        "model": model_file,
        "ids": without_tokenizer,
        "folder": tmp_path,
    }
    assert reason in fail(*(word.format(**places) for word in arguments.split()))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("message", ["Tell me a story.", "Hello"])
def test_a_message_in_the_place_of_the_model_is_told(message: str) -> None:
    line = fail("chat", message)
    assert line.startswith(f"error: {message}: ")
    assert "a message comes after the model: trilobit chat trilobit-chat-5m MESSAGE" in line
    assert "MESSAGE" not in fail("chat", "bitnet-2")  # a slip in a model's name


@pytest.mark.parametrize("prompt", ["Once upon a time", "He said:\nno. Then/now?", "a " * 10**4])
def test_a_prompt_in_the_place_of_the_model_is_told(prompt: str) -> None:
    line = fail("run", prompt)
    assert line.startswith(f"error: {prompt.split()[0]} ")
    assert "no such model; a prompt comes after the model: trilobit run MODEL PROMPT, or " in line
    assert len(line) < 200


def test_a_model_may_have_spaces_in_its_name(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "my model.trilobit"
    path.symlink_to(model_file)
    assert trilobit("run", path, PROMPT, "--max-tokens", "1").returncode == 0


def test_empty_input_is_refused(model_file: Path, tmp_path: Path) -> None:
    for stdin in (b"", b"\n"):
        line = fail("generate", "-", "--model", model_file, stdin=stdin)
        assert "standard input: the prompt is empty" in line
    (tmp_path / "empty.txt").touch()
    line = fail("generate", "--file", tmp_path / "empty.txt", "--model", model_file)
    assert f"{tmp_path}/empty.txt: the prompt is empty" in line


def test_an_empty_prompt_begins_a_text_in_both_commands() -> None:
    options = ("--max-tokens", "8", "--temperature", "0", "--min-p", "0")
    begun = succeed("generate", "", *options)
    assert len(begun) > 8
    told = trilobit("run", DEFAULT, "", *options)
    assert (told.returncode, told.stdout) == (0, begun)


def test_an_empty_prompt_is_refused_where_no_token_begins_a_text(
    model_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.trilobit"
    marked, plain = b'"add_bos":"true"', b'"add_bos":  "no"'  # as long
    assert marked in model_file.read_bytes()
    model.write_bytes(model_file.read_bytes().replace(marked, plain))
    for arguments in (("generate", "", "--model", model), ("run", model, "")):
        assert "the prompt is empty; give at least one token" in fail(*arguments)


def test_prompts_that_are_no_text_are_refused(model_file: Path) -> None:
    line = fail("generate", "-", "--model", model_file, stdin=b"caf\xe9")
    assert "standard input: not UTF-8 text (byte 3)" in line


def test_endless_input_is_refused(model_file: Path) -> None:
    assert "longer than any" in fail("generate", "--file", "/dev/zero", "--model", model_file)


def test_a_prompt_longer_than_the_context_is_refused(model_file: Path) -> None:
    line = fail("generate", "-", "--model", model_file, "--json", stdin=TEXT.encode() * 50)
    assert re.search(r"the prompt has \d+ tokens.* context .*1100", line)


def test_an_impossible_instruction_set_is_refused(model_file: Path) -> None:
    environment = {**os.environ, "TRILOBIT_ISA": "pentium"}
    done = trilobit("generate", "a", "--model", model_file, env=environment)
    assert "pentium" in error_of(done)


def test_training_without_its_packages_names_the_extra(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "models" / DEFAULT / "recipe.toml"
    without_torch = "import sys; sys.modules['torch'] = None"
    done = trilobit_after(without_torch, "train", recipe, "--output", tmp_path / "run")
    assert "training needs the package 'torch'" in error_of(done)
    assert "pip install 'trilobit[train]'" in done.stderr
    assert files_in(tmp_path) == []


# ---- disk full, Ctrl-C, closed pipe: nothing half-written, no traceback -----------------------


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="a place where nobody may write")
def test_a_forbidden_place_is_no_full_disk(checkpoint: Path) -> None:
    for arguments in (
        ("convert", checkpoint, "/sys/out.trilobit"),
        ("convert", checkpoint, "/sys/out"),
        ("synth", "/sys/out", "--shape", "125m"),
    ):
        line = fail(*arguments)
        assert re.search("Permission denied|not permitted|Read-only", line)
        assert line.endswith("choose another place\n")
        assert "free space" not in line


def test_no_model_is_written_to_standard_output(checkpoint: Path) -> None:
    for arguments in (("convert", checkpoint, "-"), ("synth", "-", "--shape", "125m")):
        assert "-: no folder can be on standard output; name one" in fail(*arguments)


@pytest.mark.parametrize("size_bytes", [100, 30_000])  # within the header, within the weights
def test_a_full_disk_leaves_nothing(size_bytes: int, checkpoint: Path, tmp_path: Path) -> None:
    full, out, tiny = disk_full_at(size_bytes), tmp_path / "out", ["--num-hidden-layers", "1"]
    for arguments in (
        ("convert", checkpoint, out),
        ("synth", out, "--shape", "125m", *tiny),
        ("synth", out, "--shape", "125m", *tiny, "--to-packed-file"),
    ):
        line = error_of(trilobit_after(full, *arguments))
        assert str(out) in line
        assert "File too large); free space, or choose another place" in line
        assert files_in(tmp_path) == []


def test_a_failed_convert_keeps_the_old_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    error_of(trilobit_after(disk_full_at(30_000), "convert", checkpoint, out, "--force"))
    assert out.read_text() == "precious"


def test_what_cannot_fit_on_the_disk_is_not_begun(tmp_path: Path) -> None:
    huge = ["--shape", "100b", "--num-hidden-layers", "1024", "--hidden-size", "131072"]
    for form in ([], ["--to-packed-file"]):
        line = fail("synth", tmp_path / "huge", *huge, *form)
        assert re.search(r"needs [\d.]+ GB, and the disk has [\d.]+ GB free", line)
        assert files_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_output_that_cannot_be_written_is_one_line(model_file: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trilobit", "info", str(model_file)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 2
    assert done.stderr == "error: standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize("form", [[], ["--to-packed-file"]], ids=["checkpoint", "packed"])
def test_interrupted_synth_leaves_nothing(form: list[str], tmp_path: Path) -> None:
    arguments = ("synth", tmp_path / "out", "--shape", "1b", *form)
    code, out, err = signalled(
        *arguments, number=signal.SIGINT, when=part_appears(tmp_path), before=UNNAMED
    )
    assert (code, out, err.split()) == (INTERRUPTED, b"", [b"interrupted"])
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED), (signal.SIGHUP, HUNG_UP)],
)
def test_interrupted_convert_leaves_nothing(
    number: signal.Signals, expected: int, tmp_path: Path
) -> None:
    config, source, results = shape("1b"), tmp_path / "source", tmp_path / "results"
    source.mkdir()
    results.mkdir()
    values = to_hf(config)
    values["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    (source / "config.json").write_text(json.dumps(values))
    masters = [
        (f"{name}.weight", "BF16", dims) for name, dims in tensor_names.all_projections(config)
    ]
    gains = [(name, "BF16", (length,)) for name, length in tensor_names.all_norms(config)]
    table = (tensor_names.EMBEDDING, "BF16", (config.vocab_size, config.hidden_size))
    write_sparse(source / "model.safetensors", [*masters, *gains, table], {})
    code, out, err = signalled(
        *("convert", source, results / "out.trilobit"),
        number=number,
        when=part_appears(results),
        before=UNNAMED,
    )
    assert (code, out) == (expected, b"")
    assert b"Traceback" not in err
    assert files_in(results) == []


CTRL_C_WITHIN = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("name", ["trilobit.cli", "click", "trilobit.cli.run", "tokenizers"])
def test_ctrl_c_while_modules_load_is_quiet(name: str) -> None:
    done = trilobit_after(HEAR_CTRL_C + CTRL_C_WITHIN.format(name=name), "run")
    assert (done.returncode, done.stdout, done.stderr.split()) == (INTERRUPTED, "", ["interrupted"])


def test_ctrl_c_that_is_ignored_stays_ignored_while_modules_load() -> None:
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    done = trilobit_after(ignored + CTRL_C_WITHIN.format(name="click"), "run", "--max-tokens", "3")
    assert (done.returncode, done.stdout) == (0, f"{done.stdout.strip()}\n")


def test_interrupted_text_stays_and_ends_its_line(endless_text: Path) -> None:
    for command in (["run", endless_text], ["generate", PROMPT, "--model", endless_text]):
        code, out, err = signalled(
            *command,
            *("--max-tokens", 250_000),
            number=signal.SIGINT,
            when=first_byte,
        )
        assert code == INTERRUPTED
        assert out.endswith(b"\n")
        assert b"Traceback" not in err
        assert err == b"" or FIGURES.fullmatch(err.decode())


def test_closed_standard_streams_are_no_accident(model_file: Path) -> None:
    def run_with(redirection: str, *args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "trilobit"]
            + [str(arg) for arg in args],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    line = error_of(run_with("<&-", "generate", "-", "--model", model_file))
    assert "standard input is closed" in line
    silent = run_with(">&-", "generate", "a", "--model", model_file, "--max-tokens", 2)
    assert (silent.returncode, silent.stderr) == (0, "")


def test_a_reader_that_leaves_ends_the_program_quietly(endless_text: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "trilobit", "run", str(endless_text), "--max-tokens", "250000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first_byte(process)
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == BROKEN_PIPE
        assert process.stderr.read() == b""


# ---- the bundled model ------------------------------------------------------------------------

bundled = pytest.mark.skipif(DEFAULT not in bundled_models(), reason="not trained yet")


@bundled
def test_run_without_arguments_tells_a_story() -> None:
    done = trilobit("run")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{PROMPT}, ") or done.stdout.startswith(f"{PROMPT} ")
    assert len(done.stdout.split()) > 20
    assert FIGURES.fullmatch(done.stderr)


@bundled
def test_generate_continues_with_the_bundled_model() -> None:
    values = result("generate", PROMPT, "--max-tokens", 8, "--temperature", 0)
    assert (
        values["text"] == LLM().generate(PROMPT, SamplingParams(max_tokens=8, temperature=0)).text
    )


@bundled
def test_info_finds_the_bundled_model_by_its_name() -> None:
    assert result("info", DEFAULT)["path"] == str(bundled_models()[DEFAULT])
