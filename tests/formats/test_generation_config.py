"""What a model's makers say of how tokens are chosen: read, kept in every form, and followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TEXT

from trilobit import LLM, FormatError, RequestError, SamplingParams
from trilobit.bundled import bundled_models
from trilobit.cli import cli
from trilobit.cli.options import for_people
from trilobit.conversion import convert
from trilobit.formats.open import open_source
from trilobit.formats.packed.reader import PackedModel

SAID = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}


def saying(folder: Path, values: dict[str, Any]) -> Path:
    """A generation_config.json."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (SAID | {"do_sample": True, "eos_token_id": 1, "max_length": 99}, SAID),
        ({"temperature": 0.6, "top_p": None}, {"temperature": 0.6}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0, "top_p": 0.9}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"do_sample": True}, {}),
    ],
)
def test_a_packed_file_keeps_what_a_generation_config_says(
    checkpoint: Path, tmp_path: Path, values: dict[str, Any], wanted: dict[str, float]
) -> None:
    config = saying(tmp_path, values)
    convert(checkpoint, tmp_path / "m.trilobit", generation_config=config)
    assert PackedModel(tmp_path / "m.trilobit").text.sampling.said == wanted


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("said", [SAID, {"temperature": 0, "top_k": 3}, {"top_p": 0.3}, {}])
def test_every_form_keeps_what_a_model_says(
    tmp_path: Path, form: Any, said: dict[str, float]
) -> None:
    model = bundled_models()["trilobit-stories-5m"]
    greedy = {"do_sample": False} if said.get("temperature") == 0 else {}
    convert(model, tmp_path / "out", form, generation_config=saying(tmp_path, said | greedy))
    assert open_source(tmp_path / "out").text.sampling.said == said


@pytest.mark.parametrize("form", ["hf", "gguf", "packed"])
def test_info_shows_what_any_form_says(tmp_path: Path, form: Any) -> None:
    model = bundled_models()["trilobit-stories-5m"]
    convert(model, tmp_path / "out", form, generation_config=saying(tmp_path, {"top_k": 7}))
    told = CliRunner().invoke(cli, ["info", str(tmp_path / "out"), "--json"])
    assert json.loads(told.output)["sampling"] == {"top_k": 7}
    told = CliRunner().invoke(cli, ["info", str(tmp_path / "out")])
    assert "sampling         top_k 7, where a request says nothing" in told.output


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    convert(bundled_models()["trilobit-stories-5m"], tmp_path / "out")
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.do_sample, read.temperature, read.min_p) == (True, 0.7, 0.05)


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_say_what_their_cards_show(name: str) -> None:
    said = PackedModel(bundled_models()[name]).text.sampling.said
    assert said == {"temperature": 0.7, "min_p": 0.05}


def test_a_model_is_followed_where_a_request_says_nothing(
    model_file: Path, checkpoint: Path, tmp_path: Path
) -> None:
    greedy = tmp_path / "greedy.trilobit"
    convert(checkpoint, greedy, generation_config=saying(tmp_path, {"do_sample": False}))
    with LLM(model_file) as plain, LLM(greedy) as llm:
        assert (plain.sampling.said, llm.sampling.said) == ({}, {"temperature": 0})
        likeliest = plain.generate(TEXT, SamplingParams(max_tokens=9, temperature=0)).token_ids
        assert llm.generate(TEXT, SamplingParams(max_tokens=9)).token_ids == likeliest
        assert llm.generate(TEXT).token_ids[:9] == likeliest
        own = SamplingParams(max_tokens=9, temperature=1.5, seed=1)
        assert llm.generate(TEXT, own).token_ids == plain.generate(TEXT, own).token_ids


@pytest.mark.parametrize("values", [{"temperature": "hot"}, {"top_p": 2}, {"min_p": True}])
def test_what_cannot_be_is_refused_by_file_and_field(
    checkpoint: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    config = saying(tmp_path, values)
    with pytest.raises(FormatError, match=f"{next(iter(values))} is .*; correct it"):
        convert(checkpoint, tmp_path / "m.trilobit", generation_config=config)
    assert not (tmp_path / "m.trilobit").exists()


@pytest.mark.parametrize("value", ["false", 0, "no", []])
def test_do_sample_is_true_or_false(checkpoint: Path, tmp_path: Path, value: Any) -> None:
    config = saying(tmp_path, {"do_sample": value})
    with pytest.raises(FormatError, match=r"do_sample is .*; expected true or false"):
        convert(checkpoint, tmp_path / "m.trilobit", generation_config=config)


def test_a_file_that_says_nothing_of_it_is_refused_and_an_empty_object_takes_it_away(
    tmp_path: Path,
) -> None:
    model, out = bundled_models()["trilobit-stories-5m"], tmp_path / "m.trilobit"
    with pytest.raises(FormatError, match=r"says nothing of temperature, .* or do_sample"):
        convert(model, out, generation_config=saying(tmp_path, {"temprature": 0.3}))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FormatError, match=r"broken.json: .*; mend it"):
        convert(model, out, generation_config=tmp_path / "broken.json")
    assert not out.exists()
    convert(model, out, generation_config=saying(tmp_path, {}))
    assert PackedModel(out).text.sampling.said == {}


def test_a_penalty_that_no_logit_survives_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="repetition_penalty is 1e-38; expected a number from"):
        SamplingParams(repetition_penalty=1e-38)
    config = saying(tmp_path, {"repetition_penalty": 1e-300})
    with pytest.raises(FormatError, match="repetition_penalty is 1e-300"):
        convert(checkpoint, tmp_path / "m.trilobit", generation_config=config)


def test_texts_for_people_have_filters_of_ours_only_where_a_model_says_nothing() -> None:
    assert for_people(SamplingParams(), SamplingParams()).min_p == 0.05
    said = for_people(SamplingParams(top_k=3), SamplingParams(temperature=0.5)).said
    wanted = {"temperature": 0.5, "top_k": 3, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    assert said == wanted


def test_a_copy_of_floats_takes_no_other_config(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="put your generation_config"):
        convert(checkpoint, tmp_path / "f", "hf-bf16", generation_config=saying(tmp_path, {}))
