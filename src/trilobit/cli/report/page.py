"""A report as one HTML page, whole in itself: no script, no network. What is missing is told."""

from __future__ import annotations

from collections.abc import Iterator

from trilobit.cli.report import plot
from trilobit.cli.report.parts import (
    NOT_MEASURED,
    Cell,
    Facts,
    bars,
    card,
    curves,
    heading,
    layer_curves,
    legend,
    of,
    safe,
    short,
    table,
)
from trilobit.cli.report.plot import joules
from trilobit.cli.report.quality import perplexities, scores
from trilobit.cli.report.style import STYLE
from trilobit.cli.units import amount, count, size

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


def page(told: Facts, numbers: str) -> str:
    """The page of what `measure` found of some models. numbers: the name of the JSON beside it."""
    models = told["models"]
    speed = models[0]["speed"]
    title = " · ".join(short(model) for model in models)
    lead = (
        f"Measured on {speed['machine']}, with {count(speed['threads'], 'thread')} "
        f"({speed['isa']}), by Trilobit {speed['version']}."
    )
    sections = (
        _glance(models),
        _shape(models),
        _speed(models),
        _memory(models),
        perplexities(models, told["texts"]),
        scores(models),
        _energy(models),
        _layers(models),
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{safe(title)}: Trilobit report</title><style>{STYLE}</style></head>\n"
        f"<body><div class='page'><header><p class='eyebrow'>Trilobit report</p>"
        f"<h1>{safe(title)}</h1><p class='lead'>{safe(lead)}</p>"
        f"{legend(models) if len(models) > 1 else ''}</header>\n"
        f"{''.join(''.join(section) for section in sections)}"
        f"<footer>All numbers stand in <code>{safe(numbers)}</code>, as <code>trilobit "
        "info</code>, <code>bench</code>, <code>perplexity</code> and <code>eval</code> print them "
        "with <code>--json</code>.</footer></div></body></html>\n"
    )


def _glance(models: list[Facts]) -> Iterator[str]:
    yield "<section class='cards'>"
    yield card("Writing", models, of("speed", "decode_tokens_per_s"), "tokens/s")
    yield card("Reading a prompt", models, of("speed", "prefill_tokens_per_s"), "tokens/s")
    yield card("Bits per byte, less is better", models, of("perplexity", "bits_per_byte"), "")
    yield card("Peak memory", models, lambda m: m["speed"]["peak_rss_mb"] or None, "MB")
    yield card("File", models, lambda m: m["info"]["size_bytes"] / 1e6, "MB")
    yield card("Bits a weight, all in all", models, of("info", "bits_per_weight"), "bits")
    yield "</section>\n"


def _shape(models: list[Facts]) -> Iterator[str]:
    yield heading("Shape and bytes", "What the model is, and where its file's bytes go.")

    def config(key: str) -> Cell:
        return lambda m: f"{m['info']['config'][key]:,}"

    rows: dict[str, Cell] = {
        "Family": lambda m: safe(m["info"]["model_type"]),
        "Parameters": lambda m: amount(m["info"]["parameters"]),
        "of them ternary": lambda m: (
            f"{m['info']['ternary_parameters'] / m['info']['parameters']:.1%}"
        ),
        "Bits of a ternary weight": lambda m: f"{m['info']['bits_per_ternary_weight']:.2f}",
        "Context": lambda m: f"{m['info']['context']:,} tokens",
        "Vocabulary": config("vocab_size"),
        "Layers": config("num_hidden_layers"),
        "Hidden size": config("hidden_size"),
        "MLP size": config("intermediate_size"),
        "Heads": config("num_attention_heads"),
        "Heads of keys and values": config("num_key_value_heads"),
    }
    yield table(models, rows)
    parts = [model["info"]["bytes_by_part"] for model in models]
    sizes = [[sum(one.get(p, 0) for p in several) for several in _BYTES.values()] for one in parts]
    yield bars("File", models, list(_BYTES), sizes)


