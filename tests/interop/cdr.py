"""Messages by rosbags, for comparison with Refrain's.

    cdr.py write SEED COUNT   random messages of the kinds that Refrain reads: one JSON line each, [kind, hex, tree]
    cdr.py check              lines `kind hex` on standard input: each is decoded and encoded again, which must give the same
                              bytes; answers one JSON line each, the tree
"""

import dataclasses
import json
import random
import struct
import sys

import numpy
from rosbags.typesys import Stores, get_typestore

ROS = get_typestore(Stores.ROS2_JAZZY)
TEXTS = ["", "a", "joint_1", "base_link", "gr\u00f6\u00dfe", "x" * 33]


def tree(value):
    """Messages and arrays as lists; a float as its sixteen hexadecimal digits."""
    if dataclasses.is_dataclass(value):
        return [tree(getattr(value, f.name)) for f in dataclasses.fields(value) if not (f.name.startswith("__") or f.name.isupper())]
    if isinstance(value, numpy.ndarray):
        return tree(value.tolist())
    if isinstance(value, (list, tuple)):
        return [tree(item) for item in value]
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    return value


def number(random):
    return random.choice([0.0, -1.5, random.uniform(-1e3, 1e3), random.uniform(-1, 1) * 1e-300, 1e300])


def make(kind, random):
    T = {name.split("/")[-1]: kind for name, kind in ROS.types.items() if name.split("/")[1] == "msg"}

    def numbers(count):
        return numpy.array([number(random) for _ in range(count)], dtype=numpy.float64)

    def header():
        stamp = ROS.types["builtin_interfaces/msg/Time"](random.randrange(2**31), random.randrange(10**9))
        return ROS.types["std_msgs/msg/Header"](stamp, random.choice(TEXTS))

    def vector():
        return ROS.types["geometry_msgs/msg/Vector3"](*numbers(3).tolist())

    def quaternion():
        return ROS.types["geometry_msgs/msg/Quaternion"](*numbers(4).tolist())

    if kind == "std_msgs/msg/Float64MultiArray":
        dimension = T["MultiArrayDimension"]
        dimensions = [dimension(random.choice(TEXTS), random.randrange(9), 1) for _ in range(random.randrange(3))]
        return T["Float64MultiArray"](T["MultiArrayLayout"](dimensions, 0), numbers(random.randrange(6)))
    if kind == "sensor_msgs/msg/JointState":
        count = random.randrange(1, 8)
        names = [f"{random.choice(TEXTS)}{i}" for i in range(count)]
        return T["JointState"](header(), names, numbers(count), numbers(random.choice([0, count])), numbers(0))
    if kind == "sensor_msgs/msg/Imu":
        parts = [quaternion(), numbers(9), vector(), numbers(9), vector(), numbers(9)]
        return T["Imu"](header(), *parts)
    if kind == "geometry_msgs/msg/PoseStamped":
        point = ROS.types["geometry_msgs/msg/Point"](*numbers(3).tolist())
        return T["PoseStamped"](header(), ROS.types["geometry_msgs/msg/Pose"](point, quaternion()))
    if kind == "geometry_msgs/msg/TwistStamped":
        return T["TwistStamped"](header(), ROS.types["geometry_msgs/msg/Twist"](vector(), vector()))
    return T["String"](random.choice(TEXTS))


KINDS = [
    "std_msgs/msg/Float64MultiArray",
    "sensor_msgs/msg/JointState",
    "sensor_msgs/msg/Imu",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/TwistStamped",
    "std_msgs/msg/String",
]


def write(seed, count):
    source = random.Random(seed)
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        message = make(kind, source)
        raw = bytes(ROS.serialize_cdr(message, kind))
        print(json.dumps([kind, raw.hex(), tree(message)]))


def check():
    for line in sys.stdin:
        kind, text = line.split()
        raw = bytes.fromhex(text)
        message = ROS.deserialize_cdr(raw, kind)
        again = bytes(ROS.serialize_cdr(message, kind))
        assert again == raw, f"{kind}\n{raw.hex()}\n{again.hex()}"
        print(json.dumps(tree(message)))


if sys.argv[1] == "write":
    write(int(sys.argv[2]), int(sys.argv[3]))
else:
    check()
