"""Which of its own replies a teller of stories shall prefer, judged by rule.

    python models/trilobit-chat-5m/preferences.py MODEL STORIES.jsonl... [--out OUT.jsonl]
        [--wishes 2000] [--tries 6]

MODEL tells a story several times for each wish. Preferred is the one that has more of what was
wished for, repeats itself less and comes to an end; then it is asked who the story is about and
what stories do not tell, and a wrong answer loses to the right one. Without --out the wishes are
those of held-out stories, told once each, and how often MODEL does right is printed: the figures
of its card. The same model and files give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conversations import PAIRS, WHO, Story, Turn, beyond, name_said, stories, turns_of, wish

from trilobit import LLM, Completion, SamplingParams

MARGIN = 0.25  # less is not worth a preference
RUN = 4  # words that are one phrase
AT_ONCE = 256  # conversations


@dataclass(frozen=True)
class Judged:
    """A story that was told. there: share of what was wished for that is in it; again: share of its
    phrases that it had before."""

    text: str
    there: float
    again: float
    ended: bool

    @property
    def worth(self) -> float:
        """The larger, the better told."""
        return self.there - 3 * self.again - (not self.ended) - (len(self.text.split()) < 50)


def judged(told: Completion, things: list[str]) -> Judged:
    text = told.text.strip()
    words = re.findall(r"[a-z']+", text.lower())
    known = {*words, *(word.removesuffix("s") for word in words)}  # a cat, if there are cats
    phrases = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    asked = [thing.split()[-1].lower() for thing in things]
    return Judged(
        text=text,
        there=sum(word in known for word in asked) / len(asked),
        again=1 - len(set(phrases)) / max(len(phrases), 1),
        ended=told.finish_reason == "stop",
    )


@dataclass
class Talk:
    """A conversation under way. things: what its story is to be about."""

    turns: list[Turn]
    things: list[str]


def begun(some: list[Story], draw: random.Random, names: list[str]) -> Iterator[Talk]:
    """Wishes, one in three behind a name."""
    for story in some:
        things = story.things(draw)
        said = name_said(draw.choice(names), draw) if draw.random() < 1 / 3 else []
        yield Talk([*said, *turns_of(wish(things, draw))], things)


def replies(llm: LLM, talks: list[Talk], seed: int) -> list[Completion]:
    """One for each."""
    params = [
        SamplingParams(max_tokens=300, temperature=0.8, min_p=0.05, seed=seed + number)
        for number in range(len(talks))
    ]
    done: list[Completion] = []
    for first in range(0, len(talks), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        done += llm.chat([talk.turns for talk in talks[some]], params[some])
    return done


def pair(turns: list[Turn], chosen: str, rejected: str) -> dict[str, object]:
    """As trl's preferences are."""
    replied = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"prompt": turns, "chosen": replied[0], "rejected": replied[1]}


def asked(talks: list[Talk], questions: list[str]) -> list[Talk]:
    return [
        Talk([*talk.turns, {"role": "user", "content": question}], talk.things)
        for talk, question in zip(talks, questions, strict=True)
    ]


def preferences(llm: LLM, talks: list[Talk], draw: random.Random, tries: int) -> Iterator[object]:
    """Pairs of stories, then of answers behind the better story."""
    told: list[list[Judged]] = [[] for _ in talks]
    for one in range(tries):
        for number, reply in enumerate(replies(llm, talks, seed=one << 32)):
            told[number].append(judged(reply, talks[number].things))
    behind: list[Talk] = []
    for talk, several in zip(talks, told, strict=True):
        best, worst = (f(several, key=lambda story: story.worth) for f in (max, min))
        if best.worth - worst.worth >= MARGIN and best.there > 0:
            yield pair(talk.turns, best.text, worst.text)
        behind.append(Talk([*talk.turns, {"role": "assistant", "content": best.text}], talk.things))
    who = asked(behind, [draw.choice(WHO) for _ in behind])
    for talk, reply in zip(who, replies(llm, who, seed=1 << 40), strict=True):
        names = Story(talk.turns[-2]["content"]).names
        if names and not set(names) & set(re.findall(r"\w+", reply.text)):
            yield pair(talk.turns, f"It is about {names[0]}.", reply.text.strip())
    far = asked(behind, [beyond(draw, [])[0]["content"] for _ in behind])
    for talk, reply in zip(far, replies(llm, far, seed=1 << 41), strict=True):
        if reply.text.strip() not in PAIRS["unknown"]:
            yield pair(talk.turns, draw.choice(PAIRS["unknown"]), reply.text.strip())


def shares(llm: LLM, talks: list[Talk], draw: random.Random) -> Iterator[tuple[str, float]]:
    """How often it does right, told once each."""
    told = [
        judged(reply, talk.things)
        for reply, talk in zip(replies(llm, talks, seed=0), talks, strict=True)
    ]
    count = len(told)
    yield "of what was wished for is in the story", sum(one.there for one in told) / count
    yield "of stories have all of it", sum(one.there == 1 for one in told) / count
    yield "of a story's phrases of four words came before in it", sum(x.again for x in told) / count
    yield "of stories end within 300 tokens", sum(one.ended for one in told) / count
    behind = [
        Talk([*talk.turns, {"role": "assistant", "content": one.text}], talk.things)
        for talk, one in zip(talks, told, strict=True)
    ]
    named = [talk for talk in behind if Story(talk.turns[-1]["content"]).names]
    who = asked(named, [draw.choice(WHO) for _ in named])
    right = sum(
        bool(set(Story(talk.turns[-2]["content"]).names) & set(re.findall(r"\w+", reply.text)))
        for talk, reply in zip(who, replies(llm, who, seed=1 << 40), strict=True)
    )
    yield "of answers to who the story is about have a name that is often in it", right / len(who)
    for what, before in (("behind a story", behind), ("at first", [Talk([], [])] * len(behind))):
        far = asked(before, [beyond(draw, [])[0]["content"] for _ in before])
        known = sum(
            reply.text.strip() in PAIRS["unknown"] for reply in replies(llm, far, seed=1 << 41)
        )
        yield f"of questions that no story answers are declined {what}", known / len(far)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("stories", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wishes", type=int, default=2000)
    parser.add_argument("--tries", type=int, default=6)
    given = parser.parse_args()
    draw = random.Random(1)
    kept, held = stories(given.stories)
    names = sorted({name for story in kept for name in story.names[:1]})
    with LLM(given.model) as llm:
        if given.out is None:
            for what, share in shares(llm, list(begun(held, draw, names)), draw):
                print(f"{share:6.1%} {what}")
            return
        talks = list(begun(draw.sample(kept, given.wishes), draw, names))
        made = list(preferences(llm, talks, draw, given.tries))
    draw.shuffle(made)
    given.out.write_text(
        "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made), encoding="utf-8"
    )
    print(f"{len(made)} preferences of {len(talks)} wishes")


if __name__ == "__main__":
    main()
