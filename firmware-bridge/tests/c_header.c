/* Prints what include/refrain_wire.h says, one `name value` per line; tests/c_header.rs compares it with Rust. */
#include <stdio.h>
#include "refrain_wire.h"

#define SHOW(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))
#define LEN(type) printf(#type " %zu\n", sizeof(struct type))
#define CONSTANT(name) printf(#name " %zu\n", (size_t)(name))

static void hex(const char *name, const uint8_t *bytes, size_t len) {
    printf("%s ", name);
    for (size_t i = 0; i < len; i++) printf("%02x", bytes[i]);
    printf("\n");
}

/* Reads one COBS line from standard input: decodes it, reads it, encodes it again. */
int main(void) {
    static uint8_t line[REFRAIN_MAX_ENCODED], frame[REFRAIN_MAX_ENCODED], again[REFRAIN_MAX_ENCODED + 8];
    static float values[REFRAIN_MAX_VALUES];
    CONSTANT(REFRAIN_MAX_FRAME); CONSTANT(REFRAIN_MAX_ENCODED); CONSTANT(REFRAIN_MAX_VALUES);
    CONSTANT(REFRAIN_MAX_POINTS); CONSTANT(REFRAIN_MAX_JOINTS);
    LEN(refrain_header); LEN(refrain_command); LEN(refrain_state); LEN(refrain_heartbeat); LEN(refrain_fault);
    SHOW(refrain_header, sequence); SHOW(refrain_header, session); SHOW(refrain_header, epoch);
    SHOW(refrain_header, time_us); SHOW(refrain_command, chunk); SHOW(refrain_command, points);
    SHOW(refrain_command, observation_us); SHOW(refrain_command, start_us); SHOW(refrain_command, valid_until_us);
    SHOW(refrain_command, step_us); SHOW(refrain_state, mode); SHOW(refrain_state, fault);
    SHOW(refrain_state, refusal); SHOW(refrain_state, torque); SHOW(refrain_state, host_sequence);
    SHOW(refrain_state, chunk); SHOW(refrain_state, bad_frames); SHOW(refrain_state, lost_frames);
    SHOW(refrain_state, refused_frames); SHOW(refrain_state, echo_us); SHOW(refrain_state, echo_received_us);
    SHOW(refrain_state, host_session); SHOW(refrain_state, echo_session); SHOW(refrain_heartbeat, request);
    SHOW(refrain_fault, cause); SHOW(refrain_fault, joint); SHOW(refrain_fault, count); SHOW(refrain_fault, at_us);
    SHOW(refrain_fault, value); SHOW(refrain_fault, limit);
    printf("check %08x\n", refrain_crc32((const uint8_t *)"123456789", 9));

    size_t got = fread(line, 1, sizeof line, stdin);
    memcpy(frame, line, got);
    int len = got > 0 ? refrain_cobs_decode(frame, got - 1) : -1;
    if (len < 0) return 1;
    hex("frame", frame, (size_t)len);
    struct refrain_command command;
    int count = refrain_command_read(frame, (size_t)len, &command, values);
    printf("kind %d\ncount %d\n", refrain_frame_kind(frame, (size_t)len), count);
    hex("line", again, refrain_cobs_encode(frame, (size_t)len, again));
    if (count > 0) {
        printf("chunk %u\nvalid_until %llu\n", command.chunk, (unsigned long long)command.valid_until_us);
        for (int i = 0; i < count; i++) printf("value%d %.9g\n", i, values[i]);
    }
    return 0;
}
