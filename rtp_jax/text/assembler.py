"""How do the sampled ids of one completion become its text, cut where it must stop?

Joins `detokenizer.py` and `stop.py`, and keeps ids and text aligned: ids end at the token that
completes a stop string, text is cut before it.  Plain and synchronous; one for each completion.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rtp_jax.errors import InvalidArgument
from rtp_jax.text.detokenizer import Detokenizer
from rtp_jax.text.stop import StopStrings
from rtp_jax.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """What one push adds to a completion."""

    text: str
    num_tokens: int  # how many of the pushed ids stay
    stopped: str | None  # the stop string that ended the completion


class TextAssembler:
    """The text of one completion, as its tokens come."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        stops: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        detokenize: bool = True,
    ):
        if stops and not detokenize:
            raise InvalidArgument(
                "RTPJ-3321 STOP_STRINGS_NEED_TEXT: stop strings are searched in text, and "
                "detokenize=False asks for none. Use stop_token_ids, or detokenize=True.",
                field="stop",
            )
        self._detokenizer = None
        if detokenize:
            self._detokenizer = Detokenizer(
                tokenizer,
                prompt_ids,
                skip_special_tokens=skip_special_tokens,
                spaces_between_special_tokens=spaces_between_special_tokens,
            )
        self._stops = StopStrings(stops, include_stop_str_in_output) if stops else None
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._stopped: str | None = None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Take new ids; after a stop string no id stays."""
        if self._stopped is not None:
            return Piece("", 0, self._stopped)
        if self._detokenizer is None:
            return Piece("", len(token_ids), None)
        if self._stops is None:
            return Piece(self._detokenizer.push(token_ids), len(token_ids), None)
        return self._search(self._detokenizer, self._stops, token_ids)

    def finish(self) -> Piece:
        """Return the text that was still waiting for a token or held back."""
        if self._detokenizer is None or self._stopped is not None:
            return Piece("", 0, self._stopped)
        rest = self._detokenizer.finish()
        if self._stops is None:
            return Piece(rest, 0, None)
        text, self._stopped = self._stops.push(rest, armed=self._num_tokens > self._min_tokens)
        if self._stopped is None:
            text += self._stops.finish().text
        return Piece(text, 0, self._stopped)

    def _search(
        self, detokenizer: Detokenizer, stops: StopStrings, token_ids: Sequence[int]
    ) -> Piece:
        """Go token by token, to know which one completes a stop string."""
        texts = []
        for index, id in enumerate(token_ids):
            # As in vLLM: the first token that may complete a match comes after min_tokens others.
            armed = self._num_tokens >= self._min_tokens
            self._num_tokens += 1
            text, self._stopped = stops.push(detokenizer.push((id,)), armed=armed)
            texts.append(text)
            if self._stopped is not None:
                return Piece("".join(texts), index + 1, self._stopped)
        return Piece("".join(texts), len(token_ids), None)
