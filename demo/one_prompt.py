"""A program in ten lines: a conversation with the daemon's model, printed as it comes."""

import sys

from ds4_client import Client, Delta

with Client(name="one_prompt") as client:
    prompt = "Tell me a story about a fox and a lighthouse."
    with client.generate(prompt, max_tokens=120, seed=2) as events:
        for event in events:
            if isinstance(event, Delta) and event.content:
                sys.stdout.write(event.content)
                sys.stdout.flush()
