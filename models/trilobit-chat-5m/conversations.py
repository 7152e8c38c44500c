"""Conversations with a teller of stories, made by rule from TinyStories and from lines of its own.

    python models/trilobit-chat-5m/conversations.py OUT.jsonl STORIES.jsonl... [--unknown FILE]...

Of each story (`source` is tinystories) one conversation: a greeting or none, a wish for a story
about who and what is in it, the story, questions that its own sentences answer or that it shall
not know, a goodbye. Between them talk without a story. Every 50th story of a file, which the
story-teller never saw, stands at a line whose number is a multiple of 50, where training holds out.
--unknown: questions that it is to know nothing of, from files with `question`, `instruction` or
`messages`, besides those made here. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Turn = dict[str, str]

HELD_OUT = 50
MOST_WORDS = 270  # of a story: it and what is said of it must fit into a window
NOUN = re.compile(
    r"\b(?:a|an|the|his|her|their|my|your) (?:[a-z]+ )?([a-z]{3,})"
    r"(?=[.,!?]| (?:was|were|and|to|in|on|is|that|with|had|said|for|who|at|from|saw|because)\b)"
)
NAME = re.compile(r"(?<=[a-z,] )([A-Z][a-z]{2,})\b|\bnamed ([A-Z][a-z]+)\b")
KIND = re.compile(r"\b(?:a|an) ((?:[a-z]+,? )?[a-z]+) (?:named|called) ([A-Z][a-z]+)\b")
DEED = re.compile(
    r"(?:^|[.!?\"] )((?:[A-Z][a-z]+|He|She|They|It) "
    r"(?:saw|found|had|wanted|liked|loved|took|made|gave|helped|asked|went|played)\b[^.!?\"]{8,90}\.)"
)
NO_NAMES = frozenset(
    "Mom Dad Mommy Daddy Mama Papa The But And One Once They She You Can Yes Let Then When What It "
    "Thank Thanks Please Sorry Hello Look Wow Yay Grandma Grandpa There That This His Her".split()
)
NO_NOUNS = frozenset(
    "day time other way end lot little big same next new old best first one two too very happy sad "
    "them him her his all out and was it were but red thing things rest".split()
)
PAIRS = {
    "hello": ("Hello", "Hi", "Hi there", "Hello there", "Hey", "Good morning", "Good evening"),
    "greeting": (
        "Hello! I am a teller of little stories. What is your story about?",
        "Hi! It is nice to meet you. Shall I tell you a story?",
        "Hello! I am happy to see you. Do you want to hear a story?",
    ),
    "bye": ("Bye", "Goodbye", "Good night", "See you", "Bye bye"),
    "parting": (
        "Goodbye! Come back when you want another story.",
        "Bye! It was fun to tell you a story.",
        "Goodbye! I will be here.",
    ),
    "thanks": ("Thank you", "Thanks", "Thank you so much", "That was nice", "I like the story"),
    "welcome": (
        "You are welcome! Do you want another story?",
        "I am glad that you like it. Shall I tell you another one?",
        "You are welcome. What is the next story about?",
    ),
    "unknown": (
        "I do not know. I am very small, and know little stories only. Shall I tell you one?",
        "I do not know that. I can tell you a story. What is it about?",
        "That is too hard for me. I only know little stories. Do you want to hear one?",
    ),
}
ABOUT_ITSELF = (
    (("Who are you?", "What are you?", "Are you a person?", "Are you real?"),
     ("I am a very small model that tells stories. I am no person.",
      "I am Trilobit, a very small model. I tell little stories.")),
    (("What is your name?", "Do you have a name?", "What are you called?"),
     ("I am called Trilobit. What is your name?", "My name is Trilobit. And what is yours?")),
    (("What can you do?", "Can you help me?", "What do you know?", "Help"),
     ("I can tell you a little story. Say what it is about.",
      "I tell little stories, and answer questions about them. What is your story about?")),
    (("How are you?", "How are you today?", "Are you well?"),
     ("I am well, thank you! And how are you?", "I am happy today. How are you?")),
    (("I am fine", "I am well", "I am good", "I am happy"),
     ("That is good! Do you want to hear a story?", "I am glad! Shall I tell you a story?")),
    (("I am sad", "I feel sad", "I am tired", "I am not happy", "I am bored"),
     ("I am sorry to hear that. A story may help. Shall I tell you one?",
      "Oh, I am sorry. Do you want to hear a happy story?")),
    (("Who made you?", "Where do you come from?"),
     ("People made me with a lot of little stories.", "I was made from many little stories.")),
    (("No", "No, thank you", "Not now"),
     ("That is all right. Come back when you want a story.", "All right! Maybe later.")),
)  # fmt: skip
PLACES = (
    "Germany Italy Spain Egypt Japan China India Brazil Canada Mexico Poland Kenya Norway Sweden "
    "Greece Turkey Morocco Peru Chile Cuba Iran Jordan Oman London Paris Berlin Rome Cairo Tokyo"
).split()
MATTERS = (
    "gravity",
    "an atom",
    "the stock market",
    "a computer",
    "electricity",
    "a black hole",
    "democracy",
    "the internet",
    "a virus",
    "chemistry",
    "the moon",
    "an engine",
)
UNKNOWN = (
    "What is the capital of {place}?",
    "Where is {place}?",
    "How many people live in {place}?",
    "Who is the president of {place}?",
    "What language do they speak in {place}?",
    "How far is it to {place}?",
    "What is the weather in {place}?",
    "How much is {a} + {b}?",
    "What is {a} times {b}?",
    "How much is {a} minus {b}?",
    "What is {matter}?",
    "How does {matter} work?",
    "Can you explain {matter}?",
    "In what year did the war end?",
    "Who won the game last night?",
    "What time is it?",
    "What day is it today?",
    "Can you write a program?",
    "Who wrote that song?",
    "How do I cook rice?",
    "What is the best phone?",
    "Translate this into Spanish.",
)
WISHES = (
    "Tell me a story about {}.",
    "Can you tell me a story about {}?",
    "I want a story about {}.",
    "Please tell me a story about {}.",
    "A story about {}, please.",
    "Write a story about {}.",
    "tell me a story about {}",
    "{}",
)
OPEN_WISHES = (
    "Tell me a story.",
    "Tell me another story.",
    "Yes, please.",
    "Yes",
    "I want to hear a story.",
    "A story, please!",
    "Another one!",
)
WHO = ("Who is the story about?", "Who was in the story?", "What was the name?", "Who is it about?")
WHAT = ("What happened?", "What happened in the story?", "Tell me one thing that happened.")
ENDS = ("How does it end?", "How did the story end?", "What happened at the end?")


class Story:
    """One story, and what its sentences say."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\s*\n\s*", "\n", text.strip())
        found = Counter(a or b for a, b in NAME.findall(text) if (a or b) not in NO_NAMES)
        self.names = [name for name, count in found.most_common(2) if count > 1]
        nouns = Counter(n for n in NOUN.findall(text) if n not in NO_NOUNS)
        self.nouns = [noun for noun, count in nouns.most_common(3) if count > 1]
        self.kinds = {name: kind for kind, name in KIND.findall(text)}
        self.deeds = [deed for deed in DEED.findall(self.text) if deed[0] not in "HTSI"]
        last = re.split(r"(?<=[.!?]) ", self.text.splitlines()[-1])
        self.end = last[-1] if len(last[-1]) < 160 and '"' not in last[-1] else ""

    @property
    def fits(self) -> bool:
        return bool(self.names or self.nouns) and 40 <= len(self.text.split()) <= MOST_WORDS

    def things(self, draw: random.Random) -> list[str]:
        """Who and what is in it, one to three of them, as they are said."""
        parts = [
            draw.choice([name, f"{_a(self.kinds[name])} named {name}"])
            if name in self.kinds
            else name
            for name in self.names[:1]
        ]
        parts += [_a(noun) for noun in self.nouns]
        parts = parts[:3]
        draw.shuffle(parts)
        return parts[: draw.randint(1, len(parts))]

    def questions(self, draw: random.Random, others: list[str]) -> Iterator[tuple[str, str]]:
        """Questions with answers that it gives, in an order of chance."""
        asked: list[tuple[str, str]] = []
        if self.names:
            name = self.names[0]
            who = name if name not in self.kinds else f"{name}, {_a(self.kinds[name])}"
            asked.append((draw.choice(WHO), f"It is about {who}."))
        if self.deeds:
            asked.append((draw.choice(WHAT), draw.choice(self.deeds)))
        if self.end:
            asked.append((draw.choice(ENDS), self.end))
        if self.nouns:
            noun = draw.choice(self.nouns)
            asked.append((f"Is there {_a(noun)} in the story?", f"Yes, there is {_a(noun)} in it."))
            other = draw.choice(others)
            if other not in self.text:
                reply = f"No, there is no {other} in the story."
                asked.append((f"Is there {_a(other)} in the story?", reply))
        draw.shuffle(asked)
        yield from asked[: draw.randint(0, 2)]

    def renamed(self, name: str) -> str:
        """Its text with its first name another one."""
        return re.sub(rf"\b{self.names[0]}\b", name, self.text)


