"""How near a step's forces come to the limits of the hardware: counted work and traffic against measured ceilings.

python tests/benchmarks/roofline.py [--smoke] [--system alanine-dipeptide] [--cutoff 5] [--batch 16] [--device cpu]

Every operation of one evaluation of the forces is seen: floating point operations (matrix products and transforms by their
formulas, one per element for the rest), bytes of tensors read and written. Ceilings are taken in the same run: a large matrix
product, products of the network's own shapes, and triads x = y + 2 z, once far larger than the caches and once of the size of
the step's own tables. An operation can take no less than its work at the highest rate or its traffic at the highest bandwidth;
the sum over operations is the bound that the measured time is compared with. The last line is one JSON object.
"""

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from provenance import provenance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from walk import KINDS, Kind, model_for, structures

from pipeline.batching import Batch, make_batch
from pipeline.bias import biased_forces, species_weights
from pipeline.potentials.gmnn import GMNN
from pipeline.potentials.model import Model
from pipeline.settings.potential import GMNNSettings
from pipeline.settings.walkers import BiasSettings

SKIN_A = 1.0
GROUPS = ("network", "small products", "transforms", "element by element")


@dataclass
class Count:
    """Of one group of operations: calls, floating point operations, bytes, and the least seconds they can take."""

    calls: int = 0
    flop: float = 0.0
    bytes: float = 0.0
    bounds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Counter(TorchDispatchMode):
    """Notes the work and traffic of every operation that is not only another view."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        storages = {x.untyped_storage()._cdata for x in read}
        is_view = not func._schema.is_mutable and all(x.untyped_storage()._cdata in storages for x in written)
        if written and not is_view:
            traffic = sum(_touched(x) for x in read + written)
            self.operations.append((_group(func), _flop(func, args, kwargs or {}, out, written), traffic))
        return out


def _touched(tensor: Tensor) -> int:
    """Bytes of a tensor, those of an expanded one once."""
    shape = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(shape) * tensor.element_size()


def _group(func: Any) -> str:  # an operator of torch
    name = func._schema.name.split("::")[1]
    if name in ("mm", "addmm"):
        return "network"
    if name in ("bmm", "baddbmm"):
        return "small products"
    return "transforms" if name.startswith("_fft") else "element by element"


def _flop(func: Any, args: Any, kwargs: Any, out: Any, written: list[Tensor]) -> float:
    if func._overloadpacket in flop_registry:
        return float(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
    if _group(func) == "transforms":
        length = max(args[0].shape[-1], written[0].shape[-1])
        return 2.5 * length * math.log2(length) * math.prod(written[0].shape[:-1])
    return float(sum(x.numel() for x in written))


def seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call: of the processor, or until the GPU has finished."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    function()
    taken = []
    for _ in range(repeats):
        started = clock()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(clock() - started)
    return statistics.median(taken)


def product_rate(rows: int, inner: int, columns: int, device: str, repeats: int) -> float:
    """FLOP/s of a float32 matrix product."""
    x, y = torch.randn(rows, inner, device=device), torch.randn(columns, inner, device=device)
    return 2.0 * rows * inner * columns / seconds(lambda: x @ y.t(), device, repeats)


def bandwidth(size: int, device: str, repeats: int) -> float:
    """Bytes/s of x = y + 2 z over three arrays of together ``size`` bytes."""
    x, y, z = (torch.ones(size // 12, device=device) for _ in range(3))
    loops = max(1, 2**24 // size)

    def triads() -> None:
        for _ in range(loops):
            torch.add(y, z, alpha=2.0, out=x)

    return loops * 12.0 * (size // 12) / seconds(triads, device, repeats)


def ceilings(model: Model, atoms: int, table: int, device: str, *, smoke: bool) -> dict[str, float]:
    """Measured rates: FLOP/s and bytes/s."""
    potential = model.first
    assert isinstance(potential, GMNN)
    repeats, large = (3, 256) if smoke else (15, 2048 if device == "cpu" else 8192)
    shapes = [tuple(layer.weight.shape) for layer in potential.linear_layers[:-1]]
    work = [n_in * n_out for n_out, n_in in shapes]
    times = [w / product_rate(atoms, s[1], s[0], device, repeats) for w, s in zip(work, shapes, strict=True)]
    return {
        "large_product_flop_per_s": product_rate(large, large, large, device, repeats),
        "network_product_flop_per_s": sum(work) / sum(times),
        "stream_bytes_per_s": bandwidth(2**22 if smoke else 2**29, device, repeats),
        "table_bytes_per_s": bandwidth(max(3 * 2**12, table), device, repeats),
    }


def count(step: Callable[[], object], limits: dict[str, float]) -> dict[str, Count]:
    """Work, traffic and bounds of one step by group."""
    with Counter() as counter:
        step()
    counts = {name: Count() for name in GROUPS}
    rate = max(limits["large_product_flop_per_s"], limits["network_product_flop_per_s"])
    for group, flop, traffic in counter.operations:
        one = counts[group]
        one.calls, one.flop, one.bytes = one.calls + 1, one.flop + flop, one.bytes + traffic
        for memory in ("stream", "table"):
            one.bounds[memory] += max(flop / rate, traffic / limits[f"{memory}_bytes_per_s"])
    return counts


def evaluation(kind: Kind, model: Model, batch: Batch) -> Callable[[], object]:
    """One evaluation of the forces that move walkers of this kind."""
    settings = BiasSettings(tau=kind.tau, species_weights={"H": 0.0} if kind.heavy_only else {})
    weights = species_weights(settings, batch.numbers)
    strength = torch.full((len(batch),), 0.1, dtype=torch.float64, device=batch.positions.device) if kind.tau else None
    return lambda: biased_forces(
        model, batch, settings=settings, strength=strength, weights=weights, split=False, features=bool(kind.tau)
    )


def report(kind: Kind, model: Model, batch: Batch, device: str, *, smoke: bool) -> dict[str, Any]:
    """Measure one kind, print its table."""
    step = evaluation(kind, model, batch)
    atoms, walkers = len(batch.numbers), len(batch)
    # the largest tables of a step: the radial basis by element, the inputs of the network
    rows = max(batch.neighbors.shape[1] * 40, 910) * atoms * 4
    limits = ceilings(model, atoms, 3 * rows, device, smoke=smoke)
    counts = count(step, limits)
    taken = seconds(step, device, 3 if smoke else 15)
    flop, traffic = sum(c.flop for c in counts.values()), sum(c.bytes for c in counts.values())
    bound = {memory: sum(c.bounds[memory] for c in counts.values()) for memory in ("stream", "table")}
    network = counts["network"].flop / limits["network_product_flop_per_s"]
    print(f"\n{kind.name}: {1e3 * taken / walkers:.3f} ms per walker-step on {device}")
    print(f"{'':<20}{'calls':>7}{'MFLOP':>10}{'MB':>9}{'FLOP/B':>8}{'bound ms':>10}")
    for name, c in counts.items():
        print(
            f"{name:<20}{c.calls:>7}{c.flop / walkers / 1e6:>10.2f}{c.bytes / walkers / 1e6:>9.2f}"
            f"{c.flop / max(c.bytes, 1.0):>8.1f}{1e3 * c.bounds['table'] / walkers:>10.3f}"
        )
    print(
        f"{flop / taken / 1e9:.1f} GFLOP/s of {limits['large_product_flop_per_s'] / 1e9:.1f} (large product; "
        f"{limits['network_product_flop_per_s'] / 1e9:.1f} in the network's shapes), {traffic / taken / 1e9:.1f} GB/s of "
        f"{limits['stream_bytes_per_s'] / 1e9:.1f} (memory) and {limits['table_bytes_per_s'] / 1e9:.1f} (tables)\n"
        f"share of the bound: {bound['table'] / taken:.0%} with tables in cache, {bound['stream'] / taken:.0%} from memory; "
        f"the network's products alone {network / taken:.0%}",
        flush=True,
    )
    return {
        "kind": kind.name,
        "ms_per_walker_step": 1e3 * taken / walkers,
        "flop_per_walker_step": flop / walkers,
        "bytes_per_walker_step": traffic / walkers,
        "flop_per_s": flop / taken,
        "bytes_per_s": traffic / taken,
        "attained_share_tables_in_cache": bound["table"] / taken,
        "attained_share_from_memory": bound["stream"] / taken,
        "network_share": network / taken,
        "groups": {
            n: {"calls": c.calls, "flop": c.flop / walkers, "bytes": c.bytes / walkers} for n, c in counts.items()
        },
        "ceilings": limits,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--system", default="alanine-dipeptide", help="a template, or a structure file")
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=16, help="walkers")
    parser.add_argument("--kinds", nargs="+", default=["unbiased", "biased", "sketched"], help="as in walk.py")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"channels": 3, "hidden": (16,)} if asked.smoke else {"channels": 7, "hidden": (512, 512)}
    settings = GMNNSettings(gaussians=9, cutoff_A=asked.cutoff, **sizes)
    frames = structures(asked.system)
    copies = [frames[k % len(frames)] for k in range(2 if asked.smoke else asked.batch)]
    batch = make_batch(copies, settings.cutoff_A + SKIN_A).to(torch.device(asked.device))
    print(f"{asked.system}: {len(copies)} walkers of {len(copies[0])} atoms, {batch.neighbors.shape[1]} neighbours")
    results = []
    for kind in (one for one in KINDS if one.name in asked.kinds):
        model = model_for(frames, settings, *kind.model, device=asked.device)
        results.append(report(kind, model, batch, asked.device, smoke=asked.smoke))
    about = {"system": asked.system, "atoms": len(copies[0]), "batch": len(copies), "device": asked.device}
    print(
        json.dumps(
            {
                "benchmark": "roofline",
                **about,
                "neighbors": batch.neighbors.shape[1],
                "kinds": results,
                "settings": settings.model_dump(mode="json"),
                **provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
