"""Text in and out: tokenizers, incremental detokenizing, stop strings, chat templates.

Read `tokenizer.py` first, then `assembler.py`, which turns the ids of one completion into text.
Plain Python: no jax, and no request state.
"""
