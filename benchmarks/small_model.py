"""Make a small model folder from data: a byte-level BPE tokenizer and a Llama with random weights.

    python -m benchmarks.small_model OUT --data FILE [FILE ...] [--vocab 4096] [--hidden 128] [--layers 4]

A model of this size trains at thousands of tokens a second on two cores, so a whole data set can be run through.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sengi.data.formats import read_conversations
from sengi.model.tokenizer_files import save_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = 20_000  # enough text for a vocabulary of a few thousand


def make_small_model(out: Path, files: list[str], vocab: int, hidden: int, layers: int) -> int:
    """Write the folder; returns the number of parameters."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_texts(files), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[2], pad_token=SPECIAL[3])
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=None,
        pad_token_id=3,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    return sum(parameter.numel() for parameter in model.parameters())


def _texts(files: list[str]) -> Iterator[str]:
    rows = itertools.chain.from_iterable(itertools.islice(read_conversations(file), ROWS) for file in files)
    for row in rows:
        if not isinstance(row, Exception):
            yield from (str(message["content"]) for message in row.messages)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    count = make_small_model(arguments.out, arguments.data, arguments.vocab, arguments.hidden, arguments.layers)
    print(f"{arguments.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
