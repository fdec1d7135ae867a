"""A robot in a ROS 2 graph, from independent parts: zenoh's Python package, and rosbags for messages and type hashes.

Sees Refrain's node in the graph, feeds it joint states, checks its trajectories as joint_trajectory_controller does, joins
late to its latched mode, reads its health and parameters, and stops and enables it. Every mistake ends it with a message.

    graph.py ENDPOINT DOMAIN NODE JOINT...
"""

import json
import os
import struct
import sys
import threading
import time
import traceback

import numpy
import xxhash
import zenoh
import zenoh.ext
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

ROS = get_typestore(Stores.ROS2_JAZZY)
TRIGGER = ("std_srvs::srv::dds_::Trigger_", "eeff2cd6fa5ad9d27cdf4dec64818317839b62f212a91e6b5304b634b2062c5f")
SET_BOOL = ("std_srvs::srv::dds_::SetBool_", "abe9e4bb6b41b40e6789712c00ec8871923e089af3f667a79992a428cff2da0a")
# Services of parameters: hash, request, response. hashes.py computes the hashes.
PARAMETERS = {
    "list_parameters": (
        "ListParameters", "3e6062bfbb27bfb8730d4cef2558221f51a11646d78e7bb30a1e83afac3aad9d",
        "string[] prefixes\nuint64 depth\n", "rcl_interfaces/ListParametersResult result\n",
    ),
    "get_parameters": (
        "GetParameters", "bf9803d5c74cf989a5de3e0c2e99444599a627c7ff75f97b8c05b01003675cbc",
        "string[] names\n", "rcl_interfaces/ParameterValue[] values\n",
    ),
    "get_parameter_types": (
        "GetParameterTypes", "da199c878688b3e530bdfe3ca8f74cb9fa0c303101e980a9e8f260e25e1c80ca",
        "string[] names\n", "uint8[] types\n",
    ),
    "describe_parameters": (
        "DescribeParameters", "845b484d71eb0673dae682f2e3ba3c4851a65a3dcfb97bddd82c5b57e91e4cff",
        "string[] names\n", "rcl_interfaces/ParameterDescriptor[] descriptors\n",
    ),
    "set_parameters": (
        "SetParameters", "56eed9a67e169f9cb6c1f987bc88f868c14a8fc9f743a263bc734c154015d7e0",
        "rcl_interfaces/Parameter[] parameters\n", "rcl_interfaces/SetParametersResult[] results\n",
    ),
    "set_parameters_atomically": (
        "SetParametersAtomically", "0e192ef259c07fc3c07a13191d27002222e65e00ccec653ca05e856f79285fcd",
        "rcl_interfaces/Parameter[] parameters\n", "rcl_interfaces/SetParametersResult result\n",
    ),
}
PATIENCE = 30.0


def dds(kind):
    package, _, name = kind.split("/")
    return f"{package}::msg::dds_::{name}_"


def message_key(domain, topic, kind):
    return f"{domain}/{topic}/{dds(kind)}/{ROS.hash_rihs01(kind)}"


def service_key(domain, topic, service):
    return f"{domain}/{topic}/{service[0]}/RIHS01_{service[1]}"


def attachment(sequence, gid):
    return struct.pack("<qq", sequence, time.time_ns()) + bytes([16]) + gid


def gid_of(token):
    value = xxhash.xxh3_128_intdigest(token.encode())
    return struct.pack("<QQ", value & (1 << 64) - 1, value >> 64)


class Entity:
    """A liveliness token, read by rmw_zenoh's rules."""

    def __init__(self, token):
        parts = token.split("/")
        assert parts[0] == "@ros2_lv" and len(parts) >= 9 and all(parts), token
        self.token, self.domain, self.session = token, int(parts[1]), parts[2]
        self.node_id, self.id, self.kind = int(parts[3]), int(parts[4]), parts[5]
        assert self.kind in ("NN", "MP", "MS", "SS", "SC"), token
        self.enclave, self.namespace, self.node = parts[6:9]
        if self.kind != "NN":
            assert len(parts) >= 13, token
            self.topic, self.type, self.hash, self.qos = parts[9:13]
            assert self.hash.startswith("RIHS01_") and len(self.hash) == 71, token
            assert self.qos.count(":") == 5, token


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    sys.exit(f"never: {what}")


def graph(session, domain):
    replies = session.liveliness().get(f"@ros2_lv/{domain}/**", timeout=2.0)
    return [Entity(str(reply.ok.key_expr)) for reply in replies if reply.ok]


def ask(session, key, request, gid):
    """A call's response, checked as rmw_zenoh's client does."""
    replies = session.get(
        key,
        payload=request,
        attachment=attachment(1, gid),
        target=zenoh.QueryTarget.ALL_COMPLETE,
        consolidation=zenoh.ConsolidationMode.NONE,
        timeout=5.0,
    )
    for reply in replies:
        body, note = reply.ok.payload.to_bytes(), reply.ok.attachment.to_bytes()
        assert len(note) == 33 and note[:8] == struct.pack("<q", 1) and note[17:] == gid, note.hex()
        assert body[:4] == bytes([0, 1, 0, 0]), body.hex()
        return body
    sys.exit(f"nobody answered {key}")


