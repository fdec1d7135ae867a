"""A recording by Foxglove's own Python packages (mcap, mcap-ros2-support): a JSON line for every message.

Checks what Foxglove needs before it shows anything: CRCs, a summary whose counts are those of the file, an index.
Numbers with a point are written as texts, so that no bit of them is lost on the way.
"""

import json
import sys

from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory


def plain(value):
    if isinstance(value, float):
        return f"f64:{value!r}"
    if isinstance(value, (str, bool, int)):
        return value
    return [plain(item) for item in value]


with open(sys.argv[1], "rb") as file:
    reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
    assert reader.get_header().profile == "ros2"
    summary = reader.get_summary()
    assert summary.chunk_indexes, "no index: it could only be read from its beginning"
    count = 0
    for schema, channel, message, decoded in reader.iter_decoded_messages():
        count += 1
        assert (schema.encoding, channel.message_encoding) == ("ros2msg", "cdr")
        names = [line.split()[1] for line in schema.data.decode().splitlines()]
        fields = {name: plain(getattr(decoded, name)) for name in names}
        print(json.dumps([channel.topic, schema.name, message.log_time, fields]))
    assert count == summary.statistics.message_count, (count, summary.statistics)
