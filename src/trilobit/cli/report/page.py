"""A report as one HTML page, whole in itself: no script, no network. What is missing is told."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trilobit.cli.report import plot
from trilobit.cli.report.plot import Line, number
from trilobit.cli.report.style import STYLE
from trilobit.cli.units import amount, count, size

Facts = dict[str, Any]  # JSON values
_COLOURS = 6

# What a person calls the bytes of a file -> parts of `trilobit info`.
_BYTES = {
    "ternary weights": ("ternary", "scales"),
    "embedding": ("embedding",),
    "output head": ("head",),
    "screen of the head": ("screen",),
    "tokenizer": ("tokenizer",),
    "all else": ("norms", "checksums", "header"),
}
_MEMORY = {"weights": "weights_mb", "keys and values": "kv_cache_mb", "all else": "other_mb"}
_NOT_MEASURED = "<span class='none'>not measured</span>"


def page(told: Facts, numbers: str) -> str:
    """The page of what `measure` found of some models. numbers: the name of the JSON beside it."""
    models = told["models"]
    speed = models[0]["speed"]
    title = " · ".join(_short(model) for model in models)
    lead = (
        f"Measured on {speed['machine']}, with {count(speed['threads'], 'thread')} "
        f"({speed['isa']}), by Trilobit {speed['version']}."
    )
    sections = (_glance, _shape, _speed, _memory, _quality, _energy, _layers)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_safe(title)}: Trilobit report</title><style>{STYLE}</style></head>\n"
        f"<body><div class='page'><header><p class='eyebrow'>Trilobit report</p>"
        f"<h1>{_safe(title)}</h1><p class='lead'>{_safe(lead)}</p>"
        f"{_legend(models) if len(models) > 1 else ''}</header>\n"
        f"{''.join(''.join(section(models, told)) for section in sections)}"
        f"<footer>All numbers stand in <code>{_safe(numbers)}</code>, as <code>trilobit "
        "info</code>, <code>bench</code> and <code>perplexity</code> print them with "
        "<code>--json</code>. The tasks of the papers' tables (ARC, HellaSwag, …) are not measured "
        "here; <code>trilobit eval</code> does.</footer></div></body></html>\n"
    )


# ---- sections ---------------------------------------------------------------------------------


def _glance(models: list[Facts], told: Facts) -> Iterator[str]:
    yield "<section class='cards'>"
    yield _card("Writing", models, lambda m: m["speed"]["decode_tokens_per_s"], "tokens/s")
    yield _card(
        "Reading a prompt", models, lambda m: m["speed"]["prefill_tokens_per_s"], "tokens/s"
    )
    yield _card("Peak memory", models, lambda m: m["speed"]["peak_rss_mb"] or None, "MB")
    yield _card("File", models, lambda m: m["info"]["size_bytes"] / 1e6, "MB")
    yield _card("Bits a weight, all in all", models, lambda m: m["info"]["bits_per_weight"], "bits")
    yield _card(
        "Bits per byte of text", models, _of("perplexity", "bits_per_byte"), "", "lower is better"
    )
    yield "</section>\n"


def _shape(models: list[Facts], told: Facts) -> Iterator[str]:
    yield _heading("Shape and bytes", "What the model is, and where its file's bytes go.")

    def config(key: str) -> Callable[[Facts], str]:
        return lambda m: f"{m['info']['config'][key]:,}"

    yield _table(
        models,
        {
            "Family": lambda m: _safe(m["info"]["model_type"]),
            "Parameters": lambda m: amount(m["info"]["parameters"]),
            "of them ternary": lambda m: (
                f"{m['info']['ternary_parameters'] / m['info']['parameters']:.1%}"
            ),
            "Layers": config("num_hidden_layers"),
            "Hidden size": config("hidden_size"),
            "MLP size": config("intermediate_size"),
            "Heads, for keys and values": lambda m: (
                f"{m['info']['config']['num_attention_heads']}, "
                f"{m['info']['config']['num_key_value_heads']}"
            ),
            "Vocabulary": config("vocab_size"),
            "Context": lambda m: count_of_tokens(m["info"]["context"]),
            "Bits of a ternary weight": lambda m: f"{m['info']['bits_per_ternary_weight']:.2f}",
        },
    )
    pieces = {
        model["name"]: [
            sum(model["info"]["bytes_by_part"].get(part, 0) for part in parts)
            for parts in _BYTES.values()
        ]
        for model in models
    }
    yield _bars(models, list(_BYTES), [pieces[m["name"]] for m in models], "Bytes of the file")


def _speed(models: list[Facts], told: Facts) -> Iterator[str]:
    first = models[0]["speed"]
    yield _heading(
        "Speed",
        "The median of some runs; a thin line goes from the least to the most. "
        f"{count(first['prompt_tokens'], 'token')} in and {first['generated_tokens']} out, unless "
        "the axis says otherwise.",
    )
    yield "<div class='cards'>"
    yield _card(
        "Of the machine's rate of reading memory, when writing",
        models,
        lambda m: 100 * m["speed"]["decode_fraction_of_dram"],
        "%",
        "Above 100 %: the weights fit into the processor's caches."
        if any(m["speed"]["decode_fraction_of_dram"] > 1 for m in models)
        else "",
        most=100,
    )
    yield _card(
        "Of the machine's int8 products, when reading a prompt",
        models,
        lambda m: 100 * m["speed"]["prefill_fraction_of_int8"],
        "%",
        most=100,
    )
    yield _card(
        "First token after a cold start", models, lambda m: m["speed"]["first_token_s"], "s"
    )
    yield "</div><div class='plots'>"
    for title, figure in (
        ("Writing, tokens/s", "decode_tokens_per_s"),
        ("Reading a prompt, tokens/s", "prefill_tokens_per_s"),
    ):
        yield _curves(title, models, figure, "by_threads", "threads")
        yield _curves(title, models, figure, "by_context", "prompt_tokens")
    yield "</div>"
    alone = [m["name"] for m in models if m["speed"]["decode_threads"] < m["speed"]["threads"]]
    if alone:
        names = ", ".join(_safe(_short(m)) for m in models if m["name"] in alone)
        yield (
            f"<p class='note'>A token's step of {names} is too short to be shared: fewer threads "
            "write than read.</p>"
        )


def _memory(models: list[Facts], told: Facts) -> Iterator[str]:
    first = models[0]["speed"]
    yield _heading(
        "Memory",
        f"The largest resident memory of a process with {first['prompt_tokens']} tokens in and "
        f"{first['generated_tokens']} out. All else is mostly Python and its libraries.",
    )
    if not all(m["speed"]["peak_rss_mb"] for m in models):
        yield f"<p class='note'>{_NOT_MEASURED}: this system does not tell.</p>"
        return
    pieces = [[1e6 * max(0.0, m["speed"][key]) for key in _MEMORY.values()] for m in models]
    yield _bars(models, list(_MEMORY), pieces, "Peak memory")
    yield _table(
        models,
        {
            "Keys and values of a token": lambda m: size(m["info"]["kv_bytes_per_token"]),
            "of a full context": lambda m: size(
                m["info"]["kv_bytes_per_token"] * m["info"]["context"]
            ),
        },
    )


def _quality(models: list[Facts], told: Facts) -> Iterator[str]:
    texts = ", ".join(told["texts"])
    yield _heading(
        "How well it foretells text",
        f"Of {texts}, every token once. Bits per byte compare models of different tokenizers."
        if texts
        else "Not measured: give a text, --text FILE.",
    )
    if not texts:
        return

    def of(key: str, digits: int) -> Callable[[Facts], str]:
        get = _of("perplexity", key)
        return lambda m: _NOT_MEASURED if get(m) is None else f"{get(m):,.{digits}f}"

    def by_token(model: Facts) -> str:
        found = model["perplexity"]
        if found is None or found["perplexity"] is None:
            return _NOT_MEASURED
        error = found["standard_error"]
        return f"{found['perplexity']:.3f}" + ("" if error is None else f" ± {error:.3f}")

    yield _table(
        models,
        {
            "Bits per byte": of("bits_per_byte", 4),
            "Perplexity by token": by_token,
            "Perplexity by word": of("perplexity_by_word", 2),
            "Tokens scored": of("tokens", 0),
            "Tokens read together": of("window", 0),
        },
    )


def _energy(models: list[Facts], told: Facts) -> Iterator[str]:
    energies = [model["speed"]["energy"] for model in models]
    measured = [energy["idle_watts"] is not None for energy in energies]
    reasons = dict.fromkeys(e["source"] for e, there in zip(energies, measured, strict=True))
    yield _heading(
        "Energy",
        "Joules a token. Measured is what counters of this machine say. Estimated is the arithmetic "
        "alone, operations times what they cost in a 7 nm chip, as the BitNet papers count: without "
        f"moving a byte. {'' if all(measured) else 'Not measured here: '}{'; '.join(reasons)}.",
    )

    def counted(phase: str, key: str) -> Callable[[Facts], str]:
        def text(model: Facts) -> str:
            value = model["speed"]["energy"][phase][key]
            return _NOT_MEASURED if value is None else f"{number(value)} J"

        return text

    def estimated(phase: str, key: str) -> Callable[[Facts], str]:
        return lambda m: f"{number(m['speed']['energy'][phase][key]['7 nm'])} J"

    def saved(phase: str) -> Callable[[Facts], str]:
        def text(model: Facts) -> str:
            found = model["speed"]["energy"][phase]
            return f"{1 - found['estimated']['7 nm'] / found['estimated_float16']['7 nm']:.0%}"

        return text

    rows: dict[str, Callable[[Facts], str]] = {}
    for phase, words in (("decode", "Writing"), ("prefill", "Reading a prompt")):
        rows |= {
            f"{words} <span class='tag'>measured</span>": counted(phase, "measured"),
            f"{words}, above idle <span class='tag'>measured</span>": counted(phase, "above_idle"),
            f"{words} <span class='tag'>estimated</span>": estimated(phase, "estimated"),
            "the same with float16 weights <span class='tag'>estimated</span>": estimated(
                phase, "estimated_float16"
            ),
            "saved <span class='tag'>estimated</span>": saved(phase),
        }
        yield _table(models, rows)
        rows = {}


def _layers(models: list[Facts], told: Facts) -> Iterator[str]:
    yield _heading(
        "Inside the layers",
        "Which weights are −1, 0 and +1, and how much of its MLP a token needs. Layer 0 reads first.",
    )
    names = ("−1", "0", "+1")
    keys = "".join(f"<span class='p{i}'><i></i>{name}</span>" for i, name in enumerate(names))
    yield f"<div class='legend parts'>{keys}</div><div class='plots'>"
    for model in models:
        drawn = plot.columns(names, model["shares"], "layer")
        zeros = sum(share[1] for share in model["shares"]) / len(model["shares"])
        title = f"Weights of {_safe(_short(model))}: {zeros:.1%} are 0"
        yield f"<div class='card'><h3>{title}</h3>{drawn}</div>"
    able = [(number_, model) for number_, model in enumerate(models) if model["activity"]]
    for which, title in enumerate(("Gates of the MLP that are open", "Inputs of down_proj, not 0")):
        if able:
            curves = [
                Line(
                    name=_short(model),
                    number=i % _COLOURS,
                    points=[
                        (n, one[which], one[which], one[which])
                        for n, one in enumerate(model["activity"])
                    ],
                )
                for i, model in able
            ]
            drawn = plot.lines(curves, "layer", percent=True)
            yield f"<div class='card'><h3>{title}</h3>{drawn}</div>"
    yield "</div>"
    for model in models:
        if not model["activity"]:
            yield (
                f"<p class='note'>{_safe(_short(model))}: activations are {_NOT_MEASURED}; only "
                "relu² makes zeros that are skipped.</p>"
            )
        elif model["activity_of"] != "text":
            yield (
                f"<p class='note'>{_safe(_short(model))}: activations of random tokens; "
                "--text FILE measures them on a text.</p>"
            )


# ---- parts of a section -----------------------------------------------------------------------


def _heading(title: str, note: str) -> str:
    return f"<h2>{title}</h2><p class='note'>{_safe(note)}</p>\n"


def _card(
    title: str,
    models: list[Facts],
    value: Callable[[Facts], float | None],
    unit: str,
    note: str = "",
    *,
    most: float | None = None,
) -> str:
    """A number of each model, large, and as a bar. most: of the bar, else the largest is."""
    values = [value(model) for model in models]
    longest = most or max((v for v in values if v is not None), default=0.0)
    rows = []
    for i, (model, found) in enumerate(zip(models, values, strict=True)):
        key = f"<i class='dot'></i>" if len(models) > 1 else ""
        if found is None:
            rows.append(
                f"<div class='c{i % _COLOURS}'><p class='value none'>{key}not measured</p></div>"
            )
            continue
        track = ""
        if len(models) > 1 or most:
            share = min(100.0, 100 * found / longest) if longest else 0.0
            track = f"<div class='track'><b style='width:{share:.1f}%'></b></div>"
        rows.append(
            f"<div class='c{i % _COLOURS}' title='{_safe(_short(model))}'><p class='value'>{key}"
            f"{number(found)} <small>{unit}</small></p>{track}</div>"
        )
    several = " several" if len(models) > 1 else ""
    told = f"<p class='note'>{note}</p>" if note else ""
    return f"<div class='card{several}'><h3>{title}</h3>{''.join(rows)}{told}</div>"


def _table(models: list[Facts], rows: dict[str, Callable[[Facts], str]]) -> str:
    head = ""
    if len(models) > 1:
        names = "".join(f"<th>{_key(i, model)}</th>" for i, model in enumerate(models))
        head = f"<thead><tr><th></th>{names}</tr></thead>"
    body = "".join(
        f"<tr><th>{title}</th>{''.join(f'<td>{cell(model)}</td>' for model in models)}</tr>"
        for title, cell in rows.items()
    )
    return f"<div class='card wide'><table>{head}<tbody>{body}</tbody></table></div>\n"


def _bars(
    models: list[Facts], names: list[str], pieces: Sequence[Sequence[float]], title: str
) -> str:
    """Stacked bars of bytes, one under the other, and what their colours mean."""
    longest = max(sum(one) for one in pieces)
    used = [i for i in range(len(names)) if any(one[i] for one in pieces)]
    rows = []
    for model, one in zip(models, pieces, strict=True):
        told = [(f"{n}: {size(round(b))}", b) for n, b in zip(names, one, strict=True)]
        name = f" of {_safe(_short(model))}" if len(models) > 1 else ""
        rows.append(f"<h3>{title}{name}: {size(round(sum(one)))}</h3>{plot.bar(told, longest)}")
        if len(models) > 1:
            continue
        names = [f"{n}, {size(round(b))}" for n, b in zip(names, one, strict=True)]
    keys = "".join(f"<span class='s{i}'><i></i>{names[i]}</span>" for i in used)
    return f"<div class='card wide'>{''.join(rows)}<div class='legend parts'>{keys}</div></div>\n"


def _curves(title: str, models: list[Facts], figure: str, along: str, key: str) -> str:
    curves = [
        Line(
            name=_short(model),
            number=i % _COLOURS,
            points=[(one[key], one[figure], *one["spread"][figure]) for one in model[along]],
        )
        for i, model in enumerate(models)
    ]
    across = key if key == "threads" else "tokens before"
    by = "by threads" if key == "threads" else "by length of the prompt"
    return f"<div class='card'><h3>{title}, {by}</h3>{plot.lines(curves, across, log=True)}</div>"


def _legend(models: list[Facts]) -> str:
    keys = "".join(f"<span>{_key(i, model)}</span>" for i, model in enumerate(models))
    return f"<div class='legend'>{keys}</div>"


def _key(i: int, model: Facts) -> str:
    return f"<span class='c{i % _COLOURS}'><i class='dot'></i></span>{_safe(_short(model))}"


def _of(part: str, key: str) -> Callable[[Facts], float | None]:
    return lambda model: model[part] and model[part][key]


def count_of_tokens(tokens: int) -> str:
    """With a comma for people: `4,096 tokens`."""
    return f"{tokens:,} tokens"


def _short(model: Facts) -> str:
    """A name as it was given; of a path, its last part."""
    name: str = model["name"]
    if name.endswith((".trilobit", ".gguf")) or name.startswith(("/", ".")):
        return name.rstrip("/").rpartition("/")[2].removesuffix(".trilobit") or name
    return name


def _safe(text: str) -> str:
    return html.escape(text)