def call(session, key, request, gid):
    body = ask(session, key, request, gid)
    length = struct.unpack_from("<I", body, 8)[0]
    return bool(body[4]), body[12 : 12 + length - 1].decode()


def check_parameters(session, domain, node, gid):
    """What `ros2 param` asks a node, with rosbags' messages: list, types, values, descriptions; setting is refused."""

    def call_for(service, *fields):
        name, hash, request, response = PARAMETERS[service]
        kinds = [f"rcl_interfaces/srv/{name}_Request", f"rcl_interfaces/srv/{name}_Response"]
        for kind, text in zip(kinds, (request, response)):
            if kind not in ROS.types:
                ROS.register({kind: next(iter(get_types_from_msg(text, kind).values()))})
        raw = bytes(ROS.serialize_cdr(ROS.types[kinds[0]](*fields), kinds[0]))
        kind = (f"rcl_interfaces::srv::dds_::{name}_", hash)
        body = ask(session, service_key(domain, f"{node}/{service}", kind), raw, gid)
        answer = ROS.deserialize_cdr(body, kinds[1])
        assert bytes(ROS.serialize_cdr(answer, kinds[1])) == body, body.hex()
        return answer

    result = call_for("list_parameters", [], 0).result
    assert "action.velocity" in result.names and result.prefixes == ["action", "control", "observation", "policy"], result
    assert call_for("list_parameters", ["control"], 0).result.names == ["control.rate_hz"]
    names = result.names + ["no.such"]
    types = call_for("get_parameter_types", names).types
    values = call_for("get_parameters", names).values
    assert [value.type for value in values] == list(types) and types[-1] == 0 and all(types[:-1]), types
    by = dict(zip(names, values))
    assert by["name"].string_value == node and by["control.rate_hz"].double_value == 100.0, by
    assert list(by["action.velocity"].double_array_value) == [200.0, 200.0], by["action.velocity"]
    described = call_for("describe_parameters", ["control.rate_hz"]).descriptors[0]
    assert described.read_only and described.description and described.type == 3, described
    parameter = ROS.types["rcl_interfaces/msg/Parameter"]("control.rate_hz", by["control.rate_hz"])
    (refused,) = call_for("set_parameters", [parameter]).results
    assert not refused.successful and "robot.toml" in refused.reason, refused
    assert not call_for("set_parameters_atomically", [parameter]).result.successful
    print(f"parameters: {len(result.names)}; set: {refused.reason}")


def check_trajectory(sample, arrival, joints, publisher):
    """What joint_trajectory_controller asks of a message, and what rmw_zenoh asks of its attachment."""
    raw, note = sample.payload.to_bytes(), sample.attachment.to_bytes()
    message = ROS.deserialize_cdr(raw, "trajectory_msgs/msg/JointTrajectory")
    assert bytes(ROS.serialize_cdr(message, "trajectory_msgs/msg/JointTrajectory")) == raw, raw.hex()
    assert sorted(message.joint_names) == sorted(joints), message.joint_names
    assert message.points, "a trajectory without points"
    before = 0
    for point in message.points:
        at = point.time_from_start.sec * 10**9 + point.time_from_start.nanosec
        assert at > before, f"times are not strictly increasing: {at} after {before}"
        before = at
        assert len(point.positions) == len(joints), point
        assert not len(point.velocities) and not len(point.accelerations) and not len(point.effort), point
    stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
    assert stamp + before > arrival, "it has ended already"
    sequence, source = struct.unpack_from("<qq", note)
    assert note[16] == 16 and note[17:33] == gid_of(publisher.token), note.hex()
    assert abs(source - arrival) < 10**9, source
    return sequence


