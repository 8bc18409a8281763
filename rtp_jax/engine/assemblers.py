"""What puts the texts of a request together: an assembler for each completion.

One that is resumed has read the tokens that were sent before, so that characters, spaces and stop
strings go on across the seam as if it had not been there.  Read next: `text/assembler.py`.
"""

from rtp_jax.request import Request
from rtp_jax.text.assembler import TextAssembler
from rtp_jax.text.tokenizer import Tokenizer


def assemblers_of(request: Request, tokenizer: Tokenizer | None) -> list[TextAssembler | None]:
    """Make the assemblers of all completions; None: its text is not wanted, or was all sent."""
    ended = {end.index for end in request.ended}
    return [
        None if index in ended else resumed_assembler(request, index, tokenizer)
        for index in range(request.params.n)
    ]


def resumed_assembler(
    request: Request, index: int, tokenizer: Tokenizer | None
) -> TextAssembler | None:
    """Make the assembler of a completion, behind the tokens that it has already."""
    assembler = new_assembler(request, tokenizer)
    if assembler is not None and request.resumed:
        assembler.push(request.resumed[index])
    return assembler


def new_assembler(request: Request, tokenizer: Tokenizer | None) -> TextAssembler | None:
    """Make an assembler that has read the prompt; None: no text is wanted."""
    params = request.params
    if tokenizer is None or not params.detokenize:
        return None
    return TextAssembler(
        tokenizer,
        request.prompt_token_ids,
        stops=params.stops,
        include_stop_str_in_output=params.include_stop_str_in_output,
        min_tokens=params.min_tokens,
        skip_special_tokens=params.skip_special_tokens,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
    )
