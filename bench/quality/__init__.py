"""What does it cost to keep a model in fewer bits?  `python -m bench.quality` measures.

| file | the question it answers |
|---|---|
| `__main__.py` | what is measured, printed and written down |
| `models.py` | which models, besides the built-in one |
| `arms.py` | which ways to keep a model, and what each may cost |
| `answers.py` | loss on held-out text and right answers, as the engine gives them |
| `distributions.py` | how far the next token's distribution moves |
| `kv_choices.py` | whether the layers that a measurement picks are the right ones |
"""
