"""What does a model say through the engine?  Loss on held-out text, and which answers are right.

The text is read in windows, each of which starts cold.  Answers are generated greedily, with the
end token that belongs to them, so that keys and values are read back from pages at every token.
Read next: `distributions.py`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtp_jax import Engine, SamplingParams
from tools.rtp_tiny.evaluate import EVALUATION_SEED
from tools.rtp_tiny.tasks import DRAWERS, draw_task, render
from tools.rtp_tiny.tokenizer import END_ID, EOS_ID

HELD_OUT = Path(__file__).parents[2] / "tools" / "rtp_tiny" / "held_out.json"
WINDOW = 256  # tokens, as many as the built-in model was trained to look back on
# One program, which compiles quickly, and in which batch-mates change no bit.
ONE_PROGRAM = {"deterministic": True, "max_num_seqs": 64, "max_num_batched_tokens": 64}


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said."""

    logprobs: np.ndarray  # float64 [tokens], of the text
    right: dict[str, list[bool]]  # of each kind of task

    @property
    def loss(self) -> float:
        """Nats per token of the text."""
        return -float(self.logprobs.mean())

    def accuracy(self, *kinds: str) -> float:
        """Share of right answers, of some kinds or of all."""
        return float(np.mean([one for kind in kinds or self.right for one in self.right[kind]]))


def ask(
    model: str, *, texts: Sequence[str], kinds: Sequence[str], cases: int, **options
) -> Answers:
    """Start an engine, have it read texts and do tasks.

    Args:
      model: a folder, or a name.
      texts: to be scored, in windows.
      kinds: of tasks, by name.
      cases: of each kind; the same ones for every model.
      options: of the engine.
    """
    with Engine(model, **ONE_PROGRAM, **options) as engine:
        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        read = engine.generate(windows(engine.tokenizer, texts), scored, use_tqdm=False)
        right = {kind: _right(engine, kind, cases) for kind in kinds}
    positions = [position for one in read for position in one.prompt_logprobs[1:]]
    logprobs = [next(iter(position.values())).logprob for position in positions]
    return Answers(np.array(logprobs, np.float64), right)


def held_out() -> list[str]:
    """Read the text that the built-in model was not trained on."""
    return json.loads(HELD_OUT.read_text())


def windows(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Cut texts into windows of ids; a token alone has nothing to be scored by."""
    encoded = [tokenizer.encode(text) for text in texts]
    cut = [ids[at : at + WINDOW] for ids in encoded for at in range(0, len(ids), WINDOW)]
    return [window for window in cut if len(window) > 1]


def draw_cases(tokenizer, kind: str, cases: int) -> Iterator[tuple[list[int], list[int]]]:
    """Draw questions and answers never trained on, as ids; half of them are chats."""
    rng = np.random.default_rng((EVALUATION_SEED, list(DRAWERS).index(kind)))
    for number in range(cases):
        chat = number % 2 == 0
        prompt, completion = render(draw_task(kind, rng), chat=chat)
        end = END_ID if chat else EOS_ID
        yield tokenizer.encode(prompt), [*tokenizer.encode(completion), end]


def _right(engine: Engine, kind: str, cases: int) -> list[bool]:
    drawn = list(draw_cases(engine.tokenizer, kind, cases))
    greedy = [
        SamplingParams(temperature=0.0, max_tokens=len(answer), ignore_eos=True, detokenize=False)
        for _, answer in drawn
    ]
    outputs = engine.generate([question for question, _ in drawn], greedy, use_tqdm=False)
    return [
        list(output.outputs[0].token_ids) == answer
        for output, (_, answer) in zip(outputs, drawn, strict=True)
    ]
