"""Tasks by lm-evaluation-harness: our numbers are those of its own model class on stock weights."""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its many dependencies
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    from trilobit.evaluate import tasks
    from trilobit.evaluate.harness import Harness
    from trilobit.evaluate.tasks import evaluate

from trilobit import LLM, RequestError, SamplingParams, TrilobitError
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.cli.eval import command
from trilobit.cli.report import command as report
from trilobit.conversion import convert

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = "dog cat ball house tree bird boat cake car hat bear girl boy fish frog king moon".split()


@pytest.fixture(scope="module")
def bundled() -> Path:
    path = bundled_models().get(DEFAULT)
    if path is None:
        pytest.skip("no bundled model in this installation")
    return path


@pytest.fixture(scope="module")
def ours(bundled: Path) -> Iterator[Harness]:
    with LLM(bundled, threads=1, kv_dtype="f32") as llm:
        yield Harness(llm)


@pytest.fixture(scope="module")
def theirs(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("stock") / "stories"
    convert(bundled, directory)
    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few records of each kind of task, in their publishers' fields."""
    folder = tmp_path_factory.mktemp("data")
    choices = {"text": ["a red ball", "the sun", "two"], "label": ["A", "B", "C"]}
    arc = [
        {"question": f"What did the {word} see?", "choices": choices, "answerKey": "ABC"[at % 3]}
        for at, word in enumerate(WORDS)
    ]
    lambada = [
        {"context": f"The {word} was big. Tom liked the", "continuation": word} for word in WORDS
    ]
    gsm8k = [{"question": f"How many is a {word}?", "answer": "One. #### 1"} for word in WORDS[:3]]
    letters = ["A", "B", "C", "D"]
    commonsense = [
        {"query": f"Question: Who is {word}?\nA. a\nB. b\nC. c\nD. d\nAnswer:", "choices": letters}
        | {"gold": at % 4}
        for at, word in enumerate(WORDS)
    ]
    winograd = [
        {"context_options": [f"Tom saw the {word} when Tom", f"Tom saw the {word} when the {word}"]}
        | {"continuation": "ran away.", "gold": at % 2}
        for at, word in enumerate(WORDS)
    ]
    trivia = [
        {
            "question": f"What is a {word}",
            "answer": {"aliases": [word, word.upper()], "value": word},
        }
        for word in WORDS[:3]
    ]
    mmlu = [
        {"question": f"What is a {word}?", "choices": ["a", "b", "c", "d"], "answer": at % 4}
        | {"subject": ("anatomy", "virology")[at % 3 == 0]}
        for at, word in enumerate(WORDS)
    ]
    for name, records in (
        ("commonsense_qa", commonsense),
        ("winograd_wsc", winograd),
        ("trivia_qa_rc.wikipedia.nocontext_validation", trivia),
        ("mmlu_test", mmlu),
        ("ai2_arc_ARC-Easy_validation", arc),
        ("lambada_openai", lambada),
        ("gsm8k_test", gsm8k),
    ):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    return folder


FEW = {"gsm8k": 3, "triviaqa": 3}


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=number)
        for number, one in enumerate(arguments)
    ]


def pairs() -> list[tuple[str, str]]:
    """Endings that share contexts, no context at all, spaces at the edge, one that is too long."""
    shared = [
        (f"Once there was a {one}. The", f" {two} ran.") for one in WORDS[:3] for two in WORDS
    ]
    long = "The dog ran. " * 300
    return [*shared, ("", "Once upon a time"), ("Tom had a ", "ball"), (long, "The dog"), shared[0]]


def test_log_likelihoods_are_those_of_the_reference(ours: Harness, theirs: Any) -> None:
    requests = instances("loglikelihood", pairs())
    found = ours.loglikelihood(requests, disable_tqdm=True)
    wanted = theirs.loglikelihood(requests, disable_tqdm=True)
    apart = np.abs(np.array([one for one, _ in found]) - [one for one, _ in wanted])
    # A rounding tie moves one token's logarithm by some 1e-2.
    assert apart.max() < 0.1
    assert np.median(apart) < 1e-3
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert found[0] == found[-1]


