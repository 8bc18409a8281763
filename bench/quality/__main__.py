"""What does it cost to keep a model in fewer bits?  Loss, right answers, and distributions.

    python -m bench.quality --json FILE
    python -m bench.quality --checkpoint gptq=FOLDER --checkpoint awq=FOLDER
    python -m bench.quality --outliers 0,2            (keys of these layers have large channels)
    python -m bench.quality --model random --outliers 1,4,5 --only "KV*"

`loss` is nats per token of the text that rtp-tiny was not trained on, and `adds` its growth over
the first line; right answers are those of tasks drawn anew.  `KL` is how far the distribution of
the next token is from that of the model in float32, and `of entropy` that as a share of this
distribution's entropy: by so much more costs text that the model writes itself.  A random model has
these two only.

`--part kv` measures which layers mind KV of 8 bits, and compares the choice with others that take
the same bytes (`kv_choices.py`).
"""

import argparse
import fnmatch
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.quality.answers import Answers, ask, held_out
from bench.quality.arms import PLAIN, Arm, checkpoint_arms, usual_arms
from bench.quality.distributions import distributions, moved
from bench.quality.kv_choices import Row, compare, rank_layers
from bench.quality.models import RTP_TINY, write_outliers, write_random
from bench.record import write_record
from rtp_jax.engine import kv_choice
from rtp_jax.engine.kv_choice import Ranking
from rtp_jax.quant.kv_schemes import KV_SCHEMES, KVLayers
from tools.rtp_tiny.tasks import DRAWERS

FACTOR = 32.0  # of channels that are outliers; a power of two
PARTS = ("schemes", "kv")
PACKAGES = ("jax", "jaxlib", "numpy", "ml_dtypes")
Figures = dict[str, Any]


def main(options: argparse.Namespace) -> None:
    """Measure, print, and write down."""
    texts = held_out()[: options.texts]
    cache = {} if options.compile_cache is None else {"compile_cache": options.compile_cache}
    given = checkpoint_arms(options.checkpoint)
    figures: Figures = {"model": options.model, "outliers": options.outliers, "texts": len(texts)}
    with tempfile.TemporaryDirectory() as work:
        model = str(prepare(options.model, options.outliers, options.folder or Path(work)))
        wanted = "kv" in options.part or fnmatch.fnmatch("KV adaptive", options.only)
        ranking = rank_layers(model, texts[::2], **cache) if wanted else Ranking(())
        if "schemes" in options.part:
            arms = [*usual_arms(adaptive(ranking)), *given]
            arms = [a for a in arms if a.name == PLAIN or fnmatch.fnmatch(a.name, options.only)]
            cases = options.cases if options.model == "rtp-tiny" else 0
            figures |= {"cases": cases, "schemes": schemes(model, arms, texts, cases, cache)}
        if "kv" in options.part:
            rows = compare(model, ranking, texts[1::2], sample=options.sample, **cache)
            figures |= {"alone": ranking.alone, "kv": [kv_figures(row) for row in rows]}
            print_kv(figures["kv"])
    if options.json:
        write_record(options.json, "quality", PACKAGES, figures)


def prepare(name: str, outliers: Sequence[int], folder: Path) -> Path:
    """Find the model, or write it."""
    model = RTP_TINY if name == "rtp-tiny" else folder / name
    if not model.exists():
        write_random(model)
    if not outliers:
        return model
    written = folder / "-".join([name, "outliers", *map(str, outliers)])
    if not written.exists():
        write_outliers(model, written, layers=outliers, factor=FACTOR)
    return written


