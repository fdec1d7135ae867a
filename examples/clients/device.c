/* A device on zenoh, in C with zenoh-pico: takes commands in the wire's fixed layout and says what it took.
 *
 * Beside it: refrain-bridge --wire arm --listen tcp/0.0.0.0:7448 ... The frames: firmware-bridge/src/wire/mod.rs.
 *
 *   cc -I firmware-bridge/include -DZENOH_LINUX examples/clients/device.c -lzenohpico -o device && ./device tcp/HOST:7448
 *
 * A test compiles and runs it with -DWITHOUT_ZENOH, where frames come from standard input; with zenoh-pico it was not
 * compiled here. A device that moves must also arm, hold after valid_until and keep a deadman: see wire and link. */
#include <stdio.h>

#include "refrain_wire.h"

/* Called for every message: one frame. */
static void on_frame(const uint8_t *frame, size_t len) {
    static float values[REFRAIN_MAX_VALUES];
    struct refrain_command command;
    int count = refrain_command_read(frame, len, &command, values);
    if (count < 0) {
        puts("dropped");
        return;
    }
    printf("chunk %u, %u points, valid %u us, last", (unsigned)command.chunk, (unsigned)command.points,
           (unsigned)(command.valid_until_us - command.start_us));
    for (int i = count - command.header.joints; i < count; i++) printf(" %.3f", values[i]);
    putchar('\n');
}

#ifdef WITHOUT_ZENOH

int main(void) {
    uint8_t frame[REFRAIN_MAX_FRAME];
    size_t len = fread(frame, 1, sizeof frame, stdin);
    on_frame(frame, len);
    return 0;
}

#else
#include <zenoh-pico.h>

static void on_sample(z_loaned_sample_t *sample, void *unused) {
    uint8_t frame[REFRAIN_MAX_FRAME];
    z_bytes_reader_t reader = z_bytes_get_reader(z_sample_payload(sample));
    (void)unused;
    on_frame(frame, z_bytes_reader_read(&reader, frame, sizeof frame));
}

int main(int argc, char **argv) {
    z_owned_config_t config;
    z_owned_session_t session;
    z_owned_closure_sample_t closure;
    z_owned_subscriber_t subscriber;
    z_view_keyexpr_t key;
    z_config_default(&config);
    zp_config_insert(z_loan_mut(config), Z_CONFIG_MODE_KEY, "client");
    if (argc > 1) zp_config_insert(z_loan_mut(config), Z_CONFIG_CONNECT_KEY, argv[1]);
    if (z_open(&session, z_move(config), NULL) < 0) return 1;
    zp_start_read_task(z_loan_mut(session), NULL);
    zp_start_lease_task(z_loan_mut(session), NULL);
    z_closure(&closure, on_sample, NULL, NULL);
    z_view_keyexpr_from_str(&key, "arm/command");
    if (z_declare_subscriber(z_loan(session), &subscriber, z_loan(key), z_move(closure), NULL) < 0) return 1;
    for (;;) z_sleep_s(1);
}

#endif
