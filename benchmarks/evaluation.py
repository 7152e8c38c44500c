"""Are scores and log-likelihoods those of lm-eval's own `hf` model, on stock transformers?

    python benchmarks/evaluation.py FOLDER [MODEL] [--tasks arc_easy,mmlu,...] [--limit 200]

Asks both the same questions of the files in FOLDER (docs/evaluation.md names them), in one process
and zero-shot: Trilobit, and transformers from a checkpoint that `convert` has made, in float32.
Compares every log-likelihood, output and score. They differ where a rounding tie falls (an
activation in the middle between two int8 codes, docs/exactness.md). How much that may be, tells a
third: the same transformers with its other attention ("eager", the same sums in another order). Of
mmlu a part of --limit is asked in each of its subjects. A few minutes a task.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cli
import numpy as np
from facts import check, facts, write
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from trilobit import LLM, _native
from trilobit.conversion import convert
from trilobit.evaluate.harness import Harness
from trilobit.evaluate.humaneval import output_requests
from trilobit.evaluate.local import LOCAL_TASKS, subjects
from trilobit.evaluate.tasks import folder_task
from trilobit.evaluate.texts import read_texts
from trilobit.hub.models import known_file

MMLU, WIKITEXT, HUMANEVAL = "mmlu", "wikitext", "humaneval"
TASKS = (*LOCAL_TASKS, WIKITEXT, HUMANEVAL)
# Of a log-likelihood of L: ABSOLUTE + RELATIVE * |L|. A tie that is rounded the other way moves the
# logarithm of a token by about 0.01, and a long context holds several. Transformers is as far from
# itself where it sums in another order.
ABSOLUTE, RELATIVE = 0.1, 0.005

Models = dict[str, Any]  # trilobit, hf, hf_eager
Answers = dict[str, list[Any]]  # of each: outputs, or log-likelihoods with whether they are greedy


def task_row(models: Models, manager: TaskManager, folder: Path, name: str, limit: int) -> Any:
    """A task of lm-eval's, as its evaluator asks it."""
    several = subjects(folder) if name == MMLU else [name]
    each = max(1, limit // len(several))
    found = {
        kind: simple_evaluate(
            model,
            tasks=[folder_task(folder, one) for one in several],
            num_fewshot=0,
            limit=each,
            bootstrap_iters=0,
            task_manager=manager,
        )
        for kind, model in models.items()
    }
    rows = {
        kind: [row for one in several for row in result["samples"][one]]
        for kind, result in found.items()
    }
    scores = {}
    for key, value in found["hf"]["results"][several[0]].items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        scores[metric if kept == "none" else f"{metric} ({kept})"] = {
            kind: float(np.mean([result["results"][one][key] for one in several]))
            for kind, result in found.items()
        }
    # A task with several filters has each answer once for each of them.
    kept = rows["hf"][0]["filter"]
    answers = {
        kind: [resp[0] for row in several if row["filter"] == kept for resp in row["resps"]]
        for kind, several in rows.items()
    }
    asked = sum(found["hf"]["n-samples"][one]["effective"] for one in several)
    return {"task": name, "questions": asked, "scores": scores, **apart(answers)}


def texts_row(models: Models, folder: Path, limit: int) -> Any:
    """Long paragraphs of WikiText-2, by rolling windows."""
    (whole,) = read_texts(folder / "wikitext2_test.raw.xz")
    pages = [one for one in whole.split("\n") if len(one) > 1000][:limit]
    requests = [Instance("loglikelihood_rolling", {}, (page,), i) for i, page in enumerate(pages)]
    answers = {
        kind: [(total, True) for total in model.loglikelihood_rolling(requests, disable_tqdm=True)]
        for kind, model in models.items()
    }
    return {"task": WIKITEXT, "questions": len(pages), "scores": {}, **apart(answers)}


def programs_row(models: Models, folder: Path, limit: int) -> Any:
    """What is written for HumanEval, in half of the context; it is not run."""
    requests = output_requests(folder, limit, most_tokens=models["trilobit"].max_length // 2)
    answers = {
        kind: model.generate_until(requests, disable_tqdm=True) for kind, model in models.items()
    }
    return {"task": HUMANEVAL, "questions": len(requests), "scores": {}, **apart(answers)}


def apart(answers: Answers) -> dict[str, Any]:
    """How far ours are from those of hf, and hf's other attention from hf."""
    wanted = answers["hf"]
    if isinstance(wanted[0], str):
        equal = {
            kind: sum(a == b for a, b in zip(answers[kind], wanted, strict=True))
            for kind in ("trilobit", "hf_eager")
        }
        return {"outputs": len(wanted), "equal_outputs": equal}
    totals = {kind: np.array([total for total, _ in several]) for kind, several in answers.items()}
    allowed = ABSOLUTE + RELATIVE * np.abs(totals["hf"])
    found: dict[str, Any] = {"log_likelihoods": len(wanted)}
    for kind in ("trilobit", "hf_eager"):
        signed = totals[kind] - totals["hf"]
        far = np.abs(signed)
        found[kind] = {
            "largest_difference": float(f"{far.max():.3g}"),
            "median_difference": float(f"{np.median(far):.2g}"),
            "mean_difference": float(f"{signed.mean():.2g}"),  # with its sign: ties have no side
            "of_tolerance": float(f"{(far / allowed).max():.2g}"),
            "other_greedy": sum(
                a != b for (_, a), (_, b) in zip(answers[kind], wanted, strict=True)
            ),
        }
    return found


def told(row: dict[str, Any]) -> str:
    """A row in words."""
    scores = "; ".join(
        f"{metric} {one['trilobit']:.6g}, hf {one['hf']:.6g}, eager {one['hf_eager']:.6g}"
        for metric, one in row["scores"].items()
    )
    if "outputs" in row:
        equal = row["equal_outputs"]
        far = f"{equal['trilobit']} of {row['outputs']} outputs equal, eager {equal['hf_eager']}"
    else:
        ours, other = row["trilobit"], row["hf_eager"]
        far = (
            f"{row['log_likelihoods']} log-likelihoods: largest difference "
            f"{ours['largest_difference']} (eager {other['largest_difference']}), "
            f"median {ours['median_difference']} ({other['median_difference']})"
        )
    return f"{row['task']:14} {row['questions']:4} questions: {scores or 'no score'}; {far}"


def others(path: Path | None, names: list[str]) -> list[dict[str, Any]]:
    """Rows of other tasks that a result has from before: all at once take an hour."""
    if path is None or not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    return [row for row in rows if row["task"] not in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="has the files of the tasks")
    parser.add_argument("model", nargs="?", default="trilobit-stories-5m")
    parser.add_argument("--tasks", default=",".join(TASKS), help="joined by commas; all of them")
    parser.add_argument("--limit", type=cli.whole(), default=200, help="questions of each task")
    parser.add_argument("--batch", type=cli.whole(), default=8, help="of the hf models")
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), default=1)
    parser.add_argument("--json", type=Path, help="written after each task; has others' rows kept")
    arguments = parser.parse_args()
    check(arguments.json)
    names = arguments.tasks.split(",")
    if unknown := sorted(set(names) - set(TASKS)):
        parser.error(f"{unknown[0]}: no task; give some of {', '.join(TASKS)}")
    path = known_file(arguments.model)
    if path is None:
        parser.error(f"{arguments.model}: not here; pull it first")
    warnings.simplefilter("ignore")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    about = facts()
    about["versions"] |= {name: version(name) for name in ("lm_eval", "transformers", "torch")}
    about |= {"model": path.stem, "shots": 0, "isa": _native.isa()}
    about["tolerance"] = {"absolute": ABSOLUTE, "relative": RELATIVE}
    manager, rows = TaskManager(), others(arguments.json, names)
    with (
        tempfile.TemporaryDirectory() as folder,
        LLM(path, threads=arguments.threads, kv_dtype="f32") as llm,
    ):
        stock = Path(folder) / "stock"
        convert(path, stock)
        options = {"pretrained": str(stock), "device": "cpu", "dtype": "float32"}
        options["batch_size"] = arguments.batch
        models = {
            "trilobit": Harness(llm),
            "hf": HFLM(**options),
            "hf_eager": HFLM(**options, attn_implementation="eager"),
        }
        for name in names:
            if name == WIKITEXT:
                row = texts_row(models, arguments.folder, arguments.limit)
            elif name == HUMANEVAL:
                row = programs_row(models, arguments.folder, arguments.limit)
            else:
                row = task_row(models, manager, arguments.folder, name, arguments.limit)
            rows.append({**row, "limit": arguments.limit})
            print(told(row), flush=True)
            if arguments.json:
                write(arguments.json, {**about, "results": rows})
    wide = [
        row["task"] for row in rows if "trilobit" in row and row["trilobit"]["of_tolerance"] > 1
    ]
    if wide:
        cli.fail(f"log-likelihoods are further apart than the tolerance: {', '.join(wide)}")


if __name__ == "__main__":
    cli.run(main)
