/* The frames between host and microcontroller, for firmware in C (C99, little-endian, no heap).
 *
 * The byte tables and what the fields mean: the documentation of the Rust module `wire` in this folder. A test compiles
 * this header and compares offsets, sizes, CRC, COBS and the worked example with Rust.
 *
 * Every field lies at a multiple of its size, so the structs need no packing: copy a checked frame into one
 * (memcpy; do not cast the receive buffer, its alignment is unknown).
 *
 * Receiving: collect bytes up to a zero byte, refrain_cobs_decode, refrain_frame_kind (checks length, magic, CRC,
 * version and joints), then the check of that kind. Drop and count whatever fails.
 */
#ifndef REFRAIN_WIRE_H
#define REFRAIN_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define REFRAIN_MAGIC 0xA5u
#define REFRAIN_VERSION 1u
#define REFRAIN_MAX_JOINTS 16u
#define REFRAIN_MAX_POINTS 64u
#define REFRAIN_MAX_VALUES 448u
#define REFRAIN_MAX_FRAME 1860u
#define REFRAIN_MAX_ENCODED 1869u /* on a serial line, with the delimiter */
#define REFRAIN_HEADER_LEN 24u
#define REFRAIN_CRC_LEN 4u

enum refrain_kind { REFRAIN_COMMAND = 1, REFRAIN_STATE = 2, REFRAIN_HEARTBEAT = 3, REFRAIN_FAULT = 4 };
enum refrain_mode {
    REFRAIN_DISARMED = 0,
    REFRAIN_HOLDING = 1,
    REFRAIN_RAMPING = 2,
    REFRAIN_RUNNING = 3,
    REFRAIN_FAULTED = 4
};
enum refrain_request { REFRAIN_REQUEST_NONE = 0, REFRAIN_REQUEST_ARM = 1, REFRAIN_REQUEST_STOP = 2 };
enum refrain_cause {
    REFRAIN_CAUSE_NONE = 0,
    REFRAIN_CAUSE_DEADMAN = 1,
    REFRAIN_CAUSE_FOLLOWING_ERROR = 2,
    REFRAIN_CAUSE_SENSOR = 3,
    REFRAIN_CAUSE_DRIVER = 4
};

struct refrain_header {
    uint8_t magic;
    uint8_t version;
    uint8_t kind;
    uint8_t joints;
    uint32_t sequence;
    uint32_t session;
    uint32_t epoch;
    uint64_t time_us;
};

/* The frame's fixed part; joints * points floats follow at offset 64, then the CRC. */
struct refrain_command {
    struct refrain_header header;
    uint32_t chunk;
    uint16_t points;
    uint16_t reserved_a;
    uint64_t observation_us;
    uint64_t start_us;
    uint64_t valid_until_us;
    uint32_t step_us;
    uint32_t reserved_b;
};

/* The frame's fixed part; position[joints], velocity[joints], setpoint[joints] follow at offset 72, then the CRC. */
struct refrain_state {
    struct refrain_header header;
    uint8_t mode;
    uint8_t fault;
    uint8_t refusal;
    uint8_t torque;
    uint32_t host_sequence;
    uint32_t chunk;
    uint32_t bad_frames;
    uint32_t lost_frames;
    uint32_t refused_frames;
    uint64_t echo_us;
    uint64_t echo_received_us;
    uint32_t host_session;
    uint32_t echo_session;
};

/* The CRC follows at offset 28. */
struct refrain_heartbeat {
    struct refrain_header header;
    uint8_t request;
    uint8_t reserved[3];
};

/* The CRC follows at offset 48. */
struct refrain_fault {
    struct refrain_header header;
    uint8_t cause;
    uint8_t joint;
    uint16_t reserved;
    uint32_t count;
    uint64_t at_us;
    float value;
    float limit;
};

/* CRC-32/ISO-HDLC; of "123456789" it is 0xCBF43926. */
static inline uint32_t refrain_crc32(const uint8_t *bytes, size_t len) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < len; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* Decodes a COBS block (without its zero byte) in place. Gives the decoded length, or -1. */
static inline int refrain_cobs_decode(uint8_t *block, size_t len) {
    size_t in = 0, out = 0;
    while (in < len) {
        size_t code = block[in++];
        if (code == 0 || in + code - 1 > len) return -1;
        for (size_t i = 1; i < code; i++) block[out++] = block[in++];
        if (code != 255 && in < len) block[out++] = 0;
    }
    return (int)out;
}

/* Encodes a frame for a serial line, with the zero byte that ends it. `line` takes len + len/254 + 2 bytes.
 * Gives the bytes used. */
static inline size_t refrain_cobs_encode(const uint8_t *frame, size_t len, uint8_t *line) {
    size_t mark = 0, out = 1;
    uint8_t code = 1;
    for (size_t i = 0; i < len; i++) {
        if (frame[i] != 0) {
            line[out++] = frame[i];
            code++;
        }
        if (frame[i] == 0 || (code == 255 && i + 1 < len)) {
            line[mark] = code;
            mark = out++;
            code = 1;
        }
    }
    line[mark] = code;
    line[out++] = 0;
    return out;
}

/* The kind of a frame whose length, magic, CRC, version and joints are sound; -1 otherwise. */
static inline int refrain_frame_kind(const uint8_t *frame, size_t len) {
    uint32_t crc;
    if (len < REFRAIN_HEADER_LEN + REFRAIN_CRC_LEN || frame[0] != REFRAIN_MAGIC) return -1;
    memcpy(&crc, frame + len - REFRAIN_CRC_LEN, sizeof crc);
    if (crc != refrain_crc32(frame, len - REFRAIN_CRC_LEN) || frame[1] != REFRAIN_VERSION) return -1;
    if (frame[2] < REFRAIN_COMMAND || frame[2] > REFRAIN_FAULT) return -1;
    if (frame[3] == 0 || frame[3] > REFRAIN_MAX_JOINTS) return -1;
    return frame[2];
}

/* Reads a command: its fixed part into `command`, its positions into `values` (REFRAIN_MAX_VALUES floats).
 * Gives the number of positions, or -1 when anything is out of order. */
static inline int refrain_command_read(
    const uint8_t *frame, size_t len, struct refrain_command *command, float *values) {
    if (refrain_frame_kind(frame, len) != REFRAIN_COMMAND || len < sizeof *command + REFRAIN_CRC_LEN) return -1;
    memcpy(command, frame, sizeof *command);
    size_t count = (size_t)command->header.joints * command->points;
    if (command->points == 0 || command->points > REFRAIN_MAX_POINTS || count > REFRAIN_MAX_VALUES) return -1;
    if (len != sizeof *command + 4 * count + REFRAIN_CRC_LEN) return -1;
    if (command->reserved_a != 0 || command->reserved_b != 0 || command->step_us == 0) return -1;
    memcpy(values, frame + sizeof *command, 4 * count);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        if ((bits & 0x7F800000u) == 0x7F800000u) return -1; /* NaN or infinite */
    }
    return (int)count;
}

/* Writes the CRC over the `len` bytes before it and gives the frame's length. */
static inline size_t refrain_seal(uint8_t *frame, size_t len) {
    uint32_t crc = refrain_crc32(frame, len);
    memcpy(frame + len, &crc, sizeof crc);
    return len + sizeof crc;
}

#endif
