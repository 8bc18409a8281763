"""How is the `quantization_config` of a compressed-tensors checkpoint read?

It has groups of modules, each with a description of its weights and of their input.  What we run is
a table; anything else is refused with the field that asks for it.

Source: the configuration classes and compressors of the compressed-tensors library.  Read next:
`weights/quantized.py` for what each layout is.
"""

from collections.abc import Sequence

from rtp_jax.models.fields import Fields
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, SCHEMES, Scheme
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.modules import Names, Quantization, Rule, is_simple
from rtp_jax.weights.quantized import BLOCK

FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")
MIXED = "mixed-precision"  # each group says its own
GROUP_SIZES = (32, 64, 128)
PATTERN = "re:"
# What a weight is (kind of numbers, bits, format without its ending, strategy) and what is done
# with its input: the layout and the scheme of it.
# fmt: off
KINDS = {
    ("int", 8, "int", "channel", "token"):  ("rows", SCHEMES["int8_dynamic"]),
    ("int", 8, "int", "tensor", "token"):   ("tensor", SCHEMES["int8_dynamic"]),
    ("int", 8, "int", "channel", "as it is"): ("rows", SCHEMES["int8"]),
    ("int", 8, "int", "tensor", "as it is"):  ("tensor", SCHEMES["int8"]),
    ("int", 8, "pack", "channel", "as it is"): ("packed", SCHEMES["int8"]),
    ("int", 4, "pack", "channel", "as it is"): ("packed", SCHEMES["int4"]._replace(group=None)),
    ("int", 4, "pack", "group", "as it is"):   ("packed", SCHEMES["int4"]),
    ("float", 8, "float", "channel", "token"): ("rows", SCHEMES["fp8"]),
    ("float", 8, "float", "tensor", "token"):  ("tensor", SCHEMES["fp8"]),
    ("float", 8, "float", "block", "group"):   ("blocks", FROM_CHECKPOINTS["fp8_block"]),
}
# fmt: on


def read_compressed_tensors(fields: Fields) -> Quantization:
    """Read all groups, and the modules that are in none."""
    for name in ("kv_cache_scheme", "transform_config"):
        if fields.values.get(name):  # empty ones ask for nothing
            raise fields.unsupported(name, "Use a checkpoint without it.")
    sparsity = fields.part("sparsity_config")
    sparsity.choice("format", "dense", ("dense",))
    fields.choice("quantization_status", "compressed", ("compressed", "frozen"))
    name = fields.choice("format", None, (*FORMATS, MIXED))
    groups = fields.part("config_groups")
    if not groups.values:
        raise fields.wrong("config_groups", "a mapping of groups")
    rules = [rule for key in groups.values for rule in _rules(groups.part(key), name)]
    rules.sort(key=lambda rule: (rule.names.every, bool(rule.names.patterns)))  # names come first
    ignored = _names(fields, "ignore", fields.words("ignore"))
    return Quantization("compressed-tensors", tuple(rules), ignored, with_head=True)


def _rules(group: Fields, name: str) -> list[Rule]:
    """Read one group: a rule for its names, one for its patterns, one for what its class means."""
    group.refuse("output_activations", "Use a checkpoint that leaves outputs as they are.")
    if group.has("format") or name == MIXED:
        name = group.choice("format", None, FORMATS)
    kind = _kind(group, name)
    targets = group.words("targets")
    if not targets:
        raise group.wrong("targets", "a list of names")
    names = _names(group, "targets", [target for target in targets if target != "Linear"])
    several = [Names(exact=names.exact), Names(patterns=names.patterns)]
    several.append(Names(every="Linear" in targets))
    return [Rule(one, kind) for one in several if one != Names()]


def _kind(group: Fields, name: str) -> MatrixFormat:
    weights = group.part("weights")
    numbers = weights.choice("type", "int", ("int", "float"))
    bits = weights.integer("num_bits", 8)
    size = weights.integer("group_size", 0, low=-1)
    strategy = {-1: "channel", 0: "tensor"}.get(size, "group")
    strategy = weights.choice("strategy", strategy, ("tensor", "channel", "group", "block"))
    ending = numbers if name == "naive-quantized" else name.removesuffix("-quantized")
    described = (numbers, bits, ending, strategy, _input(group, numbers))
    if described not in KINDS:
        raise weights.unsupported(
            "strategy",
            f"It is {name} of {bits}-bit {numbers} whose input is rounded: {described[-1]}."
            " docs/quantization.md lists what is supported.",
        )
    layout, scheme = KINDS[described]
    symmetric = weights.flag("symmetric", True)
    if not symmetric and scheme.bits != 4:
        raise weights.unsupported("symmetric", "Only int4 may have zero points.")
    if strategy == "block" and not _is_block(weights.values.get("block_structure")):
        raise weights.unsupported("block_structure", f"Supported: [{BLOCK}, {BLOCK}].")
    if scheme.bits == 4:
        scheme = _int4(weights, scheme, size, symmetric)
    return MatrixFormat(layout, scheme, ordered=_is_ordered(weights))


def _int4(weights: Fields, scheme: Scheme, size: int, symmetric: bool) -> Scheme:
    if scheme.group is not None:
        if size not in GROUP_SIZES:
            allowed = ", ".join(map(str, GROUP_SIZES))
            raise weights.unsupported("group_size", f"Supported: {allowed}.")
        scheme = scheme._replace(group=size)
    return scheme if symmetric else FROM_CHECKPOINTS["int4_zeros"]._replace(group=scheme.group)


def _input(group: Fields, numbers: str) -> str:
    """Say how a map's input is rounded: by token, by group of 128, or not at all."""
    if not group.has("input_activations"):
        return "as it is"
    activations = group.part("input_activations")
    activations.choice("type", numbers, (numbers,))
    if activations.integer("num_bits", 8) != 8:
        raise activations.unsupported("num_bits", "Supported: 8.")
    if not activations.flag("symmetric", True):
        raise activations.unsupported("symmetric", "Inputs have no zero points.")
    if activations.values.get("dynamic") is not True:
        raise activations.unsupported("dynamic", "Inputs are rounded by their own largest number.")
    strategy = activations.choice("strategy", "token", ("token", "group"))
    if strategy == "group" and activations.integer("group_size") != BLOCK:
        raise activations.unsupported("group_size", f"Supported: {BLOCK}.")
    return strategy


def _is_ordered(weights: Fields) -> bool:
    """Whether groups were made in the order of activations; `weight` leaves them in place."""
    order = weights.values.get("actorder")
    if isinstance(order, str):
        order = order.lower()
    known = {None: False, False: False, True: True}
    known |= {"group": True, "dynamic": True, "weight": False, "static": False}
    if not isinstance(order, str | bool | None) or order not in known:
        raise weights.unsupported("actorder", "Supported: group, weight.")
    return known[order]


def _is_block(structure: object) -> bool:
    return structure in ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}")


def _names(fields: Fields, name: str, words: Sequence[str]) -> Names:
    """Sort names and patterns, and refuse a pattern that could take long."""
    patterns = tuple(w.removeprefix(PATTERN) for w in words if w.startswith(PATTERN))
    if odd := [pattern for pattern in patterns if not is_simple(pattern)]:
        raise fields.unsupported(name, f"The pattern {odd[0][:200]!r} could take long to search.")
    return Names(exact=tuple(w for w in words if not w.startswith(PATTERN)), patterns=patterns)