def test_contexts_are_cut_as_the_reference_cuts_them(ours: Harness, theirs: Any) -> None:
    """At their left, so that one token more than the context is left, the last one foretold."""
    most = ours.llm.context
    assert ours.max_length == theirs.max_length == most
    ids = [0, *(5 + number % 90 for number in range(most + 40))]
    for kept in (most, most + 1, most + 2, most + 40):
        request = [(None, ids[: kept - 3], ids[kept - 3 : kept])]
        [(found, _)] = ours._loglikelihood_tokens(request, disable_tqdm=True)
        [(wanted, _)] = theirs._loglikelihood_tokens(request, disable_tqdm=True)
        assert found == ours.llm.score(ids[:kept][-most - 1 :], first=min(kept, most + 1) - 3).total
        # Ties, in 500 tokens: transformers' own two attentions part by 0.278 (docs/evaluation.md).
        assert found == pytest.approx(wanted, abs=0.3)


def test_prompts_of_outputs_are_cut_as_the_reference_cuts_them(ours: Harness) -> None:
    context = "The dog ran to the big house. " * 100
    options = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    [found] = ours.generate_until(instances("generate_until", [(context, options)]), True)
    kept = ours.tok_encode(context)[-(ours.llm.context - 8) :]
    assert found == ours.llm.generate(kept, SamplingParams(max_tokens=8, temperature=0)).text
    options["max_gen_toks"] = ours.llm.context
    with pytest.raises(RequestError, match="a task wants 512 tokens, and the context is 512"):
        ours.generate_until(instances("generate_until", [(context, options)]), True)


def test_batches_change_no_bit_of_a_score(ours: Harness) -> None:
    requests = instances("loglikelihood", pairs())
    together = ours.loglikelihood(requests, disable_tqdm=True)
    assert len(together) > 50
    assert [ours.loglikelihood([one], disable_tqdm=True)[0] for one in requests[::7]] == together[
        ::7
    ]


