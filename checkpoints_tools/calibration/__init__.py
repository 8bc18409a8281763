"""Quantizing by what a model does with a text: GPTQ and AWQ, one layer at a time.

    texts.py        a file becomes sequences of tokens
    steps.py        sequences become steps of one shape
    layer_run.py    one layer of the model, run: what its matrices are given
    grid.py         values, scales and zero points of groups
    gptq.py         each column is rounded, and those to come make up for it
    awq.py          inputs that matter get finer steps, which the matrix before pays for
    halves.py       a layer is two halves alike; what is known of it on the way
    methods.py      what GPTQ and AWQ do with each half
    kept_layers.py  a layer that is done waits in a file of its own
    layers.py       layer after layer, each written before the next is read
    command.py      the options, and the plan of the output

Read next: `command.py`.
"""
