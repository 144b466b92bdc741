"""A program in ten lines: a conversation with the daemon's model, printed as it comes."""

import sys

from ds4_client import Chat, Client, Delta, Message

with Client(name="one_prompt") as client:
    chat = Chat([Message("user", "Tell me a story about a fox and a lighthouse.")], thinking=False)
    with client.generate(chat, max_tokens=120, seed=2) as events:
        for event in events:
            if isinstance(event, Delta) and event.content:
                sys.stdout.write(event.content)
                sys.stdout.flush()