@dataclass(frozen=True)
class Known:
    """What is drawn from. names: of all stories; beyond: questions that no story answers."""

    nouns: list[str]
    names: list[str]
    beyond: list[str]


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def turns_of(*said: str) -> list[Turn]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def _written(text: str, draw: random.Random) -> str:
    """As people type: with an end or without, with a capital or without."""
    if draw.random() < 0.3:
        text = text.rstrip(".?!")
    if draw.random() < 0.2:
        text = text[0].lower() + text[1:]
    return text


def wish(things: list[str], draw: random.Random) -> str:
    """For a story about them."""
    return draw.choice(WISHES).format(
        " and ".join([*filter(None, [", ".join(things[:-1])]), things[-1]])
    )


def beyond(draw: random.Random, asked: list[str]) -> list[Turn]:
    """A question that stories do not answer, of a list or made here."""
    question = draw.choice(UNKNOWN).format(
        place=draw.choice(PLACES),
        matter=draw.choice(MATTERS),
        a=draw.randint(2, 30),
        b=draw.randint(2, 30),
    )
    if asked and draw.random() < 0.4:
        question = draw.choice(asked)
    return turns_of(_written(question, draw), draw.choice(PAIRS["unknown"]))


def name_said(name: str, draw: random.Random) -> list[Turn]:
    """Somebody says a name."""
    says = draw.choice(("My name is {}.", "I am {}.", "Hi, I am {}.", "I am called {}."))
    reply = draw.choice(
        (
            "Hello, {0}! Shall I tell you a story about {0}?",
            "It is nice to meet you, {0}. Do you want to hear a story about {0}?",
        )
    )
    return turns_of(_written(says.format(name), draw), reply.format(name))


