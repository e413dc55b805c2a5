"""One run on a Ray cluster.

    python examples/ray/train.py recipe.yaml --workers 2 [--gpus] [--address auto] [--set key=value ...]

Without --address Ray starts on this machine alone. output_dir must be an absolute path that all machines share, the
model and SENGI_CACHE too. The same command continues a run.
"""

import argparse

import ray

from sengi import resolve_recipe
from sengi.train.ray_launcher import RayJob, train_on_ray

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("--address", default="local")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    ray.init(address=given.address)
    print(train_on_ray(RayJob(resolve_recipe(given.recipe, given.set), given.workers, given.gpus)))
