"""Training text of a conversation: each answer stands after exactly the prompt that generation would show."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.processing import DynImgProcessor

Span = tuple[int, int]


def training_text(processor: DynImgProcessor, messages: list[dict[str, Any]]) -> tuple[str, list[Span]]:
    """The text of a conversation and the spans (start, end in characters) to learn: answers with their end of turn.

    A template may write an answer in another way after it than before it ("assistant \\n" against "assistant\\n", a
    missing end token); what generation shows wins, and an answer always ends with an end token.

    Raises:
        ValueError: an empty answer, or a chat template that rewrites earlier turns.
    """
    text, before, spans = "", "", []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        answer = "".join(item["text"] for item in message["content"]).strip()
        if not answer:
            raise ValueError("an answer is empty")
        prompt = processor.apply_chat_template(messages[:turn], add_generation_prompt=True)
        whole = processor.apply_chat_template(messages[: turn + 1])
        head, found, tail = whole.rpartition(answer)
        if not found or not prompt.startswith(before):
            raise ValueError("this chat template rewrites answers or earlier turns; training cannot follow it")
        lead = head[len(prompt) :] if head.startswith(prompt) else ""
        ending, rest = _ending(tail, processor.tokenizer.eos_token)
        text += prompt[len(before) :] + lead
        spans.append((len(text), len(text) + len(answer + ending)))
        text += answer + ending + rest
        before = whole
    return text, spans


def _ending(tail: str, eos: str) -> tuple[str, str]:
    """What follows an answer: the part to learn, with an end token, and the white space after it."""
    ending = tail.rstrip()
    return (ending, tail[len(ending) :]) if eos in ending else (ending + eos, "")
