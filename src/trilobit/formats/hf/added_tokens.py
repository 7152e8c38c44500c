"""The tokens that the files beside a tokenizer name: merged into it as transformers does.

`added_tokens_decoder`, `bos_token` and its like, and `additional_special_tokens` stand in
`tokenizer_config.json`; where that has no decoder, also in `added_tokens.json` and
`special_tokens_map.json`. What transformers would give an id other than the stated one is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError
from trilobit.formats.files import read_json
from trilobit.text.tokenizer_file import has_too_many_parts

SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_ADDED = "added_tokens.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# In the order in which transformers gives ids to those that have none.
_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is found in a text before the text is split, as tokenizer.json has it."""

    content: str
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedTokens:
    """What the files say: tokens with their ids, and those that have a role, by its name."""

    by_id: Mapping[int, AddedToken]
    roles: Mapping[str, AddedToken]  # bos_token ...
    special: tuple[AddedToken, ...] = ()  # with no role of their own
    where: Path

    def named(self) -> Iterator[AddedToken]:
        """The tokens that are special by their names, in transformers' order."""
        order = {name: n for n, name in enumerate(_ROLES)}
        for name in sorted(self.roles, key=lambda name: order.get(name, len(order))):
            yield self.roles[name]
        yield from self.special


def read_added_tokens(source: Path) -> AddedTokens:
    """What a Hugging Face directory names. FormatError for what is no token."""
    where = source / SETTINGS
    settings = read_json(where) if os.path.exists(where) else {}
    by_id: dict[int, AddedToken] = {}
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        for key, value in decoder.items() if isinstance(decoder, dict) else [("", None)]:
            # Eighteen digits: Python reads no more than 4,300 of them, and no id has ten.
            token = _token(value, special=False) if isinstance(value, dict) else None
            if not (key.isascii() and key.isdecimal() and len(key) < 18) or token is None:
                raise FormatError(
                    f"{where}: added_tokens_decoder is no tokens by id; download it again"
                )
            by_id[int(key)] = token
    elif os.path.exists(source / SPECIAL):
        more = read_json(source / SPECIAL)
        settings = {**settings, **more}
        if "additional_special_tokens" in more:
            settings["extra_special_tokens"] = more["additional_special_tokens"]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    custom = {key: value for key, value in settings.items() if key.endswith("_token")}
    if isinstance(extra, dict):
        custom |= extra
    roles = {key: token for key, value in custom.items() if (token := _token(value, special=True))}
    listed = [_token(value, special=True) for value in (extra if isinstance(extra, list) else [])]
    added = AddedTokens(
        by_id=by_id,
        roles=roles,
        special=tuple(token for token in listed if token is not None),
        where=where,
    )
    if decoder is None and os.path.exists(source / _ADDED):
        return _with_legacy(added, source / _ADDED)
    return added


