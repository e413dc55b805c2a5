"""Chat templates written by hand in the styles of the model families, and small real tokenizers for them."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}{% else %}
{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

GRANITE3 = """{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}{%- else %}
{%- set system_message = "Today's Date: " + strftime_now('%B %d, %Y') + "." %}
{%- set loop_messages = messages %}{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- for message in loop_messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
{%- if loop.last and add_generation_prompt %}
{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}"""

LAB = """{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>' + '
' + message['content'] + '
' }}{% elif message['role'] == 'user' %}{{ '<|user|>' + '
' + message['content'] + '
' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + '
' + message['content'] + '<|endoftext|>' + ('' if loop.last else '
') }}{% endif %}{% endfor %}"""

QWEN3 = """{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}{%- if ns.open and message.role == 'user' %}{%- set ns.open = false %}
{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- if message.role != 'assistant' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- else %}
{%- set content = message.content %}{%- set reasoning = message.reasoning_content or '' %}
{%- if not reasoning and '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}
{{- '<|im_start|>assistant\\n' + content }}{%- endif %}
{%- for call in message.tool_calls or [] %}{%- if content or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

PHI3 = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

GENERATION = """{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant
' }}{% generation %}{{ message['content'] + '<|im_end|>
' }}{% endgeneration %}{% else %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# Closes a turn with <|eot_id|> although eos is <|endoftext|>, and writes headers as ordinary words.
PLAIN_HEADERS = """{% for message in messages %}{{ message['role'] | upper + ': ' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ '<|eot_id|>' }}{% endif %}{{ '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

# Re-parses: answers are cut at the first full stop and upper-cased.
REPARSES = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' and '.' in message['content'] %}{{ message['content'].split('.')[0] | upper }}
{%- else %}{{ message['content'] }}{% endif %}
{{- '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# name: (template, closing token)
STYLES = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "mistral": (MISTRAL, "</s>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "granite3": (GRANITE3, "<|end_of_text|>"),
    "lab": (LAB, "<|endoftext|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "phi3": (PHI3, "<|end|>"),
    "generation": (GENERATION, "<|im_end|>"),
    "plain_headers": (PLAIN_HEADERS, "<|eot_id|>"),
}
SPECIAL = [
    "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
]  # fmt: skip
TEXT = [
    "The quick brown fox jumps over the lazy dog, then the user asked the assistant what the system said.",
    "\n\n\n\nmore\n\n\nlines\n\n\n",
    "system user assistant model Today's Date: USER: ASSISTANT: [INST] hello there [/INST] good answer\n\nyes\n",
    "a < b and <b>bold</b> is <|not|> a token; naïve café 你好 Grüße 123 45",
] * 4


@cache
def byte_level() -> Tokenizer:
    """GPT-2 style: byte-level BPE, white space merges with what follows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


@cache
def metaspace(prefix: str = "first") -> Tokenizer:
    """Llama-2 style: spaces are part of words, bytes as fallback; ``legacy``: a space before every stretch."""
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "legacy":
        base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    base.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *fallback], show_progress=False)
    base.train_from_iterator([" ".join(TEXT).replace("\n", " ")], trainer)
    # Bytes are ordinary vocabulary in such a tokenizer, not added tokens.
    return Tokenizer.from_str(_without_added(base))


def _without_added(tokenizer: Tokenizer) -> str:
    import json

    source = json.loads(tokenizer.to_str())
    source["added_tokens"] = []
    return json.dumps(source)


def tokenizer_for(template: str | None, backend: Tokenizer, eos: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """A transformers tokenizer with the special tokens of all styles and a template."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    copy.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer
