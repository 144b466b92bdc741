"""Two agents in one program, both asking the same model at the same time."""

import asyncio

from ds4_client import AsyncClient, Chat, Message


async def agent(client: AsyncClient, name: str, task: str) -> None:
    chat = Chat([Message("system", f"You are {name}."), Message("user", task)])
    answer = await client.run(chat, max_tokens=100, seed=3)
    print(f"{name}: {answer.text}", flush=True)


async def main() -> None:
    async with AsyncClient(name="two_agents") as client:
        await asyncio.gather(
            agent(client, "the planner", "Plan a walk."),
            agent(client, "the critic", "What could go wrong on a walk?"),
        )


asyncio.run(main())
