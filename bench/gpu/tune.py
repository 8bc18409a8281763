"""Which tiling is best?  Times every candidate of a kernel and writes a table of the winners.

    python bench/gpu/run_all.py --part kernels --tune

The table is data that the kernels read (`rtp_jax/kernels/tuned.py`).  A tiling that wins by less
than `WORTH` is left out: the default, which is reasoned, holds for shapes that nobody timed.
"""

import concurrent.futures
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from bench.gpu.matmul_rows import WEIGHTS, Product, weight_of
from bench.gpu.results import Results, Row, Skip
from bench.gpu.timing import COLD_BYTES, Limits, Scale, median_s, random_array, repeats_for
from rtp_jax.kernels.quantized_matmul import mosaic_gpu
from rtp_jax.kernels.quantized_matmul.mosaic_plan import Tiling, candidates, default_tiling
from rtp_jax.kernels.quantized_matmul.shape import MatmulShape
from rtp_jax.kernels.tuned import DEVICE, key_of
from rtp_jax.quant.quantized_array import ROWS, QuantizedArray
from tools.every_scheme import EVERY_SCHEME

TOKENS = (8, 16, 32, 64, 256, 512)
WORTH = 1.03
OPERATION = "quantized_matmul"


def rows(scale: Scale, limits: Limits) -> list[Row]:
    """List one row for each shape of a product."""
    weights, tokens = scale.pick(WEIGHTS, {"small": (128, 256)}), scale.pick(TOKENS, (8,))
    products = [
        (name, Product(count, outer, inner, scheme))
        for name, (outer, inner) in weights.items()
        for count in tokens
        for scheme in EVERY_SCHEME
    ]
    return [
        Row(
            f"tune/{product.scheme}/{name} x {product.tokens}",
            functools.partial(best, product, scale, limits),
        )
        for name, product in products
    ]


def best(product: Product, scale: Scale, limits: Limits) -> Mapping[str, Any]:
    """Compile all candidates together, then time one after another."""
    scheme = EVERY_SCHEME[product.scheme]
    sizes = {"tokens": product.tokens, "outer": product.outer, "inner": product.inner}
    call = MatmulShape(
        platform="cuda", dtype=jnp.dtype(jnp.bfloat16), scheme=scheme, layout=ROWS, **sizes
    )
    if reason := mosaic_gpu.obstacle(call):
        raise Skip(reason)
    default = default_tiling(scheme, **sizes)
    found = [default, *(one for one in candidates(scheme, **sizes) if one != default)]
    found = found[: scale.pick(len(found), 2)]
    layers = scale.pick(max(1, min(64, -(-COLD_BYTES // product.weight_bytes))), 2)
    x = random_array(2, (product.tokens, product.inner), jnp.bfloat16, scale.device)
    weight = weight_of(product, layers, scale)
    floor_s, _ = limits.floor(
        num_bytes=product.num_bytes, flops=product.flops, narrow=product.is_narrow
    )
    repeats = repeats_for(floor_s, dry=scale.dry) if not scale.dry else 1

    def prepare(tiling: Tiling) -> jax.stages.Compiled:
        run = functools.partial(repeated, tiling=tiling, repeats=repeats, dry=scale.dry)
        return jax.jit(run).lower(x, weight).compile()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        programs = dict(zip(found, executor.map(prepare, found), strict=True))
    timed = {
        tiling: median_s(functools.partial(program, x, weight), repeats=repeats)["milliseconds"]
        for tiling, program in programs.items()
    }
    winner = min(timed, key=lambda tiling: timed[tiling])
    return {
        "milliseconds": timed[winner],
        "default_milliseconds": timed[default],
        "key": key_of(scheme=scheme.name, group=scheme.group, **sizes),
        "tiling": list(winner),
        "note": f"{len(found)} candidates; {timed[default] / timed[winner]:.3f}x of the default",
    }


def repeated(
    x: jax.Array, weight: QuantizedArray, *, tiling: Tiling, repeats: int, dry: bool
) -> jax.Array:
    """Multiply again and again, by one layer after another."""
    simulate = plgpu.InterpretGPUParams(detect_races=True) if dry else None
    layers = weight.values.shape[0]

    def multiply(x: jax.Array, layer: jax.Array | int) -> jax.Array:
        return mosaic_gpu.quantized_matmul(x, weight, layer, tiling=tiling, interpret=simulate)

    if repeats == 1:
        return multiply(x, 0)

    def once(i: jax.Array, x: jax.Array) -> jax.Array:
        return x.at[0, 0].set(multiply(x, i % layers)[0, 0].astype(x.dtype))

    return jax.lax.fori_loop(0, repeats, once, x)


def write_table(results: Results, folder: Path) -> None:
    """Write the winners that are worth it, of this run and of earlier ones."""
    path = folder / f"{DEVICE}.json"
    table = json.loads(path.read_text())["tilings"] if path.exists() else {}
    table.setdefault(OPERATION, {})
    for name, row in results.content["rows"].items():
        if name.startswith("tune/") and row["status"] == "ok":
            table[OPERATION].pop(row["key"], None)
            if row["default_milliseconds"] > WORTH * row["milliseconds"]:
                kept = ("tiling", "milliseconds", "default_milliseconds")
                table[OPERATION][row["key"]] = {part: row[part] for part in kept}
    content = {**results.content["facts"], **results.content["versions"], "tilings": table}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
