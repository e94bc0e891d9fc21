"""The four export formats: writing, loading, and an example program for each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.errors import InputError, unknown
from kd.models.check import copied
from kd.models.normalized import Normalized
from kd.models.weights import save_tensors
from kd.run_folder.predictor import StudentWithPredictor

Predict = Callable[[Tensor], Tensor]
INPUT = "images"


@dataclass(frozen=True)
class Format:
    """An export format: ``write(network, example, output, path)``, and ``read(path, network)`` to load a file.

    ``network`` maps float images [B, C, H, W] in [0, 1] to ``output`` (``logits`` or ``probabilities``); ``example`` is
    a batch of images. ``usage`` is a program that uses the file without kd. Without ``graph`` it holds weights only.
    """

    file: str
    runtime: str
    write: Callable[[nn.Module, Tensor, str, Path], None]
    read: Callable[[Path, nn.Module], Predict]
    usage: str
    graph: bool = True
    needs: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        """The versions of the packages that write and load it."""
        return {package: version(package) for package in dict.fromkeys((*self.needs, self.runtime))}


def format_of(name: str, softmax: bool) -> Format:
    """A format by name.

    Raises:
        InputError: an unknown format, packages that are not installed, or ``softmax`` with a format of weights only.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    for package in FORMATS[name].needs:
        try:
            import_module(package)
        except ImportError as error:
            raise InputError(f"format={name} needs {package}: pip install 'kd-lightning[export]'") from error
    if softmax and not FORMATS[name].graph:
        raise InputError(f"softmax=true needs a format with a graph; format={name} holds weights only")
    return FORMATS[name]


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The bare student's state dict, with that of its predictor, if any, under ``predictor.``."""
    if isinstance(network, StudentWithPredictor):
        predictor = {f"predictor.{key}": value for key, value in network.loss.state_dict().items()}
        return {**network.net.state_dict(), **predictor}
    assert isinstance(network, Normalized)
    return network.net.state_dict()


def _write_safetensors(network: nn.Module, example: Tensor, output: str, path: Path) -> None:
    front = network.student if isinstance(network, StudentWithPredictor) else network
    assert isinstance(front, Normalized)
    metadata: dict[str, Any] = {
        "mean": front.mean.flatten().tolist(),
        "std": front.std.flatten().tolist(),
        "size": front.size,
    }
    metadata |= {"output": front.output} if front.output is not None else {}  # if the bare network has several outputs
    save_tensors(weights(network), path, {key: json.dumps(value) for key, value in metadata.items()})


def _read_safetensors(path: Path, network: nn.Module) -> Predict:
    loaded = copied(network)
    state, saved = weights(loaded), load_file(path)
    for key, tensor in state.items():
        tensor.zero_()
        tensor.copy_(saved.pop(key))
    assert not saved
    return loaded


def _write_onnx(network: nn.Module, example: Tensor, output: str, path: Path) -> None:
    torch.onnx.export(
        network,
        (example,),
        str(path),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[output],
        external_data=False,
        verbose=False,
    )


def read_onnx(path: Path, network: nn.Module | None = None) -> Predict:
    """An ONNX file in onnxruntime on the CPU, with the same number of threads as torch."""
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _write_export(network: nn.Module, example: Tensor, output: str, path: Path) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def _read_export(path: Path, network: nn.Module) -> Predict:
    return torch.export.load(path).module()


def _write_script(network: nn.Module, example: Tensor, output: str, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation, and branches that depend on values; the outputs are checked
        torch.jit.trace(network, example, check_trace=False).save(str(path))


def _read_script(path: Path, network: nn.Module) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path), map_location="cpu")


FORMATS = {
    "safetensors": Format(
        file="student.safetensors",
        runtime="torch",
        write=_write_safetensors,
        read=_read_safetensors,
        usage="""from safetensors.torch import load_file
network.load_state_dict(load_file("student.safetensors"))  # {network}
logits = network.eval()((images - mean) / std)  # {input}; mean and std as above""",
        graph=False,
    ),
    "onnx": Format(
        file="student.onnx",
        runtime="onnxruntime",
        write=_write_onnx,
        read=read_onnx,
        usage="""import onnxruntime
session = onnxruntime.InferenceSession("student.onnx")
{output} = session.run(None, {{"images": images}})[0]  # a numpy array: {input}""",
        needs=("onnx", "onnxscript", "onnxruntime"),
    ),
    "torch_export": Format(
        file="student.pt2",
        runtime="torch",
        write=_write_export,
        read=_read_export,
        usage="""import torch
network = torch.export.load("student.pt2").module()
{output} = network(images)  # {input}""",
    ),
    "torchscript": Format(
        file="student.torchscript.pt",
        runtime="torch",
        write=_write_script,
        read=_read_script,
        usage="""import torch
network = torch.jit.load("student.torchscript.pt")
{output} = network(images)  # {input}""",
    ),
}
