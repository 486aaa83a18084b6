"""blockpunch.compile: from a model to a .bp file that gives ONNX Runtime's answers, also without Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import blockpunch
from blockpunch.compiler import toolchain
from blockpunch.errors import ArtifactError, MissingExtraError, TargetError, TargetMismatchError, ToolchainError
from blockpunch.target import Target, host_arch

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def small_model(folder: Path) -> Path:
    """Two convolutions (one with zeros), a residual, a pool and a linear layer, with two inputs."""
    rng = np.random.default_rng(11)
    shapes = ((16, 3, 3, 3), (16, 16, 3, 3), (10, 16))
    w1, w2, w3 = (rng.normal(size=shape).astype(np.float32) * 0.2 for shape in shapes)
    w2[rng.random(w2.shape) < 0.7] = 0
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["g"], name="last", transB=1),
        helper.make_node("Add", ["g", "offset"], ["scores"]),
    ]
    tensors = {"w1": w1, "w2": w2, "w3": w3}
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("image", 1, [1, 3, 20, 20]),
                         helper.make_tensor_value_info("offset", 1, [1, 10])],
        [helper.make_tensor_value_info("scores", 1, [1, 10])],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()])
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in
            (("image", (1, 3, 20, 20)), ("offset", (1, 10)))}


def agree(ours: np.ndarray, model: Path, given: dict[str, np.ndarray]) -> None:
    theirs = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, given)[0]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("target", ["host", "x86-64-v3", "x86-64"])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_answers_as_onnx_runtime(model: Path, tmp_path: Path, target: str, threads: int) -> None:
    if not Target.named(target).runs_here()[0]:
        pytest.skip("not for this machine")
    artifact = blockpunch.compile(model, target=target, threads=threads)
    path = artifact.save(tmp_path / "small.bp")
    with blockpunch.Session(path, threads=threads) as session:
        assert {spec.name: spec.shape for spec in session.inputs} == {n: a.shape for n, a in inputs().items()}
        for seed in range(3):
            agree(session.run(inputs(seed))["scores"], model, inputs(seed))
        _, seconds = session.run_profiled(inputs())
        assert len(seconds) == len(artifact.layers)


def test_layers_tell_what_was_kept(model: Path) -> None:
    layers = {layer.path: layer for layer in blockpunch.compile(model, build=False).layers}
    first, second = layers["first"], layers["second"]
    assert (first.macs, first.kept_macs) == (16 * 3 * 9 * 400, 16 * 3 * 9 * 400)
    assert second.macs == 16 * 16 * 9 * 400
    assert 0.25 < second.kept_macs / second.macs < 0.35
    assert all(layer.packing for layer in (first, second))


def test_sources_and_log_are_kept(model: Path, tmp_path: Path) -> None:
    artifact = blockpunch.compile(model, keep_dir=tmp_path / "kept")
    assert (tmp_path / "kept" / "build.log").read_text() == artifact.build_log
    for name, text in artifact.sources.items():
        assert (tmp_path / "kept" / name).read_text() == text


def test_c_without_a_library(model: Path, tmp_path: Path) -> None:
    artifact = blockpunch.compile(model, build=False)
    assert artifact.library is None
    assert "model.c" in artifact.sources
    path = artifact.save(tmp_path / "sources.bp")
    with pytest.raises(ArtifactError, match="no library"):
        blockpunch.Session(path)
    # and what it holds can be built
    build = toolchain.find_compiler().build_shared(blockpunch.Artifact.load(path).sources, artifact.target)
    assert b"bp_model_run" in build


@pytest.mark.slow
def test_for_a_phone(model: Path, tmp_path: Path) -> None:
    """A whole library with threads for another architecture: zig builds its C library first."""
    pytest.importorskip("ziglang")
    if host_arch() != "x86_64":
        pytest.skip("this machine is the other architecture")
    path = blockpunch.compile(model, target="cortex-a76").save(tmp_path / "phone.bp")
    assert blockpunch.Artifact.load(path).target == Target.named("cortex-a76")
    with pytest.raises(TargetMismatchError, match="built for 'cortex-a76'; this machine lacks aarch64"):
        blockpunch.Session(path)


def test_the_c_runs_clean_under_the_sanitizers(model: Path, tmp_path: Path) -> None:
    """The generated C in a program of its own, on two threads, every access checked."""
    compiler = toolchain.find_compiler()
    if compiler.kind == "zig":
        pytest.skip("zig has no sanitizer runtimes")
    artifact = blockpunch.compile(model, build=False)
    (tmp_path / "weights.bin").write_bytes(artifact.weights.tobytes())
    driver = """
#include <stdio.h>
#include <stdlib.h>
#include "blockpunch.h"
int main(int argc, char **argv) {
  size_t bytes = bp_describe()->weights_bytes;
  void *weights = aligned_alloc(64, (bytes + 63) / 64 * 64);
  FILE *file = fopen(argv[argc - 1], "rb");
  if (!weights || !file || fread(weights, 1, bytes, file) != bytes) return 2;
  fclose(file);
  float *image = calloc(3 * 20 * 20, sizeof(float)), *offset = calloc(10, sizeof(float)), *scores = calloc(10, 4);
  const float *in[] = {image, offset};
  float *out[] = {scores};
  bp_net *net = bp_open(weights, bytes, 2);
  int code = bp_run(net, in, out) || bp_run(net, in, out);
  bp_close(net);
  free(weights), free(image), free(offset), free(scores);
  return code;
}
"""
    for sanitize in ("address", "thread"):
        program = tmp_path / sanitize
        program.write_bytes(compiler.build_executable({**artifact.sources, "main.c": driver}, artifact.target,
                                                      sanitize=sanitize))
        program.chmod(0o755)
        done = subprocess.run([program, tmp_path / "weights.bin"], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")


def test_refusals(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="unknown target 'toaster'"):
        blockpunch.compile(model, target="toaster")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ToolchainError, match=r"\$CC"):
        blockpunch.compile(model)


def test_without_the_extra(model: Path) -> None:
    code = """
import sys
sys.modules["onnx"] = None
import blockpunch
try:
    blockpunch.compile(sys.argv[1])
except blockpunch.MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True)
    assert "pip install 'blockpunch[" in done.stdout, done.stderr
    assert issubclass(MissingExtraError, blockpunch.BlockpunchError)


def test_with_ziglang_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler of its own: the pip package builds everything, threads included."""
    pytest.importorskip("ziglang")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    artifact = blockpunch.compile(model)
    assert artifact.manifest.compiler.startswith("zig cc")
    with blockpunch.Session(artifact, threads=2) as session:
        agree(session.run(inputs())["scores"], model, inputs())
