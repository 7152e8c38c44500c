"""A model for lm-evaluation-harness, in this process: what its tasks ask, in batches.

Contexts are cut at their left where they are too long, as lm-eval's other models do. Of the endings
of one context the first reads it, and the others find it in the cache.

    from lm_eval import simple_evaluate
    simple_evaluate(Harness(LLM("bitnet-2b")), tasks=["arc_easy"])

lm-eval finds no models of other packages by itself. This module is its command, which knows ours:

    python -m trilobit.evaluate.harness run --model trilobit --model_args pretrained=bitnet-2b ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)

from trilobit.bundled import DEFAULT
from trilobit.errors import RequestError
from trilobit.llm import LLM
from trilobit.progress import Watch, steps
from trilobit.sampling import SamplingParams
from trilobit.text.tokenizer import without_tokenizer

_AT_ONCE = 64  # requests that are given to the engine together
_MOST_OUTPUT = 256  # tokens, where a task does not say; lm-eval's own number

Scored = tuple[float, bool]  # log-likelihood; whether each token was the likeliest


@register_model("trilobit")
class Harness(TemplateLM):  # type: ignore[misc] # lm_eval has no types
    """`LLM` as lm-eval wants it. RequestError for a model without a tokenizer."""

    def __init__(self, llm: LLM, *, progress: Watch | None = None) -> None:
        super().__init__()
        self.llm = llm
        if self.llm.tokenizer is None:
            raise RequestError(without_tokenizer(self.llm.path, ""))
        self._progress = progress
        self.cut: set[tuple[Any, ...]] = set()  # arguments of requests that were not read whole

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> Harness:
        """What `--model_args` makes: `pretrained`, a model, and options of `LLM`.

        additional_config: batch sizes and a device, which the engine chooses itself.
        """
        options = dict(arg_dict)
        return cls(LLM(options.pop("pretrained", DEFAULT), **options))

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Harness:
        """The same of `key=value,key=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # ---- ids ----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The first token that ends a text; the one that begins it, where none ends it."""
        ends = (*self.llm.config.eos_token_ids, self.llm.config.bos_token_id, 0)
        return next(end for end in ends if end is not None)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        begin = self.llm.config.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        """Tokens that are read; one more may be foretold."""
        return self.llm.context

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests is named by."""
        return self.llm.path.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, behind the beginning-of-text token unless that is switched off."""
        ids = self.llm.encode(string)
        return ids[len(self.llm.encode("")) :] if add_special_tokens is False else ids

    # ---- numbers ------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[Scored]:
        cut: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for key, context, ending in requests:
            if not ending:
                raise RequestError("a task has an ending without a token; nothing can be scored")
            kept = (context + ending)[-(self.max_length + 1) :]
            if len(kept) < len(context) + len(ending):
                self.cut.add(key)
            first = max(1, len(kept) - len(ending))
            cut.append((tuple(kept[:first]), tuple(kept[first:])))
        scored: dict[tuple[tuple[int, ...], tuple[int, ...]], Scored] = {}
        tell = None if disable_tqdm else steps(self._progress, "Scoring")
        unique = sorted(set(cut), key=lambda one: (-len(one[0]), one))
        for chunk in _chunks(unique):
            readers = {context: (context, ending) for context, ending in reversed(chunk)}
            readers_first = list(readers.values())
            others = [one for one in chunk if readers[one[0]] != one]
            for several in (readers_first, others):
                if several:
                    scored |= zip(several, self._scores(several), strict=True)
            if tell:
                tell(len(scored), len(unique))
        return [scored[one] for one in cut]

    def _scores(self, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[Scored]:
        ids = [[*context, *ending] for context, ending in pairs]
        for score in self.llm.score(ids, first=[len(context) for context, _ in pairs]):
            yield score.total, bool(score.likeliest.all())

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows that do not overlap."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                # As its other models do it: a begin token is foretold from another one, too.
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            scored = self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)
            totals.append(sum(total for total, _ in scored))
        return totals

    # ---- text ---------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What a model writes up to the first of a task's stop strings."""
        tell = None if disable_tqdm else steps(self._progress, "Writing")
        texts: list[str] = []
        for chunk in _chunks([request.args for request in requests]):
            prompts, params, stops = [], [], []
            for context, options in chunk:
                ours, until = self._params(options)
                room = self.llm.context - ours.max_tokens
                if room < 1:
                    raise RequestError(
                        f"a task wants {ours.max_tokens} tokens, and the context is "
                        f"{self.llm.context}; raise it (this model's ends at "
                        f"{self.llm.config.max_position_embeddings}), or take another model"
                    )
                prompt = self.tok_encode(context)
                if len(prompt) > room:
                    self.cut.add((context,))
                prompts.append(prompt[-room:])
                params.append(ours)
                stops.append(until)
            for done, until in zip(self.llm.generate(prompts, params), stops, strict=True):
                text = done.text
                for stop in until:  # one that the output begins with is cut, too
                    text = text.split(stop)[0] if stop else text
                texts.append(text)
            if tell:
                tell(len(texts), len(requests))
        return texts

    def _params(self, options: dict[str, Any]) -> tuple[SamplingParams, list[str]]:
        tokenizer = self.llm.tokenizer
        assert tokenizer is not None
        end = tokenizer.token(self.eot_token_id)
        until = handle_stop_sequences(options.get("until"), eos=end)
        sampled = options.get("do_sample", options.get("temperature", 0) > 0)
        params = SamplingParams(
            max_tokens=int(options.get("max_gen_toks", _MOST_OUTPUT)),
            temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(options.get("top_p", 1.0)),
            stop=tuple(stop for stop in until if stop),
            seed=0,
        )
        return params.settled(), until  # the task says it all, whatever the model's makers say


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    for begin in range(0, len(items), _AT_ONCE):
        yield items[begin : begin + _AT_ONCE]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
