"""Grammars: what they let through, and that none of them, however it is meant, costs more than one
clear line.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trilobit import LLM, RequestError, SamplingParams
from trilobit.sampling import Constraint
from trilobit.text import grammar as grammar_module
from trilobit.text import grammar_trial
from trilobit.text.grammar import Grammars, GrammarState
from trilobit.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1, kv_memory_mb=8)


@pytest.fixture
def grammars(llm: LLM) -> Grammars:
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    return Grammars(tokenizer, llm.config.vocab_size, llm.config.eos_token_ids)


def constraint(**given: Any) -> Constraint:
    found = SamplingParams(**given).constraint
    assert found is not None
    return found


def ids_of(row: np.ndarray[Any, Any]) -> list[int]:
    bits: list[int] = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    return bits


def random_output(state: GrammarState, tokenizer: Tokenizer, seed: int) -> str | None:
    """Any text that the grammar lets through; None if it does not end."""
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    for _ in range(400):
        [row] = state.allowed([])
        token_id = int(random.choice(ids_of(row)))
        if token_id == 1:  # the end
            return tokenizer.decode(tokens)
        tokens.append(token_id)
        state.accept(token_id)
        if state.ended:
            return tokenizer.decode(tokens)
    return None


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        "of": {"oneOf": [{"const": "x"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "of"],
    "additionalProperties": False,
}


def fits_schema(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["name", "age", "tags", "of"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 9
    assert 0 <= value["age"] <= 120
    assert len(value["tags"]) <= 3
    assert all(tag in ("a", "b", None) for tag in value["tags"])
    assert value["of"] in ("x", True, False)


def fits(expression: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert re.fullmatch(expression, text)

    return check


CLAIMS: dict[str, tuple[dict[str, Any], Callable[[str], None]]] = {
    "schema": ({"json_schema": SCHEMA}, fits_schema),
    "regex": ({"regex": r"[A-Z][a-z]{1,8}( [0-9]{2,4})?"}, fits(r"[A-Z][a-z]{1,8}( [0-9]{2,4})?")),
    "choice": (
        {"choice": ["yes", "no", 'a "quoted" one', "né\n"]},
        fits('yes|no|a "quoted" one|né\n'),
    ),
    "grammar": ({"grammar": 'start: "a" (/[0-9]/ | start)'}, fits(r"a+[0-9]")),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_text_that_a_grammar_lets_through_fits(
    llm: LLM, grammars: Grammars, claim: str
) -> None:
    given, check = CLAIMS[claim]
    compiled = grammars.compile(constraint(**given))
    ended = 0
    for seed in range(30):
        text = random_output(compiled.start(), llm.tokenizer, seed)  # type: ignore[arg-type]
        if text is not None:
            check(text)
            ended += 1
    assert ended > 20


def test_a_draft_is_looked_at_and_not_taken(llm: LLM, grammars: Grammars) -> None:
    compiled = grammars.compile(constraint(json_schema=SCHEMA))
    draft = llm.encode('{"name": "Bo", "age": 7')[1:]
    state, stepwise = compiled.start(), compiled.start()
    rows = state.allowed(draft)
    for row, token_id in zip(rows, [*draft, None], strict=True):
        assert (stepwise.allowed([])[0] == row).all()
        if token_id is not None:
            stepwise.accept(token_id)
    assert (state.allowed([])[0] == rows[0]).all()
    # Behind a guess that may not come, or that ends all, nothing is said.
    assert len(state.allowed([draft[0], 5, 5])) == 4
    ends = grammars.compile(constraint(regex="a")).start()
    assert len(ends.allowed([*llm.encode("a")[1:], 1, 1])) == 4
    assert not ends.ended


def test_states_do_not_know_each_other(llm: LLM, grammars: Grammars) -> None:
    compiled = grammars.compile(constraint(regex="ab|cd"))
    one, other = compiled.start(), compiled.start()
    one.accept(llm.encode("a")[-1])
    assert (other.allowed([]) == compiled.start().allowed([])).all()


def test_there_is_one_space_between_the_parts_of_json_or_one_indented_line(
    llm: LLM, grammars: Grammars
) -> None:
    state = grammars.compile(constraint(json_schema={"type": "object"})).start()
    state.accept(llm.encode("{")[-1])
    newline, space = llm.encode("\n")[-1], llm.tokenizer.token_id("Ġ")  # type: ignore[union-attr]
    assert newline in ids_of(state.allowed([])[0])
    state.accept(newline)
    assert newline not in ids_of(state.allowed([])[0])
    for _ in range(16):
        assert space in ids_of(state.allowed([])[0])
        state.accept(space)  # type: ignore[arg-type]
    assert space not in ids_of(state.allowed([])[0])


# ---- what is bad, or meant badly --------------------------------------------------------------


def nested(schema: object, times: int) -> object:
    for _ in range(times):
        schema = {"type": "array", "items": schema}
    return schema


BAD: dict[str, dict[str, Any]] = {
    "no regex": {"regex": "["},
    "look-ahead": {"regex": "(?=a)b"},
    "deep regex": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "no lark": {"grammar": 'start: "a'},
    "no start": {"grammar": 'foo: "a"'},
    "left recursion without an end": {"grammar": "start: start"},
    "deep lark": {"grammar": "start: " + "(" * 3000 + '"a"' + ")" * 3000},
    "a special token that is none": {"grammar": "start: <|no such|>"},
    "a circular token": {"grammar": 'start: A\nA: A "b"'},
    "half a character": {"grammar": 'start: "\\ud800"'},
    "a grammar inside": {"grammar": "start: @sub"},
    "a huge substring": {"grammar": 'start: %regex {"substring_chars": "' + "abc" * 95_000 + '"}'},
    "a schema of itself": {"json_schema": {"$ref": "#"}},
    "a circle of schemas": {
        "json_schema": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        }
    },
    "a schema from elsewhere": {"json_schema": {"$ref": "http://127.0.0.1:9/x"}},
    "false": {"json_schema": False},
    "an unknown key": {"json_schema": {"type": "object", "dependentSchemas": {"a": {}}}},
    "too many digits": {"json_schema": {"type": "number", "multipleOf": 1e-300}},
    "a huge number": {"json_schema": '{"minimum": 1' + "0" * 400 + "}"},
    "impossible": {"json_schema": {"type": "integer", "minimum": 3, "maximum": 1}},
    "exponential": {
        "json_schema": {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)]}
                for i in range(12)
            ]
        }
    },
    "the empty text": {"regex": ""},
    "only the empty text": {"regex": "a{0}"},
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_grammar_is_one_clear_line(
    grammars: Grammars, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        grammars.compile(constraint(**BAD[case]))
    message = str(caught.value)
    assert message.startswith(next(iter(BAD[case])))
    assert message.isprintable()
    assert len(message) < 420
    assert capfd.readouterr() == ("", "")
    # It is kept, so as not to be tried again, but for what is refused before.
    assert len(grammars) == (case != "the empty text")
    assert not grammars._compiling


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": '{"a": NaN}'}, "json_schema is no JSON: NaN is no number"),
        ({"json_schema": {"a": float("nan")}}, "json_schema is no JSON"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema is no JSON: a set is nothing"),
        ({"json_schema": "[" * 100_000}, "json_schema is no JSON: it is nested too deeply"),
        ({"json_schema": nested(True, 65)}, "json_schema: more than 64 lists and objects"),
        ({"json_schema": "3"}, "json_schema is 3; expected a schema"),
        ({"json_schema": "x" * 300_001}, "json_schema has 300,001 characters; at most 300,000"),
        ({"regex": "a" * 300_001}, "regex has 300,001 characters; expected 1 to 300,000"),
        ({"regex": b"a"}, "regex is b'a'; expected a text"),
        ({"grammar": "\ud800"}, "grammar has half a character"),
        ({"choice": ["a", ""]}, "every choice must be a non-empty text"),
        ({"choice": []}, "choice is an empty list; give one text or more"),
        ({"choice": ""}, "every choice must be a non-empty text"),
        ({"grammar": ""}, "grammar has 0 characters"),
        ({"json_schema": ""}, "json_schema is no JSON"),
        ({"choice": ["a", 3]}, "every choice must be a non-empty text"),
        ({"choice": ["a" * 300_001]}, "choice has 300,001 characters"),
        ({"choice": ["a"], "regex": "a"}, "regex and choice are given; an output follows one"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens is 3, max_tokens 2; expected no more"),
        ({"min_tokens": -1}, "min_tokens is -1; expected an integer from 0"),
    ],
)
def test_params_are_refused_in_a_clear_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=re.escape(told)) as caught:
        SamplingParams(**given)
    assert len(str(caught.value)) < 400


def test_params_with_a_schema_have_a_hash_and_keep_nothing_of_the_callers() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"b": {}, "a": {}}}
    params = SamplingParams(json_schema=schema)
    assert hash(params) == hash(SamplingParams(json_schema=json.dumps(schema)))
    schema["type"] = "string"
    assert json.loads(str(params.json_schema))["type"] == "object"
    assert SamplingParams(choice="yes").choice == ("yes",)
    assert SamplingParams().constraint is None


def test_a_schema_that_takes_minutes_is_given_up(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_trial, "TRIAL_S", 1.0)
    patterns = {f"^x{i}y": {"type": "string"} for i in range(600)}
    with pytest.raises(RequestError, match="json_schema: takes longer than 1 s to compile"):
        grammars.compile(constraint(json_schema={"type": "object", "patternProperties": patterns}))


@pytest.mark.parametrize(
    "given",
    [
        {"regex": "(b{1001}){1000}"},
        {"regex": "(?x) (b{9 9 9 9}) {9 9 9}"},
        {"json_schema": {"type": "string", "pattern": "(b{1001}){1000}"}},
        {"json_schema": {"type": "integer", "multipleOf": 9999991}},
        {"grammar": 'start: B\nA: "b"{1001}\nB: A{1000}'},
    ],
    ids=str,
)
def test_a_short_source_that_counts_far_is_tried_before(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(grammar_trial, "TRIAL_S", 0.0)  # no process begins so fast
    kind = next(iter(given))
    with pytest.raises(RequestError, match=f"{kind}: takes longer than 0 s to compile"):
        grammars.compile(constraint(**given))


@pytest.mark.parametrize(
    "given",
    [
        {"regex": r"[A-Z][a-z]{1,8}( [0-9]{2,4})?"},
        {"regex": r"[0-9]{4}-[0-9]{2}-[0-9]{2}"},
        {"json_schema": SCHEMA},
        {"choice": ["b{1001}", "{1000}{1000}"]},
    ],
    ids=str,
)
def test_a_short_ordinary_source_needs_no_trial(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(grammar_module, "try_out", lambda _: "is tried")
    assert grammars.compile(constraint(**given)).start().allowed([]).any()


def test_a_trial_ends_at_a_text_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_trial, "_MOST_FORCED", 100)
    monkeypatch.setattr(grammar_trial, "TRIAL_S", 60.0)
    source = grammar_module._source
    assert grammar_trial.try_out(source(constraint(regex="b{100}"))) is None
    fault = grammar_trial.try_out(source(constraint(regex="(b{10}){11}")))
    assert fault == "begins with a text of more than 100 bytes; make it shorter"


@pytest.mark.parametrize("case", ["a schema of itself", "left recursion without an end"])
def test_what_refers_to_itself_without_an_end_is_told_in_words(
    grammars: Grammars, case: str
) -> None:
    with pytest.raises(RequestError, match="refers to itself without an end") as caught:
        grammars.compile(constraint(**BAD[case]))
    assert "NoExtension" not in str(caught.value)


def test_what_ends_the_process_of_a_trial_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_trial, "_MEMORY_BYTES", 1)  # no room for the library itself
    assert "too much memory" in str(grammar_trial.try_out("x"))


def test_what_only_steps_find_too_complex_ends_with_a_clear_line(
    llm: LLM, grammars: Grammars
) -> None:
    state = grammars.compile(constraint(regex="(.{0,1000}){0,1000}")).start()

    def follow() -> None:
        for _ in range(400):
            state.allowed([])
            state.accept(llm.encode("a")[-1])

    with pytest.raises(RequestError, match=r"regex: cannot be followed any further \(.*\); make"):
        follow()


def test_the_cache_is_bounded_in_bytes(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "_cache_bytes", 20_000_000)
    for number in range(300):
        grammars.compile(constraint(regex=f"a{{{number}}}b"))
        assert grammars.size_bytes <= 20_000_000
    assert 30 < len(grammars) < 42
    kept = grammars.compile(constraint(regex="a{299}b"))
    assert grammars.compile(constraint(regex="a{299}b")) is kept
    # Of one that is larger than all of it, nothing else is kept.
    grammars.compile(constraint(choice=[f"number {number}" for number in range(9000)]))
    assert len(grammars) == 1


def test_what_cannot_be_compiled_is_not_tried_again(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(grammar_module, "try_out", lambda source: tried.append(source) or "is bad")
    wrong = constraint(regex="a" * 3000)
    for _ in range(3):
        with pytest.raises(RequestError, match="regex: is bad"):
            grammars.compile(wrong)
    assert (len(tried), len(grammars)) == (1, 1)
    monkeypatch.setattr(grammars, "_cache_bytes", 1_000_000)
    for number in range(500):
        with pytest.raises(RequestError, match="regex: is bad"):
            grammars.compile(constraint(regex="a" * 3000 + str(number)))
        assert grammars.size_bytes <= 1_000_000
    assert 50 < len(grammars) < 100


def test_a_model_without_an_end_follows_no_grammar(llm: LLM) -> None:
    assert llm.tokenizer is not None
    with pytest.raises(RequestError, match="regex: this model has no end-of-sequence token"):
        Grammars(llm.tokenizer, llm.config.vocab_size, ()).compile(constraint(regex="a"))


def test_a_tokenizer_of_another_kind_is_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "b"}}
    grammars = Grammars(Tokenizer(json.dumps(words).encode(), "words"), 2, (1,))
    with pytest.raises(RequestError, match="this model's tokenizer is of a kind") as caught:
        grammars.compile(constraint(regex="a"))
    assert len(str(caught.value)) < 420
    assert capfd.readouterr() == ("", "")


def test_where_llguidance_is_missing_one_line_says_how_to_have_it(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)  # not found, as with musl
    with pytest.raises(RequestError, match=r"regex: needs llguidance, .* pip install llguidance"):
        grammars.compile(constraint(regex="a"))


def test_who_asks_for_the_same_waits_for_it(grammars: Grammars) -> None:
    wanted = constraint(choice=[f"number {number}" for number in range(2000)])
    made: list[object] = []
    threads = [
        threading.Thread(target=lambda: made.append(grammars.compile(wanted))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len({id(one) for one in made}) == 1
