"""Whether a dear grammar compiles at all, found out where it may take too long, or too much.

Compiling cannot be interrupted, and there are sources of a few thousand characters that take
minutes: hundreds of patterns, each compared with every other. Shorter ones still begin with a text
of millions of characters, which the first step looks for. So both are tried in a process of their
own, which is ended when its time is over; the vocabulary there is that of bytes.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TRIAL_S = 5.0  # of computing, with the start of the process; what is of use takes a second
_WAITING = 6  # times as long it may take by the clock, on a machine that is busy elsewhere
_MEMORY_BYTES = 2_000_000_000
# Of the one text that an output must begin with: as many as the characters of any source.
_MOST_FORCED = 300_000

# Counted work: of compiling a lexer, of a step. Twice what large schemas were seen to need.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_items_in_row": 1_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}

_COUNTED = sys.platform != "win32"  # the seconds that a process computes

# On a small stack, so that what passes here overflows nobody's.
_PROGRAM = """
import sys, threading
sys.path.insert(0, sys.argv[1])
try:
    import resource
    seconds = int(sys.argv[5])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
source, limits = sys.stdin.buffer.read().decode("utf-8"), LLParserLimits(**eval(sys.argv[3]))
def run():
    matcher = LLMatcher(LLTokenizer("byte"), source, log_level=0, limits=limits)
    if len(matcher.compute_ff_bytes()) > int(sys.argv[4]):
        print("long")
        return
    matcher.compute_bitmask()
    print("done")
threading.stack_size(1 << 19)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def try_out(source: str) -> str | None:
    """What is wrong with compiling a source of llguidance's at all; None: nothing, it may be done.

    Whether it is sound is not asked.
    """
    import llguidance

    place = str(Path(llguidance.__file__).parent.parent)
    if not sys.executable or not os.path.exists(sys.executable):
        return "may take too long to be compiled here without a trial; make it shorter and simpler"
    limits = [str(_MEMORY_BYTES), repr(LIMITS), str(_MOST_FORCED), str(math.ceil(TRIAL_S))]
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, place, *limits]
    try:
        done = subprocess.run(
            command,
            input=source.encode("utf-8", "replace"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TRIAL_S * (_WAITING if _COUNTED else 1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _late()
    except OSError as error:
        return f"may take too long to be compiled without a trial, and none can be run ({error})"
    if _COUNTED and done.returncode == -signal.SIGXCPU:
        return _late()
    if done.stdout.strip() == b"long":
        return f"begins with a text of more than {_MOST_FORCED:,} bytes; make it shorter"
    if done.stdout.strip() != b"done":
        return "takes too much memory to compile, or is nested too deeply; make it simpler"
    return None


def _late() -> str:
    return f"takes longer than {TRIAL_S:.0f} s to compile; make it simpler"