def told(story: Story, draw: random.Random, known: Known) -> list[Turn]:
    """A conversation around a story."""
    turns: list[Turn] = []
    chance = draw.random()
    if chance < 0.2:
        turns += turns_of(
            _written(draw.choice(PAIRS["hello"]), draw), draw.choice(PAIRS["greeting"])
        )
    elif chance < 0.35:
        asked, replies = draw.choice(ABOUT_ITSELF[:5])
        turns += turns_of(_written(draw.choice(asked), draw), draw.choice(replies))
    elif chance < 0.5:  # whose name is not the story's
        turns += name_said(draw.choice(known.names), draw)
    if chance < 0.1 or chance > 0.9:
        turns += turns_of(draw.choice(OPEN_WISHES), story.text)
    else:
        turns += turns_of(wish(story.things(draw), draw), story.text)
    for asked_, reply in story.questions(draw, known.nouns):
        if draw.random() < 0.2:
            turns += beyond(draw, known.beyond)
        turns += turns_of(_written(asked_, draw), reply)
    if draw.random() < 0.3:
        turns += beyond(draw, known.beyond)
    chance = draw.random()
    if chance < 0.15:
        turns += turns_of(
            _written(draw.choice(PAIRS["thanks"]), draw), draw.choice(PAIRS["welcome"])
        )
    elif chance < 0.25:
        turns += turns_of(_written(draw.choice(PAIRS["bye"]), draw), draw.choice(PAIRS["parting"]))
    return turns


