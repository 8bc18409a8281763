"""How is the `quantization_config` of a config.json read?  What is not understood is refused.

Each method writes its own fields; what comes out are rules over the names of modules.

Sources: the configs of GPTQModel and AutoGPTQ (gptq), AutoAWQ (awq), DeepSeek-V3's
README_WEIGHTS.md and transformers' FineGrainedFP8Config (fp8).  Read next:
`compressed_tensors_fields.py`, `weights/modules.py`.
"""

from rtp_jax.models.compressed_tensors_fields import read_compressed_tensors
from rtp_jax.models.fields import Fields
from rtp_jax.quant.schemes import FROM_CHECKPOINTS, SCHEMES, Scheme
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.modules import Names, Quantization, Rule
from rtp_jax.weights.quantized import BLOCK

EVERY = Names(every=True)
GROUP_SIZES = (-1, 32, 64, 128)


def read_quantization(config: Fields) -> Quantization | None:
    """Read how the checkpoint is quantized; None: it is not."""
    if not config.has("quantization_config"):
        return None
    fields = config.part("quantization_config")
    return READERS[fields.choice("quant_method", None, tuple(READERS))](fields)


def _gptq(fields: Fields) -> Quantization:
    if fields.values.get("dynamic"):  # an empty one asks for nothing
        raise fields.unsupported("dynamic", "Modules have no settings of their own.")
    fields.refuse("is_marlin_format", "Use the checkpoint from which that was made.")
    fields.choice("pack_dtype", "int32", ("int32",))
    layout = fields.choice("checkpoint_format", "gptq", ("gptq", "gptq_v2"))
    scheme = _int4(fields, has_zeros=not fields.flag("sym", True))
    kind = MatrixFormat(layout, scheme, ordered=fields.flag("desc_act", False))
    names = EVERY
    if fields.has("modules_in_block_to_quantize"):
        names = Names(within=_flat(fields, "modules_in_block_to_quantize"))
    with_head = fields.flag("lm_head", False)
    if with_head and not names.every:
        names = Names(within=(*names.within, "lm_head"))
    return Quantization("gptq", (Rule(names, kind),), with_head=with_head)


def _awq(fields: Fields) -> Quantization:
    fields.choice("backend", "auto", ("auto", "autoawq"))
    version = fields.values.get("version")
    if not isinstance(version, str | None) or (version or "gemm").lower() != "gemm":
        raise fields.unsupported("version", "Supported: gemm.")
    if not fields.flag("zero_point", True):
        raise fields.unsupported("zero_point", "Only checkpoints with zero points are supported.")
    kind = MatrixFormat("awq", _int4(fields, has_zeros=True))
    ignored = Names(within=fields.words("modules_to_not_convert"))
    return Quantization("awq", (Rule(EVERY, kind),), ignored)


def _fp8(fields: Fields) -> Quantization:
    fields.choice("fmt", "e4m3", ("e4m3", "float8_e4m3fn"))
    fields.choice("activation_scheme", "dynamic", ("dynamic",))
    fields.choice("scale_fmt", "float", ("float",))
    kind = MatrixFormat("tensor", SCHEMES["fp8"])
    if fields.has("weight_block_size"):
        if fields.values["weight_block_size"] != [BLOCK, BLOCK]:
            raise fields.unsupported("weight_block_size", f"Supported: [{BLOCK}, {BLOCK}].")
        kind = MatrixFormat("blocks_inverse", FROM_CHECKPOINTS["fp8_block"])
    words = fields.words("modules_to_not_convert") + fields.words("ignored_layers")
    return Quantization("fp8", (Rule(EVERY, kind),), Names(within=words))


def _int4(fields: Fields, *, has_zeros: bool) -> Scheme:
    """Read bits and groups of a layout of int4."""
    if fields.integer("bits") != 4:
        raise fields.unsupported("bits", "Supported: 4.")
    size = fields.integer("group_size", 128, low=-1)
    if size not in GROUP_SIZES:
        raise fields.unsupported("group_size", f"Supported: {', '.join(map(str, GROUP_SIZES))}.")
    scheme = FROM_CHECKPOINTS["int4_zeros"] if has_zeros else SCHEMES["int4"]
    return scheme._replace(group=None if size == -1 else size)


def _flat(fields: Fields, name: str) -> tuple[str, ...]:
    """Read a list of lists of words, those that are quantized one after the other."""
    lists = fields.values[name]
    if not isinstance(lists, list) or not all(isinstance(inner, list) for inner in lists):
        raise fields.wrong(name, "a list of lists of module names")
    words = [word for inner in lists for word in inner]
    if not all(isinstance(word, str) for word in words):
        raise fields.wrong(name, "a list of lists of module names")
    return tuple(words)


READERS = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": read_compressed_tensors,
}
