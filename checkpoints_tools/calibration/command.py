"""`quantize --scheme gptq|awq`: the options, what they are checked against, and the output's plan.

Both write the pack-quantized layout of compressed-tensors: GPTQ symmetric groups, AWQ groups with
zero points.  transformers and vLLM read that layout for both, as this engine does, and the plain
`int4` scheme writes it already; AutoGPTQ's and AutoAWQ's own layouts, which pack along other axes,
hold the same numbers.

Read next: `layers.py`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checkpoints_tools import output_options
from checkpoints_tools.calibration.grid import Kind
from checkpoints_tools.calibration.halves import HALVES
from checkpoints_tools.calibration.kept_layers import LayerFile
from checkpoints_tools.calibration.layer_run import LayerRun
from checkpoints_tools.calibration.layers import Layers
from checkpoints_tools.calibration.methods import Awq, Gptq, Method
from checkpoints_tools.calibration.steps import Step, steps_of
from checkpoints_tools.calibration.texts import Texts, Wanted, read_texts
from checkpoints_tools.job import Preparation
from checkpoints_tools.quantize import CALIBRATION_TOKENS, Chosen
from checkpoints_tools.report import Report
from checkpoints_tools.source import Source
from checkpoints_tools.stored import StoredTensor
from checkpoints_tools.target import Target
from rtp_jax.errors import InvalidArgument, Unimplemented
from rtp_jax.models.dense_fields import architecture_of
from rtp_jax.models.fields import Fields
from rtp_jax.models.registry import ARCHITECTURES, architecture, read_spec
from rtp_jax.models.spec import ModelSpec

LENGTH = 512  # tokens of a sequence, unless the model sees fewer


def run(
    parsed: argparse.Namespace,
    report: Report,
    source: Source,
    to: Target,
    chosen: Chosen,
) -> int:
    """Quantize matrices of a source by what it does with a text."""
    spec, scheme = _spec(source), chosen.scheme
    length = min(LENGTH, spec.max_positions)
    tokens = parsed.calibration_tokens or CALIBRATION_TOKENS
    wanted = Wanted(Path(parsed.calibration), tokens, length)
    texts = read_texts(source.folder, wanted, vocab_size=spec.vocab_size)
    layers = layers_of(parsed.scheme, source, spec, chosen, steps_of(texts.sequences, length))
    made = {k: v for file in layers.files for k, v in file.outputs(to.partial).items()}
    tensors = [
        each
        for tensor in source.tensors
        for each in made.get(tensor.name) or [output_options.kept(source, tensor)]
    ]
    _tell(report, texts, wanted)
    return output_options.finish(
        parsed,
        report,
        to=to,
        source=source,
        tensors=tensors,
        config={**(source.config or {}), "quantization_config": scheme.config(chosen.ignored)},
        choices={
            "command": "quantize",
            "scheme": parsed.scheme,
            "group": scheme.group,
            "ignore": parsed.ignore,
            "order": scheme.order,
            "text": texts.sha256,
            "tokens": tokens,
            "length": length,
        },
        preparation=Preparation(sum(file.num_bytes for file in layers.files), layers.quantize),
    )


def _tell(report: Report, texts: Texts, wanted: Wanted) -> None:
    """Say what is read, and whether that is all that was wanted."""
    count = len(texts.sequences)
    words = f"calibration: {texts.num_tokens} tokens in {count} sequences"
    if texts.num_tokens < wanted.tokens:
        words += f", the whole file; up to {wanted.tokens} would be read"
    report.event(
        "calibration", words, tokens=texts.num_tokens, wanted=wanted.tokens, sequences=count
    )


def _spec(source: Source) -> ModelSpec:
    """Read the model's config; refuse one whose layers this build cannot run."""
    config = source.config or {}
    name = architecture_of(Fields(config))
    if name not in ARCHITECTURES:
        raise Unimplemented(
            f"RTPJ-3630 CALIBRATION_UNSUPPORTED: calibration runs the layers of the model, and"
            f" config.json asks for {name[:200]!r}, whose layers this build does not have."
            f" It has those of {', '.join(ARCHITECTURES)}. Use --scheme int4, which only rounds."
        )
    return read_spec(config)


def layers_of(
    name: str, source: Source, spec: ModelSpec, chosen: Chosen, steps: list[Step]
) -> Layers:
    """Put together what the layers are made from."""
    scheme, programs = chosen.scheme, LayerRun(spec)
    by_path = _by_path(source, spec)
    tensors = [
        {path: by_path[f"layers.{number}.{path}"] for path in programs.paths}
        for number in range(spec.num_layers)
    ]
    shapes = {"embedding.table": (spec.vocab_size, spec.hidden_size)}
    for number in range(spec.num_layers):
        shapes |= {f"layers.{number}.{path}": shape for path, shape in programs.shapes.items()}
    _check_shapes(source, by_path, shapes)
    assert scheme.group is not None
    kind = Kind(scheme.group, scheme.symmetric, _scale_dtype(tensors))
    wanted = {tensor.name for tensor in chosen.matrices}
    method: Method = Awq() if name == "awq" else Gptq(by_use=scheme.order is not None)
    files = [
        _file(number, layer, wanted, kind, folds=name == "awq")
        for number, layer in enumerate(tensors)
    ]
    return Layers(source, programs, tensors, by_path["embedding.table"], files, steps, method)


def _by_path(source: Source, spec: ModelSpec) -> dict[str, StoredTensor]:
    """Find the tensors of the model by their paths; missing and extra ones are refused."""
    found = source.by_name()
    table = architecture(spec.architecture).weight_table(spec)
    rows = table.resolve(found)
    return {row.target: found[name] for name, of_name in rows.items() for row in of_name}


def _check_shapes(
    source: Source, by_path: dict[str, StoredTensor], shapes: dict[str, tuple[int, ...]]
) -> None:
    for path, shape in shapes.items():
        tensor = by_path[path]
        if tensor.shape != shape:
            raise InvalidArgument(
                f"RTPJ-3631 QUANTIZE_INVALID: {source.folder}: {tensor.name} is"
                f" {list(tensor.shape)} and config.json asks for {list(shape)}."
                " Use the config.json of this checkpoint."
            )


def _scale_dtype(tensors: Sequence[dict[str, StoredTensor]]) -> np.dtype:
    """Scales are stored as matrices were, but not in more than float32."""
    dtype = tensors[0][f"{HALVES[0].back}.kernel"].dtype
    return dtype if dtype.itemsize < 4 else np.dtype(np.float32)


def _file(
    number: int, layer: dict[str, StoredTensor], wanted: set[str], kind: Kind, *, folds: bool
) -> LayerFile:
    """Say what a layer's file holds: its matrices, and for AWQ what factors are folded into."""
    modules, changed = {}, {}
    for path, tensor in layer.items():
        if tensor.name in wanted:
            rows, columns = tensor.shape
            name = tensor.name.removesuffix(".weight")
            modules[path.removesuffix(".kernel")] = (name, (rows, columns))
    names = {half.norm for half in HALVES} | {f"{half.carrier}.bias" for half in HALVES}
    for path, tensor in layer.items():
        if folds and path in names:
            changed[path] = (tensor.name, tensor.dtype, tensor.shape)
    return LayerFile(number, modules, changed, kind)
