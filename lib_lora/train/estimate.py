"""What a job will cost on a base: the file's size to the byte, the memory roughly, and what is learned how often."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.train.base_shapes import BASES, BaseShapes, Widths
from lib_lora.train.config import JobConfig
from lib_lora.train.methods.base import CHECKPOINT, EMBEDDING, HYPERNETWORK, NETWORK
from lib_lora.train.methods.network import NetworkMethod
from lib_lora.train.methods.registry import method_of
from lib_lora.train.sections import NetworkSection

if TYPE_CHECKING:
    from lib_lora.networks.base import Layer

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
GB = 1e9
FLAT = 0.8 * GB  # CUDA's own, kernels, fragments
# Bytes of activations one picture of 512 px needs in half precision, kept and recomputed (checkpointing).
# Figures of peers' users for the presets in the file beside: what they call 6, 8, 12 and 24 GB jobs fits there.
ACTIVATIONS: Mapping[str, tuple[float, float]] = {
    "sd1": (1.65 * GB, 0.45 * GB),
    "sd2": (1.7 * GB, 0.45 * GB),
    "sdxl": (2.4 * GB, 0.40 * GB),
}
# Bytes of optimizer state for each trained number; adafactor's and sgd's are next to nothing.
OPTIMIZER_BYTES: dict[str, float] = {
    "adamw": 8,
    "adamw8bit": 2,
    "paged_adamw8bit": 2,
    "lion": 4,
    "lion8bit": 1,
    "paged_lion8bit": 1,
}
OPTIMIZER_BYTES |= {"adafactor": 0.1, "prodigy": 16, "schedulefree": 12, "sgd": 4, "custom": 8}
FLOAT32 = 4


@dataclass(frozen=True)
class Size:
    """What a job trains: how many numbers and layers; `file` is the bytes of what it writes, without metadata."""

    numbers: int
    layers: int
    file: int


@dataclass(frozen=True)
class Visits:
    """How often pictures are looked at: `visits` in all, `each` of every picture, in `steps` of `per_step`."""

    steps: int
    per_step: int
    visits: int
    pictures: int
    each: float
    epochs: float


def visits_of(job: JobConfig, pictures: int) -> Visits:
    """How often `pictures` pictures are seen in a job (0: not known)."""
    training = job.training
    per_step = training.batch_size * training.accumulation
    per_epoch = pictures * (job.data.repeats if not job.concepts else 1)
    steps = training.steps
    if training.epochs is not None and per_epoch:
        steps = -(-training.epochs * per_epoch // per_step)
    visits = steps * per_step if training.epochs is None or not per_epoch else training.epochs * per_epoch
    each = visits / pictures if pictures else 0.0
    return Visits(steps, per_step, visits, pictures, each, visits / per_epoch if per_epoch else 0.0)


class Estimator:
    """Estimates for jobs on bases; `widths` of a base that is none of the usual ones (the miniature) by its version."""

    def __init__(self, widths: Widths | None = None) -> None:
        self._widths = widths
        self._shapes = lru_cache(maxsize=4)(self._new_shapes)
        self._usual = lru_cache(maxsize=4)(lambda version: BaseShapes(BASES[version]))
        self._network = lru_cache(maxsize=64)(self._count_network)

    def size(self, job: JobConfig, version: str) -> Size | None:
        """What the job trains and writes; None for a version nobody knows the layers of. Raises BadConfig."""
        if self._widths is None and version not in BASES:
            return None
        method = method_of(job.method.name)
        numbers = layers = 0
        network_bytes = 0
        if isinstance(method, NetworkMethod):
            numbers, layers, network_bytes = self._network(version, method.section(job), job.output.dtype)
        words = self._embedding_bytes(job, version)
        files = {CHECKPOINT: 0, NETWORK: 0, EMBEDDING: words, HYPERNETWORK: 0}
        products = method.products(job, job.output.name)
        places = Counter(product.place for product in products)
        if places[CHECKPOINT]:
            files[CHECKPOINT] = self._base_numbers(version) * BYTES[job.output.dtype]
        if places[NETWORK]:
            extracted = dataclasses.replace(job.network, type="lora", targets="all", rank=job.method.as_lora or 1)
            files[NETWORK] = self._network(version, extracted, job.output.dtype)[2] if job.method.as_lora else 0
            files[NETWORK] = files[NETWORK] or network_bytes
        if places[HYPERNETWORK]:
            numbers = self._hypernetwork_numbers(job, version)
            files[HYPERNETWORK] = numbers * FLOAT32
        if places[EMBEDDING]:
            numbers += words // FLOAT32 * places[EMBEDDING]
        return Size(numbers, layers, sum(files[place] * count for place, count in places.items()))

    def memory(self, job: JobConfig, version: str, half: bool = True) -> int | None:
        """Bytes a job needs beside other programs, about; `half`: the base is held in fp16 or bf16."""
        size = self.size(job, version)
        if size is None:
            return None
        width = 2 if (half and job.base.dtype != "fp32") or job.base.dtype in ("fp16", "bf16") else 4
        base = self._base_numbers(version) * width
        trained = size.numbers * (2 * FLOAT32 + OPTIMIZER_BYTES[job.optimizer.name] + (4 if job.optimizer.ema else 0))
        kept, recomputed = ACTIVATIONS[version]
        each = (recomputed if job.training.checkpointing else kept) * (job.data.resolution / 512) ** 2
        pictures = job.training.batch_size * (2 if job.prior.weight else 1)
        text = 0.0
        if job.network.train_text_encoder or job.network.train_text_encoder_2:
            text = (0.1 if job.training.checkpointing else 0.25) * GB * pictures
        return int(FLAT + base + trained + (each * pictures + text) * (width / 2) * self.share(version) ** 0.5)

    def share(self, version: str) -> float:
        """How large the UNet is beside the usual one of its version: 1 but for the miniature; 1 for what is unknown."""
        if self._widths is None:
            return 1.0
        return self._shapes(version).numbers(UNET) / self._usual(version).numbers(UNET)

    def _new_shapes(self, version: str) -> BaseShapes:
        return BaseShapes(self._widths or BASES[version])

    def _base_numbers(self, version: str) -> int:
        shapes = self._shapes(version)
        return sum(shapes.numbers(part) for part in (UNET, TE1, TE2)) + shapes.widths.vae

    def _embedding_bytes(self, job: JobConfig, version: str) -> int:
        return job.method.tokens * sum(self._shapes(version).widths.text) * FLOAT32

    def _hypernetwork_numbers(self, job: JobConfig, version: str) -> int:
        from lib_lora.train.hypernetwork import Shape

        widths = self._shapes(version).widths
        multiples = Shape(job.method).widths
        total = 0
        for width in {widths.cross, *_attended(self._shapes(version))}:
            sides = [int(width * multiple) for multiple in multiples]
            total += 2 * sum(after * before + after for before, after in pairwise(sides))
            total += 2 * sum(2 * after for after in sides[1:]) if job.method.hyper_norm else 0
        return total

    def _count_network(self, version: str, network: NetworkSection, dtype: str) -> tuple[int, int, int]:
        """Numbers, layers and bytes of a new network: one layer of each kind is made, and counted as often as it is."""
        import torch

        from lib_lora.train.layers import new_layers
        from lib_lora.train.targets import pattern, target_keys

        shapes = self._shapes(version)
        named_ranks = [pattern("network.ranks", line.rpartition("=")[0]) for line in network.ranks]
        alike: dict[object, list[LayerKey]] = {}
        for key in target_keys(shapes, network):
            module: Any = shapes.slots()[key].module
            named = next((place for place, line in enumerate(named_ranks) if line.search(str(key))), None)
            sign = (tuple(module.weight.shape), module.bias is not None, key.path.rpartition(".")[2], key.part, named)
            alike.setdefault(sign, []).append(key)
        firsts = BaseShapes(shapes.widths, frozenset(keys[0] for keys in alike.values()))
        made = new_layers(firsts, network, torch.Generator())
        numbers = layers = 0
        lines: list[tuple[int, str]] = []
        for keys in alike.values():
            layer = made[keys[0]]
            numbers += len(keys) * sum(parameter.numel() for parameter in layer.parameters())
            layers += len(keys)
            lines += [line for key in keys for line in _lines(key, layer, version, dtype)]
        size = sum(own for own, _ in lines)
        header = sum(len(line) + 2 * len(str(size)) for _, line in lines)
        return numbers, layers, size + header


def _attended(shapes: BaseShapes) -> set[int]:
    """The widths that keys of self-attention read."""
    held: list[Any] = [slot.module for key, slot in shapes.slots().items() if key.path.endswith(".attn1.to_k")]
    return {module.weight.shape[1] for module in held}


def _lines(key: LayerKey, layer: Layer, version: str, dtype: str) -> Iterator[tuple[int, str]]:
    """One layer's tensors in a file: their bytes, and their lines in its header but for the offsets' digits."""
    from lib_lora.files.codec import kohya_tensors

    for name, tensor in kohya_tensors({key: layer.to_tensors()}, version).items():
        whole = tensor.numel() == 1 or not tensor.is_floating_point()
        shape = ",".join(map(str, tensor.shape))
        line = f'"{name}":{{"dtype":"F16","shape":[{shape}],"data_offsets":[,]}},'
        yield tensor.numel() * (tensor.element_size() if whole else BYTES[dtype]), line
