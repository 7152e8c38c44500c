"""What a tokenizer.json may ask for: checked before anything of it runs.

`tokenizers` builds and runs whatever the file describes, without any limit, and ends the process
where memory does. So what it would do is bounded here: how much a text may grow, what expressions
split it, what tables claim to hold. All forms of published tokenizers pass as they are.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trilobit.text.charsmap import CharsmapFault, growth_by
from trilobit.text.split_pattern import PatternFault, check_pattern

_MOST_PARTS = 8_000_000  # values of the whole file; of the largest published ones 2,000,000
_MOST_STEPS = 100
_MOST_GROWTH = 128.0  # Llama 2's is 12, T5's with its charsmap 44
_MOST_ADDED = 1000  # tokens that a template puts around a text
_LONGEST_WORD = 1000  # characters: WordPiece's own default is 100
_CHARSMAP = "precompiled_charsmap"
_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")
_COMPOSED = 4  # bytes that NFC makes one of, at most

# Steps that lose nothing of a text, the only ones with which its length says something.
_KEEPING = frozenset(
    "NFC Prepend Replace ByteLevel Split Digits Punctuation Metaspace Sequence".split()
)


class TokenizerFault(Exception):
    """Why a tokenizer is not run: what of it, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a tokenizer may do to a text: how many times as long it makes it at most, and how many
    bytes of it one byte of a token may stand for; None where that has no bound.
    """

    growth: float
    shrinkage: int | None


def has_too_many_parts(data: bytes) -> bool:
    """Whether a tokenizer.json holds more values than any published one, by far."""
    return data.count(b",") + data.count(b"[") + data.count(b"{") > _MOST_PARTS


def check_tokenizer(data: bytes) -> Effect:
    """Read a tokenizer.json; TokenizerFault when it is damaged or would take too much."""
    if has_too_many_parts(data):
        raise TokenizerFault(f"has more than {_MOST_PARTS:,} values")
    try:
        file = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise TokenizerFault("has lists in lists in lists") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerFault(str(error)) from None
    except ValueError:
        raise TokenizerFault("has a number of thousands of digits") from None
    if not isinstance(file, dict):
        raise TokenizerFault("expected an object")
    growth = 1.0
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        steps = list(_steps(file.get(part)))
        if len(steps) > _MOST_STEPS:
            raise TokenizerFault(f"{part} has {len(steps):,} steps")
        if sum("special_tokens" in step for step in steps) > 1:
            raise TokenizerFault(f"{part} has several templates")
        grown = 1.0
        for step in steps:
            try:
                grown *= _check_step(step)
            except TokenizerFault as fault:
                raise TokenizerFault(f"{part}: {_name(step)} {fault}") from None
        if grown > _MOST_GROWTH:
            raise TokenizerFault(f"{part} may make a text {grown:,.0f} times as long")
        if part != "decoder":
            growth *= grown
    if growth > _MOST_GROWTH:
        raise TokenizerFault(f"may make a text {growth:,.0f} times as long")
    _check_added(file)
    _check_model(file.get("model"))
    return Effect(growth, _shrinkage(file))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Readers differ in which of two they take: what is checked must be what is run.
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise TokenizerFault(f"names {twice[:40]!r} twice")
    return found


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part in their order, those of sequences in their place."""
    if not isinstance(part, dict):
        return
    yield part
    for key in _SEQUENCES:
        inner = part.get(key)
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step)


