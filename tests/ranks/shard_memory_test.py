"""What a rank of four (rank 0) holds when weights are sharded: at its peak a quarter of the weights, two whole layers and
the activations, within 5%, for a model whose weights weigh most.

usage: shard_memory_test.py DMS REPOSITORY
"""

import pathlib
import sys
import tempfile

dms, repository = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(repository / "tools"))
import check_plan  # noqa: E402
import random_model  # noqa: E402

RANKS, TOKENS = 4, 128
MIB = 2**20
# 14 layers of 36 MiB, so that a third whole one would not go unnoticed; embedding and head of 29 MiB each.
SHAPE = random_model.Shape(layers=14, hidden=768, heads=12, kv_heads=12, head_dim=64, inner=3072, vocabulary=10000,
                           tied=False)


def layer_bytes(shape):
    return sum(4 * random_model.numel(size) for name, size in shape.tensors().items() if name.startswith("model.layers.0."))


def main():
    with tempfile.TemporaryDirectory(prefix="dms-shard-") as name:
        model = pathlib.Path(name) / "sharded"
        bench = check_plan.Bench(dms, model.parent)
        bench.write_model(model.name, SHAPE)
        bench.write_tokens(model)
        process, _ = bench.process_bytes(RANKS)
        case = check_plan.Case(model, TOKENS, "shard", RANKS, "full", f"trainer.global_batch={RANKS}")
        plan = bench.planned(case)["per_rank_bytes"]
        found = bench.measured(case) - process
        rest = plan["total"] - plan["weights"] - plan["buffers"]
        quarter, layers = SHAPE.bytes() / RANKS, 2 * layer_bytes(SHAPE)
        print(f"{found / MIB:.0f} MiB; a quarter of the weights {quarter / MIB:.0f}, two layers {layers / MIB:.0f}, "
              f"activations and the rest {rest / MIB:.0f}")
        assert quarter > layers + rest, "weights do not weigh most"
        limit = 1.05 * (quarter + layers + rest)
        assert found <= limit, f"{found / MIB:.0f} MiB are more than {limit / MIB:.0f}"


main()
