"""What does an answer look like?  Outputs become OpenAI's JSON, whole or in pieces.

Counts are those of the gRPC door: a prompt counts once however many completions it has.  vLLM's
additions keep their names: `stop_reason`, `prompt_logprobs`, `token_ids`, `prompt_token_ids`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rtp_jax.outputs import Logprob, RequestOutput
from rtp_jax.serving.http_requests import Asked

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
PART_OF_CHARACTER = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")  # as the tokenizer spells one
COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
DONE = b"data: [DONE]\n\n"
Positions = Sequence[tuple[int, Mapping[int, Logprob] | None]]  # token id, what was likely there


@dataclass(slots=True)
class Reply:
    """The answer to one call, put together as outputs come."""

    asked: Asked
    head: dict  # id, object, created, model
    decode: Callable[[list[int]], str]
    choices: list[dict] = field(default_factory=list)  # of a whole answer
    _prompts: dict[int, RequestOutput] = field(default_factory=dict)  # their last outputs
    _num_output_tokens: int = 0
    _num_chars: dict[int, int] = field(default_factory=dict)  # of the choices that have begun

    def take(self, number: int, output: RequestOutput) -> bytes:
        """Take an output of a prompt; in a stream, spell what is new, one event for each choice."""
        self._prompts[number] = output
        choices = [self._choice(number, output, at) for at in range(len(output.outputs))]
        if self.asked.form.stream:
            return b"".join(self._event([each]) for each in choices if _is_news(each))
        self.choices += choices
        return b""

    def whole(self) -> bytes:
        """Spell the answer, all at once."""
        choices = sorted(self.choices, key=lambda choice: choice["index"])
        return spelled({**self.head, "choices": choices, "usage": self._usage()})

    def end(self) -> bytes:
        """Spell the end of a stream."""
        return (self._event([], self._usage()) if self.asked.form.include_usage else b"") + DONE

    def _event(self, choices: list[dict], usage: dict | None = None) -> bytes:
        body = {**self.head, "choices": choices}
        return event(body | {"usage": usage} if self.asked.form.include_usage else body)

    def _usage(self) -> dict:
        prompts, output_tokens = self._prompts.values(), self._num_output_tokens
        prompt_tokens = sum(len(each.prompt_token_ids) for each in prompts)
        cached = sum(each.num_cached_tokens for each in prompts)
        by_tier = sum((Counter(each.cached_tokens) for each in prompts), Counter())
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
        counts["total_tokens"] = prompt_tokens + output_tokens
        details = {"cached_tokens": cached, "cached_tokens_by_tier": dict(by_tier)}
        return counts | {"prompt_tokens_details": details}

    def _choice(self, number: int, output: RequestOutput, at: int) -> dict:
        part, form = output.outputs[at], self.asked.form
        text, positions = part.text, [*zip(part.token_ids, part.logprobs or (), strict=False)]
        if form.prompt_only:
            text, positions = "", []
        else:
            self._num_output_tokens += len(part.token_ids)
        index = number * self.asked.params.n + part.index
        if begins := index not in self._num_chars:
            self._num_chars[index] = 0
        if form.echo and begins:
            prompt = self.asked.prompts[number]
            text = (prompt if isinstance(prompt, str) else self.decode(prompt)) + text
            before = zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=False)
            positions = [*before, *positions]
        choice: dict = {"index": index, "logprobs": None}
        choice |= {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason}
        if form.num_top is not None:
            spell = self._chat_logprobs if form.chat else self._columns
            choice["logprobs"] = spell(index, positions)
        if form.chat:
            role = {"role": "assistant"} if begins else {}
            choice["delta" if form.stream else "message"] = {**role, "content": text}
        else:
            choice["text"] = text
        if form.token_ids:
            choice["token_ids"] = part.token_ids
            choice["prompt_token_ids"] = output.prompt_token_ids if begins else None
        if form.prompt_logprobs:
            choice["prompt_logprobs"] = [
                each and _by_id(each) for each in output.prompt_logprobs or ()
            ]
        return choice

    def _chat_logprobs(self, _index: int, positions: Positions) -> dict | None:
        content = [
            self._token(token_id, position[token_id])
            | {"top_logprobs": [self._token(each, position[each]) for each in self._top(position)]}
            for token_id, position in positions
            if position
        ]
        return {"content": content} if content else None

    def _columns(self, index: int, positions: Positions) -> dict | None:
        """Spell positions as the older API has them; the first of a prompt has no number."""
        rows = []
        for token_id, position in positions:
            entry = None if position is None else position[token_id]
            text, top = self._text(token_id, entry), None
            if position is not None:  # the token that came is always among them
                ids = dict.fromkeys((*self._top(position), token_id))
                top = {self._text(i, position[i]): _finite(position[i]) for i in ids}
            rows.append((text, entry and _finite(entry), top, self._num_chars[index]))
            self._num_chars[index] += sum(byte & 0xC0 != 0x80 for byte in _bytes_of(text))
        return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)} if rows else None

    def _top(self, position: Mapping[int, Logprob]) -> list[int]:
        """List the likely tokens that were asked for, then those that were named."""
        ranked = sorted(position, key=lambda token_id: -position[token_id].logprob)
        likely = [each for each in ranked if position[each].rank is not None]
        return likely[: self.asked.form.num_top] + [each for each in ranked if each not in likely]

    def _token(self, token_id: int, entry: Logprob) -> dict:
        text = self._text(token_id, entry)
        return {"token": text, "logprob": _finite(entry), "bytes": [*_bytes_of(text)]}

    def _text(self, token_id: int, entry: Logprob | None) -> str:
        known = self.decode([token_id]) if entry is None else entry.decoded_token
        return f"token_id:{token_id}" if known is None else known


def event(body: dict) -> bytes:
    """Spell one event of a stream."""
    return b"data: " + spelled(body) + b"\n\n"


def spelled(body: dict) -> bytes:
    """Write JSON."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _is_news(choice: dict) -> bool:
    """Tell whether there is more in a choice than tokens whose text is held back."""
    said = choice["delta"]["content"] if "delta" in choice else choice["text"]
    return bool(said or choice["finish_reason"] or choice["logprobs"] or choice.get("token_ids"))


def _by_id(position: Mapping[int, Logprob]) -> dict[str, dict]:
    return {
        str(i): {"logprob": _finite(each), "rank": each.rank, "decoded_token": each.decoded_token}
        for i, each in position.items()
    }


def _finite(entry: Logprob) -> float:
    return max(entry.logprob, LOWEST_LOGPROB)


def _bytes_of(text: str) -> bytes:
    """Return the bytes of a token, which may be a part of a character."""
    found = PART_OF_CHARACTER.fullmatch(text)
    return bytes.fromhex(found[1].replace("\\x", "")) if found else text.encode()
