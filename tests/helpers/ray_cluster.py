"""A Ray cluster of several nodes on this machine, for tests: `python ray_cluster.py NODES`, ended by the end of its input.

The first line on stdout is JSON: the head's address and the pid of each node's raylet. A line `N` on stdin takes node N away:
Ray's processes on it are killed.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

# Ray would give a silent node up after a quarter of a minute.
IMPATIENT = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": IMPATIENT, **SMALL})
    try:
        nodes = [cluster.add_node(num_cpus=2, **SMALL) for _ in range(int(sys.argv[1]))]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
            print(json.dumps({"removed": int(line)}), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
