"""Write `golden_transformers.json`: what transformers answers for the tokenizers of `tiny.py`.

Run in an environment of its own, which has transformers, tokenizers, sentencepiece and protobuf:

    python -m tests.text.golden_recipe

The tokenizers are trained here and stored with the answers, so that the golden does not depend on
how a later library would train them.
"""

import base64
import json
import tempfile
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from tests.text.tiny import KINDS, random_texts, sentencepiece_bpe

GOLDEN = Path(__file__).parent / "golden_transformers.json"
TEXTS = ["", " ", "Hello", " Hello  world ", "<s>the<|im_end|> x</s>", *random_texts(31, 25)]


def answers(folder: Path) -> dict:
    """Ask transformers to encode and decode with the tokenizer in a folder."""
    # Of tokenizer.json the generic class, which takes the file as it is.
    has_json = (folder / "tokenizer.json").exists()
    kind = transformers.PreTrainedTokenizerFast if has_json else transformers.AutoTokenizer
    tokenizer = kind.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text)
        plain = tokenizer.encode(text, add_special_tokens=False)
        rows.append(
            {
                "text": text,
                "ids": ids,
                "plain": plain,
                "unsplit": tokenizer.encode(text, split_special_tokens=True),
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "skipped": tokenizer.decode(ids, skip_special_tokens=True),
                "backwards": tokenizer.decode(plain[::-1], skip_special_tokens=True),
            }
        )
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    files = {
        path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(folder.iterdir())
    }
    return {"files": files, "rows": rows, "special": special, "size": len(tokenizer)}


def chats() -> list[str]:
    """Render the conversations of `chat_cases.json`."""
    texts = []
    for case in json.loads((Path(__file__).parent / "chat_cases.json").read_text()):
        template, options = case["template"], case["options"]
        rendered, _ = render_jinja_template([case["messages"]], chat_template=template, **options)
        texts += rendered
    return texts


def main() -> None:
    """Write the golden."""
    kinds = KINDS | {
        "sentencepiece_legacy": lambda folder: sentencepiece_bpe(folder, legacy=True),
    }
    golden: dict = {"transformers": transformers.__version__, "kinds": {}, "chats": chats()}
    for name, make in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            golden["kinds"][name] = answers(make(Path(folder)))
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
