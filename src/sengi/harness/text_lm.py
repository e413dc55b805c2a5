"""The text side of a model for lm-eval: how texts become tokens, and conversations texts.

Exactly as lm-eval's own ``hf`` class does it (``HFLM`` of 0.4.13), so that both models are asked the same: a text that
begins with the bos token gets no second one, the space before a continuation belongs to the continuation, an empty
context is the bos or eos token. A chat template that prints today's date gets a fixed one, so that tomorrow's scores
are comparable.
"""

from __future__ import annotations

import logging
from functools import cached_property, lru_cache, partial
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import InputError, MaskError, ModelError
from sengi.harness.lm_eval_api import TemplateLM, has_bos_prefix, resolve_max_length
from sengi.model.turn_end import chat_template

log = logging.getLogger(__name__)
CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers' own mark


class TextLM(TemplateLM):
    """What lm-eval asks of a model about texts; its answers come from the class below this one.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        max_length: context in tokens; None asks the model's configuration.
        add_bos_token: put a bos token before every text; None leaves it to the tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        add_bos_token: bool | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer: Any = tokenizer
        self.add_bos_token = add_bos_token
        self._max_length = max_length
        # Two texts are remembered: the choices of a question come one by one, each as whole and as context.
        # Not of a method: a cache that held this object would keep the model in memory until Python looks for cycles.
        self._remember = lru_cache(maxsize=2)(partial(_encode, tokenizer))

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration; lm-eval takes the model's name from it."""
        return self.model.config

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a document."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before the first token where there is no context: bos, else eos."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The context in tokens."""
        return self._max_length or resolve_max_length(self.model.config, self.tokenizer)

    @property
    def max_gen_toks(self) -> int:
        """Longest answer of a task that names no length."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of prompts."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a text; a text that begins with the bos token gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = False if has_bos_prefix(string, self._prefix_text) else self.add_bos_token
        return self._remember(string, add_special_tokens)[-(left_truncate_len or 0) :]

    def prompt_ids(self, context: str) -> list[int]:
        """Token ids of a prompt to be continued, at least one.

        hf looks for the bos token here, for log-likelihoods for the prefix token: without bos the two differ.
        """
        has_bos = has_bos_prefix(context, self.tokenizer.bos_token)
        return _encode(self.tokenizer, context, False if has_bos else self.add_bos_token) or [self.prefix()]

    def tok_decode(self, tokens: int | list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    @cached_property
    def _prefix_text(self) -> str | None:
        return None if self.prefix_token_id is None else self.tok_decode(self.prefix_token_id, False)

    @cached_property
    def _template(self) -> Any:
        template = chat_template(self.tokenizer)
        if template is None:
            raise ModelError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template; leave --apply_chat_template out "
                "or add chat_template.jinja to the folder"
            )
        return template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation under the model's chat template.

        Args:
            chat_history: messages with ``role`` and ``content``.
            add_generation_prompt: end with the header of the model's turn; without, the last message stays open, for
                the model to continue it.

        Raises:
            MaskError: the template refuses the conversation.
            ModelError: there is no template.
        """
        messages = [dict(message) for message in chat_history]
        if not add_generation_prompt:
            messages[-1]["content"] += CONTINUE
        try:
            text = self._template.render(messages, None, add_generation_prompt)
        except MaskError as error:
            without = [message for message in messages if message["role"] != "system"]
            if error.reason != "template_error" or len(without) == len(messages):
                raise
            log.warning("the chat template refuses system messages: they are left out, as lm-eval's hf class does")
            text = self._template.render(without, None, add_generation_prompt)
        if add_generation_prompt:
            return str(text)
        place = text.rindex(CONTINUE.strip())
        # Where the template trimmed the message, the space before the mark goes too.
        return text[:place] if text[place:].startswith(CONTINUE) else text[:place].rstrip()

    def encode_request(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context (at least one) and of its continuation (none where it merged into the context)."""
        if context:
            before, after = self._encode_pair(context, continuation)
            return (before or [self.prefix()]), after  # white space alone moves to the continuation
        after = self.tok_encode(continuation, add_special_tokens=False)
        if after[:1] == [self.prefix()]:
            return after[:1], after[1:]
        return [self.prefix()], after

    def prefix(self) -> int:
        """The token before a text without context.

        Raises:
            InputError: the tokenizer has neither bos nor eos.
        """
        if self.prefix_token_id is None:
            raise InputError(
                f"{self.tokenizer.name_or_path}: the tokenizer has neither bos nor eos, so a text without context "
                "cannot be scored; set eos_token in tokenizer_config.json"
            )
        return self.prefix_token_id


def _encode(tokenizer: Any, string: str, add_special_tokens: bool | None) -> list[int]:
    chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    return list(tokenizer.encode(string, **chosen))