def merged(data: bytes, added: AddedTokens, vocab_size: int) -> bytes:
    """A tokenizer.json with the added tokens, the very bytes where it has them all.

    vocab_size: of the model; a token with a role that would have an id behind it is left out, as
    no model can read or write it. FormatError where a stated id is not the token's own.
    """
    raw = _object(data)
    vocabulary = _vocabulary(raw)
    if vocabulary is None:
        return data  # no tokenizer: whoever loads it says why
    stored: dict[str, dict[str, Any]] = {}
    for entry in raw["added_tokens"]:
        stored[entry["content"]] = entry
    ids = {**vocabulary, **{text: entry["id"] for text, entry in stored.items()}}
    texts = {i: text for text, i in ids.items()}
    following = max([len(vocabulary), *(entry["id"] + 1 for entry in stored.values())])
    special = {token.content for token in added.named()}
    # Such a normalizer would find a token at the start of a text alone. transformers' classes for
    # these models have none, whatever their files say.
    never_normalized = _prepends(raw.get("normalizer"))
    changed = False

    def put(token: AddedToken) -> None:
        nonlocal following, changed
        if token.content not in ids:
            ids[token.content], texts[following] = following, token.content
        entry = {"id": ids[token.content], "content": token.content}
        entry |= {flag: getattr(token, flag) for flag in _FLAGS}
        entry["normalized"] = token.normalized and not never_normalized
        following = max(following, entry["id"] + 1)
        if stored.get(token.content) != entry:
            stored[token.content], changed = entry, True

    for token_id, token in sorted(added.by_id.items()):
        if not token.content:
            continue
        other = texts.get(token_id, token.content) != token.content
        if other or ids.get(token.content, following) != token_id:
            raise FormatError(
                f"{added.where}: the added token {token.content!r:.60} has the id {token_id}, "
                "which is not its own; download the tokenizer's files again"
            )
        put(replace(token, special=token.special or token.content in special))
    for token in added.named():
        known = token.content in ids
        if token.content in stored or not token.content or not (known or following < vocab_size):
            continue
        put(token)
    if not changed:
        return data
    raw["added_tokens"] = sorted(stored.values(), key=lambda entry: entry["id"])
    try:
        return json.dumps(raw, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except RecursionError:  # deeper than its reader goes
        return data


def token_ids(data: bytes, tokens: Iterable[str]) -> dict[str, int]:
    """Ids of those tokens that a tokenizer.json has."""
    raw = _object(data)
    vocabulary = _vocabulary(raw)
    if vocabulary is None:
        return {}
    ids = {entry["content"]: entry["id"] for entry in raw["added_tokens"]}
    known = {token: ids.get(token, vocabulary.get(token)) for token in tokens}
    return {token: i for token, i in known.items() if i is not None}


def _object(data: bytes) -> dict[str, Any]:
    """The object that a tokenizer.json is; empty for what is none, which its reader refuses."""
    if has_too_many_parts(data):
        return {}
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _with_legacy(added: AddedTokens, path: Path) -> AddedTokens:
    """With the tokens of `added_tokens.json`, which says of none whether it is special."""
    special = {token.content for token in added.named()}
    by_id: dict[int, AddedToken] = {}
    for text, i in read_json(path).items():
        if type(i) is not int or i < 0:
            raise FormatError(f"{path}: ids are no numbers; download it again")
        by_id[i] = AddedToken(content=text, special=text in special, normalized=text not in special)
    return replace(added, by_id=by_id, where=path)


def _token(value: object, *, special: bool) -> AddedToken | None:
    """A token of a text, or of an object with flags; None for anything else."""
    if isinstance(value, str):
        return AddedToken(content=value, special=special)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        return None
    special = special or value.get("special") is True
    flags = {flag: value[flag] for flag in _FLAGS[:-1] if type(value.get(flag)) is bool}
    return AddedToken(
        content=value["content"], special=special, **{"normalized": not special, **flags}
    )


def _vocabulary(raw: Mapping[str, Any]) -> Mapping[str, int] | None:
    """Tokens and ids of a tokenizer.json without its added ones; None where it has another form.

    Makes a list of the added tokens where there is none.
    """
    model, added = raw.get("model"), raw.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of a Unigram: pairs of text and score
        try:
            vocabulary = {text: i for i, (text, _) in enumerate(vocabulary)}
        except (TypeError, ValueError):
            return None
    if not isinstance(vocabulary, dict) or any(type(i) is not int for i in vocabulary.values()):
        return None
    if added is None and isinstance(raw, dict):
        raw["added_tokens"] = added = []
    fits = isinstance(added, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("content"), str)
        and type(entry.get("id")) is int
        for entry in added
    )
    return vocabulary if fits else None


def _prepends(normalizer: object) -> bool:
    """Whether a normalizer, or a step of it, puts something before a text."""
    if not isinstance(normalizer, dict):
        return False
    steps = normalizer.get("normalizers")
    return any(
        isinstance(step, dict) and step.get("type") == "Prepend"
        for step in [normalizer, *(steps if isinstance(steps, list) else [])]
    )
