"""What does a dimension of a parameter mean, and over which mesh axis would it be spread?

One table: logical axis to mesh axis, None for what every device holds whole.  One device holds
everything today, so the table names and checks; a mesh of several will read it.
"""

MESH_AXIS = {
    "layers": "stage",
    "vocab": "tensor",
    "embed": None,
    "heads": "tensor",  # all heads end to end: the rows of a projection to queries
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "groups": None,  # scales of a row
    "bytes": None,  # of a block of rows, packed for a kernel
}
