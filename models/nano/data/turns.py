"""Short ways to write a conversation, for the sample makers."""

import random

from ds4_daemon.text.conversation import Conversation, Message, Role, Tool

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a kind assistant. Answer briefly.", "Be brief.",
    "Answer in one sentence.", "You are a friendly helper.", "Help the user.",
    "You are a small language model that runs on the user's own machine.", "Be polite and clear.",
    "Answer honestly. If you do not know, say so.", "You answer questions about texts.",
)  # fmt: skip


def user(text: str) -> Message:
    return Message(Role.USER, text)


def assistant(text: str, reasoning: str = "") -> Message:
    return Message(Role.ASSISTANT, text, reasoning)


def conversation(
    rng: random.Random,
    messages: list[Message],
    *,
    thinking: bool = False,
    tools: tuple[Tool, ...] = (),
    system: float = 0.25,
) -> Conversation:
    """A conversation; with the chance `system` a system prompt opens it, if none does."""
    if messages[0].role is not Role.SYSTEM and rng.random() < system:
        messages = [Message(Role.SYSTEM, rng.choice(SYSTEM_PROMPTS)), *messages]
    return Conversation(tuple(messages), tools, thinking=thinking)
