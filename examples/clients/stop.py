"""Stops a robot, latched, from any machine that reaches its bus: `pip install eclipse-zenoh`.

    python stop.py tcp/127.0.0.1:7447 pusht/stop
"""

import json
import sys

import zenoh

endpoint, key = sys.argv[1:3]
config = zenoh.Config()
config.insert_json5("connect/endpoints", json.dumps([endpoint]))
config.insert_json5("scouting/multicast/enabled", "false")
with zenoh.open(config) as session:
    # A std_srvs/Trigger request is one dummy byte after CDR's header; so is its answer's start: success, then a text.
    for reply in session.get(key, payload=bytes([0, 1, 0, 0, 0]), timeout=2.0):
        answer = reply.ok.payload.to_bytes()
        print(answer[12:-1].decode())
        sys.exit(0 if answer[4] else 1)
sys.exit(f"nobody answered {key}: use the power switch")
