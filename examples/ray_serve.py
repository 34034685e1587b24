"""The server on a Ray cluster: replicas that grow and shrink with the load, each with the model in its own memory.

    pip install ".[serve,ray]"
    python examples/ray_serve.py runs/nano/model                              # on this machine, at port 8000
    serve run examples.ray_serve:app model=/models/phi most=4 gpus=1 host=chat.example.org    # on a cluster

Streams pass Ray's proxy as they come, and who hangs up is noticed. `host` is a name that clients reach it by, besides
localhost; `key` is one that they then need.
"""

import sys
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from polyphi import load
from polyphi.serve.admission.settings import Settings
from polyphi.serve.app import create_app

MAX_NUM_SEQS = 32


def app(args: dict[str, str]) -> Application:
    """`args`: model, and optionally most (replicas), cpus and gpus (of each), host, key."""
    hosts, keys = (tuple(filter(None, [args.get(name)])) for name in ("host", "key"))
    # Ray stops replicas whenever the load sinks: their requests have time to finish.
    settings = Settings(Path(args["model"]).name, hosts=hosts, keys=keys, drain_seconds=60.0)

    def replica() -> FastAPI:
        return create_app(load(args["model"], max_num_seqs=MAX_NUM_SEQS).engine, settings)

    deployment = serve.deployment(
        serve.ingress(replica)(),
        name="polyphi",
        max_ongoing_requests=MAX_NUM_SEQS + settings.max_waiting,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": int(args.get("most", 1)),
            "target_ongoing_requests": MAX_NUM_SEQS // 2,
        },
        ray_actor_options={
            "num_cpus": float(args.get("cpus", 1)),
            "num_gpus": float(args.get("gpus", 0)),
        },
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return deployment.bind()


if __name__ == "__main__":
    serve.run(app({"model": sys.argv[1]}), blocking=True)
