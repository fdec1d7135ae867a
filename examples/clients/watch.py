"""Reads a robot's commands and refuses what is no longer valid: `pip install eclipse-zenoh`.

    python watch.py tcp/127.0.0.1:7447 pusht/command
"""

import json
import struct
import sys
import time

import zenoh

endpoint, key = sys.argv[1:3]
config = zenoh.Config()
config.insert_json5("connect/endpoints", json.dumps([endpoint]))
config.insert_json5("scouting/multicast/enabled", "false")


def on_command(sample):
    # std_msgs/Float64MultiArray in CDR: header, empty layout, data offset, count, padding, doubles.
    body, note = sample.payload.to_bytes(), sample.attachment.to_bytes()
    (count,) = struct.unpack_from("<I", body, 12)
    values = struct.unpack_from(f"<{count}d", body, 20)
    sequence, made = struct.unpack_from("<qq", note)
    observed, valid_until = struct.unpack_from("<qq", note, 33)
    fate = "ok" if time.time_ns() <= valid_until else "too late, not to be executed"
    print(f"{sequence}: {values} from {(made - observed) / 1e6:.0f} ms ago, {fate}", flush=True)


with zenoh.open(config) as session:
    subscriber = session.declare_subscriber(key, on_command)
    input("Enter ends\n")
