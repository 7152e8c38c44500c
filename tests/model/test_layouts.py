"""A model runs the same, bit for bit, whichever way its weights lie in file and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiny_config

from trilobit import LLM, Embedder, FormatError, RequestError, SamplingParams, layouts
from trilobit.cli import cli
from trilobit.conversion import convert
from trilobit.formats.dtypes import DTYPES
from trilobit.formats.packed.form import declare
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.packed.writer import packed_writer
from trilobit.formats.text_files import TextFiles
from trilobit.model.packing import LAYOUTS, ORDERS, Layout, Order
from trilobit.model.shapes import shape
from trilobit.synth import synth_packed

IDS = list(range(2, 70))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[Layout, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    paths: dict[Layout, Path] = {layout: folder / f"{layout}.trilobit" for layout in LAYOUTS}
    for layout, path in paths.items():
        convert(checkpoint, path, layout=layout)
    return paths


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("in_memory", LAYOUTS)
@pytest.mark.parametrize("in_file", LAYOUTS)
def test_every_layout_gives_the_same_bits(
    files: dict[Layout, Path], in_file: Layout, in_memory: Layout, threads: int
) -> None:
    wanted = LLM(files["2-bit"], threads=1)
    found = LLM(files[in_file], layout=in_memory, threads=threads)
    assert found.layout == in_memory
    assert np.array_equal(found.logits(IDS), wanted.logits(IDS))
    sampled = SamplingParams(max_tokens=40, temperature=1, seed=3, ignore_eos=True)
    assert found.generate(IDS, sampled).token_ids == wanted.generate(IDS, sampled).token_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_runs_as_it_lies_unless_told_otherwise(
    files: dict[Layout, Path], layout: Layout
) -> None:
    assert PackedModel(files[layout]).layout == LLM(files[layout]).layout == layout


def test_a_file_in_base_3_is_smaller(tmp_path: Path) -> None:
    config = tiny_config(
        hidden_size=1280, intermediate_size=1600, head_dim=80, num_attention_heads=8
    )
    sizes = {}
    for layout in LAYOUTS:
        synth_packed(config, tmp_path / layout, layout=layout)
        tensors = PackedModel(tmp_path / layout).file.tensors
        sizes[layout] = sum(i.size_bytes for name, i in tensors.items() if "_proj.weight" in name)
    assert sizes["1.6-bit"] * 5 == pytest.approx(sizes["2-bit"] * 4, rel=0.001)


@pytest.mark.parametrize("old", LAYOUTS)
@pytest.mark.parametrize("new", [*LAYOUTS, None])
def test_a_packed_file_is_packed_anew(
    files: dict[Layout, Path], tmp_path: Path, old: Layout, new: Layout | None
) -> None:
    convert(files[old], tmp_path / "new.trilobit", layout=new)
    assert (tmp_path / "new.trilobit").read_bytes() == files[new or old].read_bytes()


def test_a_file_in_base_3_becomes_a_checkpoint(files: dict[Layout, Path], tmp_path: Path) -> None:
    for layout in LAYOUTS:
        convert(files[layout], tmp_path / layout, to="hf")
    names = {path.name for path in (tmp_path / "2-bit").iterdir()}
    assert "model.safetensors" in names
    for name in names:
        found, wanted = (tmp_path / layout / name for layout in LAYOUTS)
        assert found.read_bytes() == wanted.read_bytes()


def test_auto_measures_what_is_too_large_for_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small, grouped = shape("2b4t"), shape("125m"), shape("bonsai-8b")
    measured = {"2-bit": 1.0, "1.6-bit": 0.8}
    monkeypatch.setattr(layouts, "_seconds", lambda threads, order: measured)
    monkeypatch.setattr(layouts, "memory_bytes", lambda: 10_000_000_000)
    assert layouts.fastest_layout(large, 2) == "1.6-bit"
    assert layouts.fastest_layout(small, 2) == "2-bit"
    assert layouts.fastest_layout(grouped, 2) == "2-bit"
    measured["1.6-bit"] = 0.99  # not worth what it costs with several tokens
    assert layouts.fastest_layout(large, 2) == "2-bit"
    assert layouts.fastest_layout(shape("70b"), 2) == "1.6-bit"  # or it would not fit


def test_auto_weighs_matrices_by_how_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()

    def seconds(threads: int, order: Order) -> dict[Layout, float]:
        asked.add(order)
        return {"2-bit": 1.0, "1.6-bit": 0.5 if order == "groups" else 9.0}

    monkeypatch.setattr(layouts, "_seconds", seconds)
    monkeypatch.setattr(layouts, "memory_bytes", lambda: None)
    assert layouts.fastest_layout(shape("2b4t"), 2) == "2-bit"
    assert asked == set(ORDERS)
    asked.clear()
    assert layouts.fastest_layout(shape("700m"), 2) == "1.6-bit"  # which skips nothing
    assert asked == {"groups"}


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_measured_is_the_time_of_each_layout(order: Order) -> None:
    seconds = layouts._seconds(1, order)
    assert set(seconds) == set(LAYOUTS)
    assert all(0 < s < 1 for s in seconds.values())


def test_auto_runs(files: dict[Layout, Path]) -> None:
    assert LLM(files["1.6-bit"], layout="auto").layout == "2-bit"  # tiny


@pytest.mark.parametrize("in_file", LAYOUTS)
def test_a_vector_has_the_same_bits_in_every_layout(
    files: dict[Layout, Path], in_file: Layout
) -> None:
    texts = ["Once upon a time", "the dog ran"]
    wanted = Embedder(files["2-bit"], threads=1).encode(texts)
    for layout, chosen in ((None, in_file), ("auto", "2-bit"), *zip(LAYOUTS, LAYOUTS, strict=True)):
        embedder = Embedder(files[in_file], layout=layout, threads=2)  # type: ignore[arg-type]
        assert embedder.layout == chosen
        assert np.array_equal(embedder.encode(texts), wanted)


def test_what_no_layout_holds_is_refused(tmp_path: Path, files: dict[Layout, Path]) -> None:
    grouped = tiny_config(scales="group", hidden_act="silu", sub_norms=False)
    with pytest.raises(RequestError, match="scales are by group"):
        synth_packed(grouped, tmp_path / "grouped.trilobit", layout="1.6-bit")
    assert list(tmp_path.iterdir()) == []
    synth_packed(grouped, tmp_path / "grouped.trilobit")
    refusal = r"grouped\.trilobit: its scales are by group.*; leave out layout, or give it 2-bit"
    with pytest.raises(RequestError, match=refusal):
        LLM(tmp_path / "grouped.trilobit", layout="1.6-bit")
    with pytest.raises(RequestError, match=refusal):
        convert(tmp_path / "grouped.trilobit", tmp_path / "out.trilobit", layout="1.6-bit")
    for model in (LLM, Embedder):
        with pytest.raises(RequestError, match=r"layout is '3-bit'; expected '2-bit', '1\.6-bit'"):
            model(files["2-bit"], layout="3-bit")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"of packed files.*; leave it out, or .*\.trilobit"):
        convert(files["2-bit"], tmp_path / "out.gguf", layout="1.6-bit")


def test_the_commands_take_a_layout(tmp_path: Path, files: dict[Layout, Path]) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    out = tmp_path / "out.trilobit"
    run("convert", str(files["2-bit"]), str(out), "--layout", "1.6-bit")
    assert out.read_bytes() == files["1.6-bit"].read_bytes()
    told = {
        run("generate", "--model", str(path), "Once", "--seed", "1", "--layout", layout)
        for path in files.values()
        for layout in LAYOUTS
    }
    assert len(told) == 1
    run("synth", str(tmp_path / "s"), "--shape", "125m", "--num-hidden-layers", "1",
        "--to-packed-file", "--layout", "1.6-bit")  # fmt: skip
    assert PackedModel(tmp_path / "s").layout == "1.6-bit"
    result = CliRunner().invoke(
        cli, ["synth", str(tmp_path / "t"), "--shape", "125m", "--layout", "1.6-bit"]
    )
    assert result.exit_code == 2
    assert "--to-packed-file" in result.output


def test_a_file_of_an_unknown_layout_is_refused(tmp_path: Path, files: dict[Layout, Path]) -> None:
    whole = files["1.6-bit"].read_bytes()
    assert whole.count(b'"1.6-bit"') == 1
    (tmp_path / "odd").write_bytes(whole.replace(b'"1.6-bit"', b'"1.5-bit"'))
    with pytest.raises(FormatError, match=r"layout '1\.5-bit'.*upgrade"):
        PackedModel(tmp_path / "odd")


def test_scales_by_group_that_claim_base_3_are_damage(tmp_path: Path) -> None:
    grouped = tiny_config(scales="group", hidden_act="silu", sub_norms=False)
    file = packed_writer(tmp_path / "odd", grouped, "BF16", TextFiles(), "test", layout="1.6-bit")
    with file:
        for name, dtype, size in declare(grouped, "BF16", TextFiles(), layout="1.6-bit"):
            file.write(name, np.zeros(size, DTYPES[dtype]))
    with pytest.raises(FormatError) as refusal:
        PackedModel(tmp_path / "odd")
    assert str(refusal.value) == (
        f"{tmp_path / 'odd'}: claims the 1.6-bit layout and scales by group, which need the 2-bit "
        "layout; the file is damaged: convert the model again"
    )
