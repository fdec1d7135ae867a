"""Type hashes by rosbags: lines `package/family/Name` on standard input, a line `RIHS01_...` each on standard output.

rosbags has no services: they are put together here as REP 2016 says, from request, response and event.
"""

import sys

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore, get_types_from_msg

STORES = [get_typestore(store) for store in (Stores.ROS2_JAZZY, Stores.ROS2_KILTED, Stores.LATEST)]
RCL = "rcl_interfaces/"
SERVICES = {
    "std_srvs/srv/Trigger": ("uint8 structure_needs_at_least_one_member\n", "bool success\nstring message\n"),
    "std_srvs/srv/SetBool": ("bool data\n", "bool success\nstring message\n"),
    "rcl_interfaces/srv/ListParameters": ("string[] prefixes\nuint64 depth\n", RCL + "ListParametersResult result\n"),
    "rcl_interfaces/srv/GetParameters": ("string[] names\n", RCL + "ParameterValue[] values\n"),
    "rcl_interfaces/srv/GetParameterTypes": ("string[] names\n", "uint8[] types\n"),
    "rcl_interfaces/srv/DescribeParameters": ("string[] names\n", RCL + "ParameterDescriptor[] descriptors\n"),
    "rcl_interfaces/srv/SetParameters": (RCL + "Parameter[] parameters\n", RCL + "SetParametersResult[] results\n"),
    "rcl_interfaces/srv/SetParametersAtomically": (
        RCL + "Parameter[] parameters\n",
        RCL + "SetParametersResult result\n",
    ),
}


def register(store, name, request, response):
    kinds = {}
    for suffix, text in (("_Request", request), ("_Response", response)):
        kinds[name + suffix] = next(iter(get_types_from_msg(text, name + suffix).values()))
    info, one = "service_msgs/msg/ServiceEventInfo", lambda kind: (Nodetype.SEQUENCE, ((Nodetype.NAME, kind), 1))
    event = [("info", (Nodetype.NAME, info)), ("request", one(name + "_Request")), ("response", one(name + "_Response"))]
    kinds[name + "_Event"] = ([], event)
    parts = [("request_message", "_Request"), ("response_message", "_Response"), ("event_message", "_Event")]
    kinds[name] = ([], [(part, (Nodetype.NAME, name + suffix)) for part, suffix in parts])
    store.register(kinds)
    # A `char` of a message definition is a uint8 in its type description; rosbags keeps it apart.
    constants, fields = store.fielddefs[info]
    octets = (Nodetype.ARRAY, ((Nodetype.BASE, ("uint8", 0)), 16))
    store.fielddefs[info] = (constants, [(n, octets if n == "client_gid" else f) for n, f in fields])


for store in STORES:
    for name, texts in SERVICES.items():
        register(store, name, *texts)
for name in sys.stdin.read().split():
    (value,) = {store.hash_rihs01(name) for store in STORES}
    print(value)