def test_endings_of_one_context_read_it_once(bundled: Path, monkeypatch: Any) -> None:
    ran: list[Any] = []
    run = LLM._run

    def watched(self: LLM, sequences: list[Any], **options: Any) -> None:
        run(self, sequences, **options)
        ran.extend(sequences)

    monkeypatch.setattr(LLM, "_run", watched)
    contexts = [f"{word} " + "The dog ran to the big house. " * 10 for word in WORDS[:3]]
    ends = (" The end.", " It was red.", " He ran.", " a")
    with LLM(bundled, threads=1) as llm:
        asked = [(context, end) for context in contexts for end in ends]
        Harness(llm).loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
        blocks = [(len(llm.encode(context)) - 1) // 32 * 32 for context in contexts]
    cached = [sequence.cached_tokens for sequence in ran]
    assert min(blocks) >= 64
    assert cached[:3] == [0, 0, 0]  # one of each context
    assert sorted(cached[3:]) == sorted(3 * blocks)


def test_rolling_log_likelihoods_are_those_of_the_reference(ours: Harness, theirs: Any) -> None:
    texts = ["Once upon a time there was a bird.", "The dog ran to the big house. " * 100]
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    found = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(theirs.loglikelihood_rolling(requests, True), rel=1e-3)


def test_outputs_are_those_of_the_reference(ours: Harness, theirs: Any) -> None:
    options = {"until": [".", "\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = instances("generate_until", [(f"Once there was a {w}", options) for w in WORDS[:6]])
    found = ours.generate_until(requests, disable_tqdm=True)
    same = [a == b for a, b in zip(found, theirs.generate_until(requests, True), strict=True)]
    assert sum(same) >= 5  # a tie may turn one
    assert not any("." in text for text in found)


def test_tasks_of_a_folder_score_as_the_reference(
    ours: Harness, theirs: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["arc_easy", "lambada_openai", "gsm8k", "commonsense_qa", "wsc273", "triviaqa"]
    scores = evaluate(ours.llm, names, data=data, shots=1, limit=6)
    # The same tasks, asked of lm-eval's own class.
    monkeypatch.setattr(tasks, "Harness", lambda llm, progress: theirs)
    monkeypatch.setattr(theirs, "cut", set(), raising=False)  # it does not say what it cuts
    wanted = evaluate(ours.llm, names, data=data, shots=1, limit=6)
    assert {one.task for one in scores} == set(names)
    for one, other in zip(scores, wanted, strict=True):
        assert (one.task, one.metric) == (other.task, other.metric)
        assert (one.questions, one.shots) == (FEW.get(one.task, 6), 1)
        assert one.value == pytest.approx(other.value, rel=1e-2)


def test_the_comparison_with_the_reference_runs(bundled: Path, data: Path, tmp_path: Path) -> None:
    """benchmarks/evaluation.py, whose result stands in the documentation."""
    script = Path(__file__).parents[2] / "benchmarks/evaluation.py"
    done = subprocess.run(
        [
            *(sys.executable, script, data, bundled, "--tasks", "arc_easy,gsm8k"),
            *("--limit", "2", "--json", tmp_path / "found.json"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    chosen, written = json.loads((tmp_path / "found.json").read_text())["results"]
    assert (chosen["questions"], chosen["log_likelihoods"]) == (2, 6)
    for score in (*chosen["scores"].values(), *written["scores"].values()):
        assert score["trilobit"] == score["hf"]
    assert chosen["trilobit"]["of_tolerance"] <= 1
    assert (written["questions"], written["outputs"]) == (2, 2)


def test_mmlu_is_the_mean_of_all_questions_of_its_subjects(ours: Harness, data: Path) -> None:
    *subjects, whole = evaluate(ours.llm, ["mmlu"], data=data)
    assert [one.task for one in subjects] == ["mmlu_anatomy", "mmlu_virology"]
    assert [one.questions for one in subjects] == [len(WORDS) - 6, 6]
    right = sum(one.value * one.questions for one in subjects)
    assert (whole.task, whole.questions) == ("mmlu", len(WORDS))
    assert whole.value == pytest.approx(right / len(WORDS))
    (alone,) = evaluate(ours.llm, ["mmlu_virology"], data=data)
    assert alone.value == subjects[1].value


def test_the_command_of_lm_eval_knows_the_model(
    ours: Harness, bundled: Path, tmp_path: Path
) -> None:
    assert get_model("trilobit") is Harness
    (tmp_path / "dogs.jsonl").write_text(
        "".join(
            json.dumps({"begun": f"The {word}", "ends": [" ran home.", " of two"], "right": 0})
            + "\n"
            for word in WORDS
        )
    )
    settings = {
        "task": "dogs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "dogs.jsonl")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{begun}}",
        "doc_to_choice": "ends",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "dogs.yaml").write_text(json.dumps(settings))  # JSON is YAML
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trilobit.evaluate.harness", "run", "--model", "trilobit"),
            *("--model_args", f"pretrained={bundled},threads=1", "--batch_size", "4"),
            *("--tasks", "dogs", "--include_path", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = re.search(r"^\|dogs *\|.*\|acc *\|[^|]*\|([0-9. ]+)\|", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout
    ends = [(f"The {word}", end) for word in WORDS for end in (" ran home.", " of two")]
    scores = [score for score, _ in ours.loglikelihood(instances("loglikelihood", ends))]
    right = [one > other for one, other in zip(scores[::2], scores[1::2], strict=True)]
    assert float(told[1]) == pytest.approx(sum(right) / len(WORDS), abs=1e-4)


def test_the_command(bundled: Path, data: Path) -> None:
    names = "arc_easy,lambada_openai"  # of one lm-eval prints something while it is measured
    arguments = [str(bundled), "--tasks", names, "--data", str(data), "--limit", "4"]
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert [row["metric"] for row in found["scores"]] == ["acc", "acc_norm", "perplexity", "acc"]
    # Three answers; none to choose among.
    assert [row["chance"] for row in found["scores"]] == [pytest.approx(1 / 3)] * 2 + [None] * 2
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert f"{found['scores'][0]['value']:.4f}" in shown
    assert "(4 questions, 0 examples, by chance 0.3333)" in shown
    assert shown.count("by chance") == 2
    assert "cut" not in shown
    arguments += ["--context", "8"]
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert shown.count("; 4 cut to fit the context)") == 4


def test_a_report_has_the_scores_that_eval_gives(bundled: Path, data: Path, tmp_path: Path) -> None:
    quick = ("--runs", "1", "--generate", "2", "--longest", "8", "--threads", "1")
    asked = ("--tasks", "arc_easy,wsc273", "--limit", "6", "--data", str(data))
    page = tmp_path / "page.html"
    done = CliRunner().invoke(
        report, [str(bundled), *quick, *asked, "--out", str(page)], catch_exceptions=False
    )
    assert (done.exit_code, done.stdout) == (0, "")
    found = json.loads(page.with_suffix(".json").read_text())
    scores = evaluate(LLM(bundled, threads=1), ["arc_easy", "wsc273"], data=data, limit=6)
    assert found["models"][0]["tasks"] == [dataclasses.asdict(score) for score in scores]
    assert found["tasks"] == ["arc_easy", "wsc273"]
    assert "arc_easy, acc <small>6 questions, chance 0.333</small>" in page.read_text()
    assert "wsc273, acc <small>6 questions, chance 0.5</small>" in page.read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--limit", "3"], "--limit and --data are of tasks; name some by --tasks"),
        (["--tasks", ","], "--tasks names no task"),
        (["--tasks", "piqa,stsb"], "stsb is not in a report; trilobit eval --tasks stsb"),
        (["--tasks", "no_such_task"], "no_such_task: lm-eval has no such task"),
        (["--tasks", "piqa", "--data", "."], "no piqa_plain_text_validation.jsonl (or .xz)"),
    ],
)
def test_tasks_of_a_report_are_looked_at_before_its_measurements(
    bundled: Path, tmp_path: Path, words: list[str], reason: str
) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(report, [str(bundled), *words, "--out", str(page)])
    assert isinstance(done.exception, TrilobitError)
    assert reason in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --tasks or --suite"),
        (("--tasks", "arc_easy", "--suite", "bitnet-b1.58"), "one of the two"),
        (("--tasks", ","), "names no task"),
        (("--tasks", "no_such_task"), "no_such_task: lm-eval has no such task"),
        (
            ("--tasks", "nq_open", "--data", "."),
            "nq_open: data in a folder is known of arc_challenge",
        ),
        (("--tasks", "mmlu", "--data", "."), "no mmlu_test.jsonl (or .xz) for mmlu"),
        (("--tasks", "piqa", "--data", "."), "no piqa_plain_text_validation.jsonl (or .xz)"),
    ],
)
def test_impossible_wishes_are_refused(
    bundled: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(command, [str(bundled), *arguments])
    assert isinstance(done.exception, TrilobitError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lambada_openai.jsonl", '{"context": "a"}\n', "line 1 is no record of lambada_openai"),
        ("lambada_openai.jsonl", "\n", "holds no record"),
        ("lambada_openai.jsonl", "[" * 100_000, "line 1 is no record"),
        ("lambada_openai.jsonl.xz", "x", "is no whole .xz file"),
    ],
)
def test_damaged_data_are_refused(
    ours: Harness, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TrilobitError, match=message):
        evaluate(ours.llm, ["lambada_openai"], data=tmp_path)


def test_what_lm_eval_can_ask_no_questions_of_is_one_line(
    ours: Harness, data: Path, tmp_path: Path
) -> None:
    record = {"goal": "To eat", "sol1": "sit", "sol2": "stand", "label": 9}
    (tmp_path / "piqa_plain_text_validation.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RequestError, match=r"lm-eval can ask no questions of piqa .*records whole"):
        evaluate(ours.llm, ["piqa"], data=tmp_path)
    with pytest.raises(RequestError, match=r"of arc_easy \(ValueError: .*more of them than exampl"):
        evaluate(ours.llm, ["arc_easy"], data=data, limit=1, shots=5000)
    with pytest.raises(RequestError, match="the model has no chat template"):
        evaluate(ours.llm, ["arc_easy"], data=data, limit=1, chat=True)


def test_a_model_without_a_tokenizer_is_refused(model_file: Path) -> None:
    with LLM(model_file) as llm:
        if llm.tokenizer is None:
            with pytest.raises(RequestError, match="tokenizer"):
                Harness(llm)