def _name(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    return kind[:40] if isinstance(kind, str) else "a step without a type"


def _check_step(step: Mapping[str, Any]) -> float:
    """How many times as long a step may make a text. Old files leave out its type."""
    if not isinstance(step.get("type", ""), str | None):
        raise TokenizerFault("has a type that is no word")
    growth = 1.0
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    least = 1
    if isinstance(regex, str):
        try:
            least = check_pattern(regex)
        except PatternFault as fault:
            raise TokenizerFault(f"has the pattern {regex[:60]!r}, which {fault}") from None
    content = step.get("content")
    if pattern is not None and isinstance(content, str):  # Replace
        growth *= _replaced(pattern, content, least)
    for key in ("prepend", "replacement"):  # in front of every piece, of one byte at least
        if isinstance(step.get(key), str):
            if not step[key]:
                raise TokenizerFault(f"has an empty {key!r}")
            growth *= 1 + _bytes(step[key])
    if step.get("type") == "ByteLevel" or "trim_offsets" in step:
        growth *= 2
    if _CHARSMAP in step or step.get("type") == "Precompiled":
        growth *= _check_charsmap(step.get(_CHARSMAP))
    if step.get("length", 1) == 0:
        raise TokenizerFault("has the length 0")
    if step.get("stop", 0) != 0:
        raise TokenizerFault(f"has a stop of {step['stop']!r:.40}; only 0 is known")
    if isinstance(step.get("special_tokens"), dict):
        _check_template(step)
    return growth


def _replaced(pattern: Any, content: str, least: int) -> float:
    text = pattern.get("String") if isinstance(pattern, dict) else pattern
    if isinstance(text, str):
        least = _bytes(text)
    if least == 0:
        raise TokenizerFault("replaces nothing by something")
    return max(1.0, _bytes(content) / least)


def _check_charsmap(text: Any) -> float:
    if not isinstance(text, str):
        raise TokenizerFault(f"has no {_CHARSMAP}")
    try:
        data = base64.b64decode(text, validate=True)
        if base64.b64encode(data).decode() != text:  # others are stricter readers
            raise ValueError
        return growth_by(data)
    except CharsmapFault as fault:
        raise TokenizerFault(f"has a {_CHARSMAP} {fault}") from None
    except ValueError:
        raise TokenizerFault(f"has a {_CHARSMAP} that is not base64") from None


def _check_template(step: Mapping[str, Any]) -> None:
    tokens = {
        name: len(token["ids"])
        for name, token in step["special_tokens"].items()
        if isinstance(token, dict) and isinstance(token.get("ids"), list)
    }
    for key in ("single", "pair"):
        pieces = step.get(key)
        if not isinstance(pieces, list):
            continue
        added = texts = 0
        for piece in pieces:
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = special.get("id") if isinstance(special, dict) else None
            if isinstance(name, str):
                if name not in tokens:
                    raise TokenizerFault(f"adds {name[:40]!r}, which it does not describe")
                added += tokens[name]
            texts += special is None
            text = piece.get("Sequence") if isinstance(piece, dict) else None
            if key == "single" and isinstance(text, dict) and text.get("id") != "A":
                raise TokenizerFault("puts a second text where there is one")
        if added > _MOST_ADDED or texts > 2 or (key == "single" and texts != 1):
            raise TokenizerFault(f"adds {added:,} tokens to {texts:,} texts")


def _check_added(file: Mapping[str, Any]) -> None:
    added = file.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise TokenizerFault("added_tokens: expected a list of objects")
    _check_ids(file.get("model"), added)
    strips = any(step.get("type") == "Strip" for step in _steps(file.get("normalizer")))
    for token in added:
        content = token.get("content")
        if strips and token.get("normalized") and isinstance(content, str) and not content.strip():
            raise TokenizerFault(f"added_tokens: {content[:40]!r} is stripped to nothing")


def _check_ids(model: Any, added: list[dict[str, Any]]) -> None:
    """No id stands for two tokens: `tokenizers` would give one of them another id, or text."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    by_id: dict[Any, str] = {}
    if isinstance(vocabulary, dict):
        try:
            by_id = {token_id: token for token, token_id in vocabulary.items()}
        except TypeError:
            return  # an id that is none: the reader says so
        if len(by_id) < len(vocabulary):
            twice = next(t for t, token_id in vocabulary.items() if by_id[token_id] != t)
            raise _one_id(twice, by_id[vocabulary[twice]], vocabulary[twice])
    elif isinstance(vocabulary, list):  # Unigram: pieces and scores
        pieces = enumerate(vocabulary)
        by_id = {i: piece[0] for i, piece in pieces if isinstance(piece, list) and piece}
    for token in added:
        token_id, content = token.get("id"), token.get("content")
        if not isinstance(token_id, int) or not isinstance(content, str):
            continue
        if by_id.setdefault(token_id, content) != content:
            raise _one_id(by_id[token_id], content, token_id)


def _one_id(one: object, other: object, token_id: object) -> TokenizerFault:
    return TokenizerFault(f"{one!r:.40} and {other!r:.40} have one id, {token_id!r:.20}")


def _check_model(model: Any) -> None:
    if not isinstance(model, dict):
        return
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > _LONGEST_WORD:
        raise TokenizerFault(f"model: words of {longest:,} characters; at most {_LONGEST_WORD}")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if isinstance(vocabulary, dict) and isinstance(merges, list):
        _check_merges(vocabulary, merges, model.get("continuing_subword_prefix") or "")


def _check_merges(vocabulary: Mapping[str, Any], merges: list[Any], prefix: Any) -> None:
    """What is merged is put together in room for the longest token, without its second prefix."""
    try:
        pairs = [
            merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
            for merge in merges
        ]
        if prefix and not all(
            (merge.partition(" ")[2] if isinstance(merge, str) else merge[1]).startswith(prefix)
            for merge in merges
        ):
            raise TokenizerFault(f"model: merges what does not begin with {prefix[:40]!r}")
    except (TypeError, IndexError):
        raise TokenizerFault("model: merges what is not two texts") from None
    if max(map(_bytes, pairs), default=0) > max(map(_bytes, vocabulary), default=0) + _bytes(
        prefix
    ):
        raise TokenizerFault("model: merges to more than any of its tokens")


def _shrinkage(file: Mapping[str, Any]) -> int | None:
    steps = [step for key in ("normalizer", "pre_tokenizer") for step in _steps(file.get(key))]
    if not all(map(_keeps, steps)) or not _knows_all_bytes(file, steps):
        return None
    added = file.get("added_tokens") or ()
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None  # such a token takes the spaces around it, as many as there are
    return _COMPOSED if any(step.get("type") == "NFC" for step in steps) else 1


def _keeps(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Replace":
        text = (step.get("pattern") or {}).get("String")
        return isinstance(text, str) and _bytes(step.get("content") or "") >= _bytes(text)
    return step.get("type") in _KEEPING and step.get("behavior") != "Removed"


def _knows_all_bytes(file: Mapping[str, Any], steps: list[Mapping[str, Any]]) -> bool:
    """Whether no character is unknown: those are left out, or many of them are one token."""
    model = file["model"] if isinstance(file.get("model"), dict) else {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or model.get("type", "BPE") != "BPE":
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    from tokenizers.pre_tokenizers import ByteLevel

    levels = any(step.get("type") == "ByteLevel" for step in steps)
    return levels and all(character in vocabulary for character in ByteLevel.alphabet())


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