def _speed(models: list[Facts]) -> Iterator[str]:
    first = models[0]["speed"]
    yield heading(
        "Speed",
        f"The median of {count(first['runs'], 'run')}; a thin line goes from the least to the "
        f"most. {first['prompt_tokens']:,} tokens in and {first['generated_tokens']} out, unless "
        "the axis says otherwise. Where models are far apart, the axis is logarithmic.",
    )
    above = {
        key: any(model["speed"][key] > 1 for model in models)
        for key in ("decode_fraction_of_dram", "prefill_fraction_of_int8")
    }
    busy = "the machine was busy while its limit was measured: measure again when it rests"
    yield "<div class='cards'>"
    yield card(
        "Writing, of the rate of memory",
        models,
        lambda m: 100 * m["speed"]["decode_fraction_of_dram"],
        "%",
        note=f"Above 100 % the weights fit into the processor's caches, or {busy}."
        if above["decode_fraction_of_dram"]
        else "",
        most=100,
    )
    yield card(
        "Reading a prompt, of the int8 rate",
        models,
        lambda m: 100 * m["speed"]["prefill_fraction_of_int8"],
        "%",
        note=f"Above 100 % {busy}." if above["prefill_fraction_of_int8"] else "",
        most=100,
    )
    yield card(
        "First token, from nothing loaded",
        models,
        lambda m: 1000 * m["speed"]["first_token_s"],
        "ms",
    )
    yield "</div><div class='plots'>"
    for title, figure in (
        ("Writing", "decode_tokens_per_s"),
        ("Reading a prompt", "prefill_tokens_per_s"),
    ):
        yield curves(f"{title}, by threads", models, figure, "by_threads", "threads")
        yield curves(
            f"{title}, by length of the prompt", models, figure, "by_context", "prompt_tokens"
        )
    yield "</div>"
    alone = [m for m in models if m["speed"]["decode_threads"] < m["speed"]["threads"]]
    if alone:
        yield (
            f"<p class='note'>{', '.join(safe(short(m)) for m in alone)}: one token is too little "
            "work to be shared by all threads, so fewer write.</p>"
        )


def _memory(models: list[Facts]) -> Iterator[str]:
    first = models[0]["speed"]
    yield heading(
        "Memory",
        f"The largest resident memory of a process that reads {first['prompt_tokens']:,} tokens "
        f"and writes {first['generated_tokens']}. All else is mostly Python and its libraries.",
    )
    if all(model["speed"]["peak_rss_mb"] for model in models):
        sizes = [[1e6 * max(0.0, m["speed"][key]) for key in _MEMORY.values()] for m in models]
        yield bars("Peak", models, list(_MEMORY), sizes)
    else:
        yield f"<p class='note'>The peak is {NOT_MEASURED}: this system does not tell it.</p>"

    def cache(tokens: int) -> Cell:
        return lambda m: size(m["info"]["kv_bytes_per_token"] * (tokens or m["info"]["context"]))

    rows = {"Keys and values of a token": cache(1), "of the whole context": cache(0)}
    yield table(models, rows)


def _energy(models: list[Facts]) -> Iterator[str]:
    energies = [model["speed"]["energy"] for model in models]
    counted = all(energy["idle_watts"] is not None for energy in energies)
    reasons = "; ".join(dict.fromkeys(energy["source"] for energy in energies))
    yield heading(
        "Energy",
        "Joules a token. Estimated is the arithmetic alone, operations times what each costs in a "
        "7 nm chip, as the BitNet papers count: without moving a byte, which is most of what a "
        f"real machine pays for. {'Counters' if counted else 'Not measured'}: {reasons}.",
    )

    def cell(phase: str, key: str) -> Cell:
        def text(model: Facts) -> str:
            found = model["speed"]["energy"][phase][key]
            if isinstance(found, dict):
                found = found["7 nm"]
            return NOT_MEASURED if found is None else joules(found)

        return text

    def saved(phase: str) -> Cell:
        def text(model: Facts) -> str:
            found = model["speed"]["energy"][phase]
            return f"{1 - found['estimated']['7 nm'] / found['estimated_float16']['7 nm']:.0%}"

        return text

    measured, estimated = (f"<span class='tag'>{kind}</span>" for kind in ("measured", "estimated"))
    for phase, words in (("decode", "Writing"), ("prefill", "Reading a prompt")):
        rows = {
            f"{words} {estimated}": cell(phase, "estimated"),
            f"with float16 weights {estimated}": cell(phase, "estimated_float16"),
            f"less than float16 {estimated}": saved(phase),
            f"{words} {measured}": cell(phase, "measured"),
            f"above idle {measured}": cell(phase, "above_idle"),
        }
        yield table(models, rows)


def _layers(models: list[Facts]) -> Iterator[str]:
    yield heading(
        "Inside the layers",
        "Which weights are −1, 0 and +1, and how much of its MLP a token needs: what stands behind "
        "a closed gate, or meets a 0, counts for nothing.",
    )
    names = ("−1", "0", "+1")
    keys = "".join(f"<span class='p{i}'><i></i>{name}</span>" for i, name in enumerate(names))
    yield f"<div class='legend parts'>{keys}</div><div class='plots'>"
    for model in models:
        zeros = sum(zero for _, zero, _ in model["shares"]) / len(model["shares"])
        title = f"Weights of {safe(short(model))}, {zeros:.0%} of them 0"
        yield f"<div class='card'><h3>{title}</h3>{plot.columns(names, model['shares'])}</div>"
    if any(model["activity"] for model in models):
        yield layer_curves("Gates of the MLP that are open", models, 0)
        yield layer_curves("Inputs of down_proj that are not 0", models, 1)
    yield "</div>"
    for model in models:
        if not model["activity"]:
            told = f"activations are {NOT_MEASURED}; only relu² closes gates"
        elif model["activity_of"] == "text":
            continue
        else:
            told = "activations of random tokens; with --text FILE they are of a text"
        yield f"<p class='note'>{safe(short(model))}: {told}.</p>"
