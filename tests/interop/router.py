"""zenoh's router, from its Python package: what zenohd runs, without plugins. Prints `ready` and runs until killed.

    router.py ENDPOINT
"""

import json
import sys
import time

import zenoh

config = zenoh.Config()
config.insert_json5("mode", json.dumps("router"))
config.insert_json5("listen/endpoints", json.dumps([sys.argv[1]]))
config.insert_json5("scouting/multicast/enabled", "false")
session = zenoh.open(config)
print("ready", flush=True)
while True:
    time.sleep(1)
