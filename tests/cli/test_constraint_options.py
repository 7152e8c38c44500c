"""`trilobit generate` with what the output must be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"enum": ["b", "c"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
)


def trilobit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trilobit", "generate", "Once", "--seed", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_an_output_is_what_the_options_ask_for(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA)
    for schema in (SCHEMA, str(file)):
        done = trilobit("--json-schema", schema)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) in ({"a": "b"}, {"a": "c"})
    done = trilobit("--regex", "[a-z]{3}[0-9]", "--json")
    assert re.fullmatch("[a-z]{3}[0-9]", json.loads(done.stdout)["text"])
    assert trilobit("--choice", "a dog", "--choice", "a cat").stdout in ("a dog\n", "a cat\n")
    done = trilobit("--min-tokens", "9", "--max-tokens", "20", "--logit-bias", "1:100", "--json")
    assert len(json.loads(done.stdout)["token_ids"]) == 10


def test_an_output_that_was_cut_says_so() -> None:
    done = trilobit("--regex", "[a-z]{90}", "--max-tokens", "5")
    assert done.returncode == 0
    assert re.fullmatch(r"regex: cut before its end, .* --max-tokens\n", done.stderr)


def test_what_cannot_be_followed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    for arguments, told in {
        ("--json-schema", "no-such-file"): "'no-such-file': no such file, and no JSON of a schema",
        ("--json-schema", str(tmp_path)): "cannot be read",
        ("--json-schema", str(tmp_path / "bytes")): "not UTF-8 text",
        ("--json-schema", "{"): "json_schema is no JSON",
        ("--regex", "["): "regex: cannot be used",
        ("--regex", "a", "--choice", "b"): "regex and choice are given",
    }.items():
        done = trilobit(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert re.fullmatch(f"error: .*{re.escape(told)}.*\n", done.stderr), done.stderr
