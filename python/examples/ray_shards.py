"""Reads a folder of text files, one text a line, and writes shards with the residual stream at each text's last token: parquet, whose
rows have the texts too, or .npy, which have the arrays alone.

    pip install "ray[data]"
    python ray_shards.py texts/ shards/ --model gpt2 --workers 4 --gpus 1
"""

from __future__ import annotations

import argparse

import ray

from actscope.ray import Activations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="a folder of text files, one text a line")
    parser.add_argument("shards", help="a folder for the shards")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--hook", default="ln_final.hook_out")
    parser.add_argument("--format", choices=["parquet", "npy"], default="parquet")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    options = parser.parse_args()

    rows = ray.data.read_text(options.texts)
    activations = rows.map_batches(
        Activations,
        fn_constructor_kwargs={"model": options.model, "hooks": options.hook, "pos": -1},
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        # A worker counts as no CPU: as many of them as there are CPUs would leave none to read the texts, and everything would wait.
        num_cpus=0,
        num_gpus=options.gpus,
        batch_size=64,
    )
    if options.format == "parquet":
        activations.write_parquet(options.shards)
        written = ray.data.read_parquet(options.shards)
    else:
        activations.write_numpy(options.shards, column=options.hook)
        written = ray.data.read_numpy(options.shards)
    print(f"{written.count()} rows in {options.shards}")


if __name__ == "__main__":
    main()