def adaptive(ranking: Ranking) -> dict[str, str]:
    """Name the measured choices, half of the layers in 8 bits and all, that are not uniform."""
    layers = len(ranking.alone)  # 0 if nothing was measured
    found = {}
    for name, count in (("half", layers // 2), ("all", layers)) if layers else ():
        schemes = [s if s != kv_choice.PLAIN else PLAIN for s in ranking.first(count)]
        words = KVLayers(tuple(KV_SCHEMES[scheme] for scheme in schemes)).describe()
        if ":" in words:
            found[f"KV adaptive, {name} ({words})"] = words
    return found


def schemes(
    model: str, arms: Sequence[Arm], texts: Sequence[str], cases: int, cache: dict
) -> list[Figures]:
    """Measure each way to keep the model; print a line for each."""
    precise = distributions(model, texts, dtype="float32", **cache)
    plain, lines = None, []
    for arm in arms:
        folder, options = str(arm.folder or model), {"dtype": "bfloat16", **arm.options, **cache}
        kl = moved(precise, distributions(folder, texts, **options))
        line: Figures = {"name": arm.name, "kl": kl.divergence, "of_entropy": kl.share}
        line |= {"agreement": kl.agreement}
        if cases:
            found = ask(folder, texts=texts, kinds=tuple(DRAWERS), cases=cases, **options)
            plain = plain or found
            line |= spoken(found, plain)
            line |= {"may_add": arm.may_add}
            line |= {"within": arm.may_add is None or line["adds"] <= arm.may_add}
        print_scheme(line, header=not lines)
        lines.append(line)
    return lines


def spoken(found: Answers, plain: Answers) -> Figures:
    """Compare what two models said."""
    each = found.logprobs - plain.logprobs
    return {
        "loss": found.loss,
        "adds": found.loss / plain.loss - 1,
        "adds_error": float(each.std() / math.sqrt(len(each)) / plain.loss),  # standard error
        "recall": found.accuracy("recall"),
        "all_tasks": found.accuracy(),
        "each_task": {kind: found.accuracy(kind) for kind in DRAWERS},
        "recall_changes": changes(plain, found, "recall"),
        "changes": changes(plain, found, *DRAWERS),
    }


def changes(plain: Answers, found: Answers, *kinds: str) -> tuple[int, int]:
    """Count the answers that are right no more, and those that are right only now."""
    pairs = [
        pair for kind in kinds for pair in zip(plain.right[kind], found.right[kind], strict=True)
    ]
    lost = sum(before and not after for before, after in pairs)
    return lost, sum(after and not before for before, after in pairs)


def kv_figures(row: Row) -> Figures:
    """Put the choice of one number of layers beside its rivals."""
    rivals = sorted(row.rivals.values())
    return {
        "layers": row.count,
        "chosen": row.chosen,
        "kl": row.divergence,
        "rivals": len(rivals),
        "better_rivals": [{"layers": each, "kl": row.rivals[each]} for each in row.better],
        "best_rival": rivals[0],
        "median_rival": statistics.median(rivals),
        "worst_rival": rivals[-1],
        "fixed": row.fixed(),
    }


def print_scheme(line: Figures, *, header: bool) -> None:
    """Print a row of the table of schemes."""
    if header:
        print("| kept as | loss | adds | may add | recall | all tasks | KL |"
              " of entropy | same top token |\n|" + "---|" * 9)  # fmt: skip
    words = [""] * 5
    if "loss" in line:
        may = "" if line["may_add"] is None else f"{line['may_add']:.1%}"
        may += "" if line["within"] else " **missed**"
        words = [f"{line['loss']:.4f}", f"{line['adds']:+.2%} ± {line['adds_error']:.2%}", may]
        for share, (lost, gained) in (
            (line["recall"], line["recall_changes"]),
            (line["all_tasks"], line["changes"]),
        ):
            words.append(f"{share:.1%} (-{lost} +{gained})")
    words += [f"{line['kl']:.2e}", f"{line['of_entropy']:.3%}", f"{line['agreement']:.1%}"]
    print("| " + " | ".join([line["name"], *words]) + " |", flush=True)


def print_kv(rows: Sequence[Figures]) -> None:
    """Print the table of choices."""
    print("| layers | measured choice | KL | best other | median | worst | better others |"
          " first in int8 | first in fp8 |\n|" + "---|" * 9)  # fmt: skip
    for row in rows:
        names = " ".join({"plain": "·"}.get(scheme, scheme) for scheme in row["chosen"])
        nats = [row[key] for key in ("kl", "best_rival", "median_rival", "worst_rival")]
        fixed = [row["fixed"][key] for key in ("first in int8", "first in fp8")]
        better = f"{len(row['better_rivals'])} of {row['rivals']}"
        words = [*(f"{each:.2e}" for each in nats), better, *(f"{each:.2e}" for each in fixed)]
        print("| " + " | ".join([str(row["layers"]), names, *words]) + " |")


def layer_list(text: str) -> list[int]:
    """Read 0,2 as layers."""
    return [int(each) for each in text.split(",") if each]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("rtp-tiny", "random"), default="rtp-tiny")
    parser.add_argument("--outliers", type=layer_list, default=[], metavar="LAYERS")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of schemes")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--texts", type=int, help="how many of the held-out ones; default: all")
    parser.add_argument("--cases", type=int, default=256, help="of each task (%(default)s)")
    words = "other choices for each number of layers, where there are too many (%(default)s)"
    parser.add_argument("--sample", type=int, default=16, help=words)
    parser.add_argument("--folder", type=Path, help="keeps the models that are written")
    parser.add_argument("--compile-cache", metavar="FOLDER")
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args())