def main():
    endpoint, domain, node, *joints = sys.argv[1:]
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("client"))
    config.insert_json5("connect/endpoints", json.dumps([endpoint]))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("timestamping/enabled", "true")
    session = zenoh.open(config)

    # The graph, as `ros2 node list` and `ros2 topic info` see it.
    def complete():
        ours = [entity for entity in graph(session, domain) if entity.node == node]
        return ours if sum(entity.kind == "SS" for entity in ours) == 11 else None

    ours = wait_for("the node in the graph", complete)
    assert [e.kind for e in ours].count("NN") == 1, "one node"
    assert len({entity.id for entity in ours if entity.kind != "NN"}) == len(ours) - 1, "numbers are unique"
    assert len({entity.session for entity in ours}) == 1
    by = {(e.kind, e.topic): e for e in ours if e.kind != "NN"}
    expected = {
        ("MS", "%joint_states"): ("sensor_msgs/msg/JointState", "2::,5:,:,:,,"),
        ("MP", "%arm_controller%joint_trajectory"): ("trajectory_msgs/msg/JointTrajectory", "::,1:,:,:,,"),
        ("MP", "%arm_controller%commands"): ("std_msgs/msg/Float64MultiArray", "::,1:,:,:,,"),
        ("MP", "%diagnostics"): ("diagnostic_msgs/msg/DiagnosticArray", "::,10:,:,:,,"),
        ("MP", f"%{node}%mode"): ("std_msgs/msg/String", ":1:,1:,:,:,,"),
        ("MS", f"%{node}%stop"): ("std_msgs/msg/Empty", "::,10:,:,:,,"),
    }
    for entry, (kind, qos) in expected.items():
        entity = by[entry]
        assert (entity.type, entity.hash, entity.qos) == (dds(kind), ROS.hash_rihs01(kind), qos), entity.token
    print(f"graph: {len(ours)} tokens of /{node}")

    # Joint states in, trajectories out.
    got, states_key = [], message_key(domain, "joint_states", "sensor_msgs/msg/JointState")
    session.declare_subscriber(
        message_key(domain, "arm_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"),
        lambda sample: got.append((sample, time.time_ns())),
    )
    token = f"@ros2_lv/{domain}/{session.info.zid()}/0/1/MP/%/%/arm/%joint_states/"
    token += "/".join(states_key.split("/")[-2:]) + "/::,10:,:,:,,"
    _alive = session.liveliness().declare_token(token)
    publisher, running = session.declare_publisher(states_key), threading.Event()
    State, Header, Time = (
        ROS.types[name]
        for name in ("sensor_msgs/msg/JointState", "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    )

    def feed():
        sequence = 0
        while not running.is_set():
            sequence += 1
            now = time.time_ns()
            header = Header(stamp=Time(sec=now // 10**9, nanosec=now % 10**9), frame_id="")
            # The other way round: joints are found by name.
            names = joints[::-1]
            none = numpy.array([])
            state = State(
                header=header, name=names, position=numpy.full(len(names), 100.0), velocity=none, effort=none
            )
            raw = bytes(ROS.serialize_cdr(state, "sensor_msgs/msg/JointState"))
            publisher.put(raw, attachment=attachment(sequence, gid_of(token)))
            time.sleep(0.02)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    wait_for("three trajectories", lambda: len(got) >= 3)
    entity = by[("MP", "%arm_controller%joint_trajectory")]
    sequences = [check_trajectory(*each, joints[-2:], entity) for each in got[:3]]
    assert sequences == list(range(sequences[0], sequences[0] + 3)), sequences
    print(f"trajectories: {sequences}, {len(got[0][0].payload.to_bytes())} bytes")

    # A latched topic, joined late; health.
    modes, health = [], []
    zenoh.ext.declare_advanced_subscriber(
        session,
        message_key(domain, f"{node}/mode", "std_msgs/msg/String"),
        lambda sample: modes.append(ROS.deserialize_cdr(sample.payload.to_bytes(), "std_msgs/msg/String").data),
        history=zenoh.ext.HistoryConfig(detect_late_publishers=True, max_samples=1),
        subscriber_detection=True,
    )
    wait_for("the latched mode", lambda: "running" in modes)
    kind = "diagnostic_msgs/msg/DiagnosticArray"
    session.declare_subscriber(message_key(domain, "diagnostics", kind), health.append)
    wait_for("health", lambda: health)
    array = ROS.deserialize_cdr(health[0].payload.to_bytes(), kind)
    assert [status.name for status in array.status] == [f"{node}: {p}" for p in ("control", "policy", "observations")]
    assert array.status[2].level == 0, array.status[2]
    print(f"mode: {modes}; health: {[status.message for status in array.status]}")

    gid = gid_of("a client of this test")
    check_parameters(session, domain, node, gid)

    # Our stop, and on again.
    answer = call(session, service_key(domain, f"{node}/stop", TRIGGER), bytes([0, 1, 0, 0, 0]), gid)
    assert answer == (True, "stop latched"), answer
    wait_for("stopped", lambda: modes[-1] == "stopped")
    answer = call(session, service_key(domain, f"{node}/enable", SET_BOOL), bytes([0, 1, 0, 0, 1]), gid)
    assert answer == (True, "reset asked for"), answer
    wait_for("running again", lambda: modes[-1] == "running")
    answer = call(session, service_key(domain, f"{node}/enable", SET_BOOL), bytes([0, 1, 0, 0, 0]), gid)
    assert answer == (True, "stop latched"), answer
    wait_for("stopped again", lambda: modes[-1] == "stopped")
    running.set()
    feeder.join()
    print(f"stopped, enabled, stopped: {modes}")
    session.close()


try:
    main()
except BaseException:
    # At once: an open session would keep the process.
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
