"""Write conversations that teach a small model to judge in the words of MT-Bench.

    python -m benchmarks.small_judge OUT.jsonl --data FILE --mt-bench DIR [--conversations 300]

A 135M model that was not taught writes on for thousands of tokens and names no rating. One that was trained on these
for some minutes answers with a sentence and ``[[rating]]``, which is what a run of the whole path needs. What it knows
of quality is no more than is written here, so its ratings say nothing of a model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from sengi.data.formats import read_conversations
from sengi.mt_bench.files import load_bench
from sengi.mt_bench.prompts import prompt_name

LONGEST = 600  # characters of a question or an answer, so that a judgement is a few hundred tokens
VERDICTS = {
    "right": "The answer speaks to the question and says what was asked for. Rating: [[9]]",
    "half": "The answer speaks to the question and breaks off before it is done. Rating: [[5]]",
    "foreign": "The answer does not speak to the question. Rating: [[1]]",
}


def judgements(data: Path, mt_bench: Path, count: int) -> Iterator[dict[str, object]]:
    """Rows of ``messages``: judge prompts filled from the data, and verdicts that are known by construction."""
    prompts = load_bench(mt_bench, "").prompts
    pairs = list(itertools.islice(_pairs(data), 4 * count))
    if len(pairs) < 3:
        raise SystemExit(f"{data}: {len(pairs)} question(s) with a short answer; at least 3 are needed")
    draw = random.Random(0)
    for number in range(count):
        (first, right), (second, wanted), (_, foreign) = draw.sample(pairs, 3)
        kind = list(VERDICTS)[number % len(VERDICTS)]
        turn = 1 + number // len(VERDICTS) % 2
        given = {"right": wanted, "half": wanted[: len(wanted) // 2], "foreign": foreign}[kind]
        prompt = prompts[prompt_name(number % 4 == 0, turn)]
        turns, reference = ((first, second), (right, wanted)) if turn == 2 else ((second, first), (wanted, right))
        asked = prompt.fill(turns, (right, given) if turn == 2 else (given, right), reference)
        answer = {"role": "assistant", "content": VERDICTS[kind]}
        yield {"messages": [*prompt.messages(asked), answer], "topic": kind}


def _pairs(data: Path) -> Iterator[tuple[str, str]]:
    for row in read_conversations(str(data)):
        if not isinstance(row, Exception) and [message["role"] for message in row.messages] == ["user", "assistant"]:
            question, answer = (str(message["content"]) for message in row.messages)
            if len(question) <= LONGEST and 20 <= len(answer) <= LONGEST:
                yield question, answer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="conversations of one question and one answer")
    parser.add_argument("--mt-bench", type=Path, required=True, help="FastChat's files, for the judge prompts")
    parser.add_argument("--conversations", type=int, default=300)
    arguments = parser.parse_args()
    rows = list(judgements(arguments.data, arguments.mt_bench, arguments.conversations))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{arguments.out}: {len(rows)} conversations")


if __name__ == "__main__":
    main()
