"""`ds4ctl estimate`: what a prompt would cost now: tokens, seconds, memory. Nothing runs."""

from typing import TYPE_CHECKING, Any

import click

from ds4ctl.asking import prompt_of
from ds4ctl.cache_text import many, size, span
from ds4ctl.options import generation_options, home_option, json_option, open_client
from ds4ctl.output import plain, tell, write_json

if TYPE_CHECKING:
    from ds4.v1.inference_pb2 import EstimateResponse


@click.command()
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Take PROMPT as plain text instead of a chat turn.")
@generation_options
@json_option
@home_option
def estimate(
    prompt: str | None,
    raw: bool,
    as_json: bool,
    system: str | None,
    thinking: bool | None,
    effort: Any,
    show_reasoning: bool | None,
    **options: Any,
) -> None:
    """Tell what `ds4ctl run` with these options would cost now, and run nothing.

    PROMPT is what standard input holds if it is absent or "-".
    """
    asked = prompt_of(prompt, raw=raw, system=system, thinking=thinking, effort=effort)
    with open_client() as client:
        answer = client.estimate(asked, **options)
    if as_json:
        write_json(plain(answer))
    else:
        tell(estimate_lines(answer))


def estimate_lines(answer: "EstimateResponse") -> list[str]:
    """The figures in words."""
    parts = [
        (answer.cached_live_tokens, "in memory"),
        (answer.cached_restored_tokens, "on disk"),
        (answer.prefill_tokens, "to compute"),
    ]
    split = ", ".join(f"{count:,} {where}" for count, where in parts if count)
    lines = [f"prompt   {many(answer.prompt_tokens, 'token')}" + (f": {split}" if split else "")]
    if answer.HasField("refusal"):
        refusal = answer.refusal
        lines.append(f"refused  {refusal.message}")
        return lines + ([f"         {refusal.hint}"] if refusal.hint else [])
    known = answer.HasField("first_token_s")
    when = f"in about {span(answer.first_token_s)}" if known else "no speed was measured yet"
    before = many(answer.queue_position, "request") + " before it"
    lines.append(f"first    {when}" + (f", {before}" if answer.queue_position else ""))
    lines.append(f"memory   {size(answer.need_bytes)} of {size(answer.headroom_bytes)} free")
    return lines
