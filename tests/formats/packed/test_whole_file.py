"""A file appears when it is whole, and only where a file may stand."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from trilobit import OutputError
from trilobit.formats.whole_file import WholeFile, check_place, write_whole


@pytest.mark.parametrize("place", ["", ".", "..", "/", "inside", "/dev/null"])
def test_what_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inside").mkdir()
    shown = f"{Path(place)}: a directory, pipe or device; choose another place"
    with pytest.raises(OutputError) as error, WholeFile(Path(place), b"", 0):
        pass
    assert str(error.value) == shown
    with pytest.raises(OutputError) as error:
        check_place(Path(place))
    assert str(error.value) == shown
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_standard_output_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError) as error:
        check_place(Path("-"))
    assert str(error.value) == "-: no file can be whole on standard output; name one"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [None, ValueError, KeyboardInterrupt])
def test_it_replaces_what_was_there_whole_or_not_at_all(
    tmp_path: Path, failure: type[BaseException] | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write() -> None:
        with WholeFile(path, b"n", 3) as file:
            file.write(b"ew")
            if failure:
                raise failure

    with pytest.raises(failure) if failure else nullcontext():
        write()
    assert path.read_bytes() == (b"old" if failure else b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_leads_to_what_was_written(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("before")
    link.symlink_to(target)
    write_whole(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]
    target.unlink()
    write_whole(link, b"anew")
    assert target.read_bytes() == b"anew"


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="no link in /dev")
def test_links_in_dev_stay(tmp_path: Path) -> None:
    code = "from pathlib import Path; from trilobit.formats.whole_file import write_whole as w\n"
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", code + "w(Path('/dev/stdout'), b'')"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "OutputError: /dev/stdout: a directory, pipe or device; choose another" in done.stderr
    assert Path("/dev/stdout").is_symlink()