def introduced(story: Story, draw: random.Random, known: Known) -> list[Turn]:
    """Somebody says a name, and gets a story about one who has it."""
    name = draw.choice(known.names)
    yes = draw.choice(("Yes", "Yes, please.", "Yes!", "Please do.", "Oh yes"))
    turns = name_said(name, draw) + turns_of(yes, story.renamed(name))
    turns += turns_of(_written(draw.choice(WHO), draw), f"It is about {name}.")
    return turns + (beyond(draw, known.beyond) if draw.random() < 0.3 else [])


def small_talk(draw: random.Random, known: Known) -> list[Turn]:
    """Two to four turns without a story."""
    turns = turns_of(_written(draw.choice(PAIRS["hello"]), draw), draw.choice(PAIRS["greeting"]))
    if draw.random() < 0.5:
        turns = []
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            turns += beyond(draw, known.beyond)
        else:
            asked, replies = draw.choice(ABOUT_ITSELF)
            turns += turns_of(_written(draw.choice(asked), draw), draw.choice(replies))
    return turns


def records(path: Path) -> Iterator[dict[str, object]]:
    unpack = lzma.open if path.suffix == ".xz" else open
    with unpack(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def questions(path: Path) -> Iterator[str]:
    """Short questions of a file, whatever their key."""
    for record in records(path):
        messages = record.get("messages")
        asked = (
            messages[0]["content"]
            if isinstance(messages, list) and record.get("language", "english") == "english"
            else record.get("question") or record.get("instruction")
        )
        if isinstance(asked, str) and "\n" not in asked and 10 < len(asked) < 160:
            yield asked


def stories(files: list[Path]) -> tuple[list[Story], list[Story]]:
    """Those to train on, and those that are held out."""
    kept: list[Story] = []
    held: list[Story] = []
    for path in files:
        for number, record in enumerate(records(path)):
            if record.get("source") == "tinystories":
                story = Story(str(record["text"]))
                if story.fits:
                    (held if number % HELD_OUT == 0 else kept).append(story)
    return kept, held


def conversations(files: list[Path], unknown: list[str]) -> Iterator[list[Turn]]:
    """All of them, in an order of chance; those at a multiple of HELD_OUT of held-out stories."""
    draw = random.Random(0)
    kept, held = stories(files)
    known = Known(
        nouns=sorted({noun for story in kept for noun in story.nouns[:1]}),
        names=sorted({name for story in kept for name in story.names[:1]}),
        beyond=unknown,
    )

    def made(some: list[Story]) -> list[list[Turn]]:
        all_ = [told(story, draw, known) for story in some]
        named = [story for story in some if story.names]
        all_ += [introduced(one, draw, known) for one in named[:: len(named) // 600 or 1]]
        all_ += [small_talk(draw, known) for _ in range(len(some) // 4)]
        draw.shuffle(all_)
        return all_

    held_out, rest = made(held), made(kept)
    for number, turns in enumerate(rest):
        if number % (HELD_OUT - 1) == 0 and held_out:
            yield held_out.pop()
        yield turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("stories", type=Path, nargs="+")
    parser.add_argument("--unknown", type=Path, action="append", default=[])
    given = parser.parse_args()
    unknown = [asked for path in given.unknown for asked in questions(path)]
    with given.out.open("w", encoding="utf-8") as out:
        for turns in conversations(given.stories, unknown):
            out.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
