/* Loads a gRPC server over cleartext HTTP/2 (prior knowledge), on one thread, and prints what came of it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "load.h"

#define SETTINGS_WITHIN_NS 10000000000u
#define EVENTS_AT_ONCE 64
#define LOOK_EVERY_MS 50
#define PREFIX_SIZE 5

bool load_goes_on(const struct load *load, uint64_t now) {
    const struct options *options = load->options;
    return (options->count == 0 || load->tally.begun < options->count) &&
           (options->seconds == 0 || (double)(now - load->started_ns) < options->seconds * 1e9);
}

bool read_message(const uint8_t **at, const uint8_t *end, const uint8_t **message, size_t *size) {
    if (end - *at < PREFIX_SIZE || (*at)[0] != 0) {
        return false; /* a compressed message is none: nobody was told that we read any */
    }
    const uint8_t *prefix = *at;
    *size = (size_t)prefix[1] << 24 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 8 | prefix[4];
    if ((size_t)(end - *at) - PREFIX_SIZE < *size) {
        return false;
    }
    *message = prefix + PREFIX_SIZE;
    *at = *message + *size;
    return true;
}

void add_prefix(struct bytes *bytes, size_t size) {
    const uint8_t prefix[PREFIX_SIZE] = {0, (uint8_t)(size >> 24), (uint8_t)(size >> 16), (uint8_t)(size >> 8),
                                         (uint8_t)size};
    bytes_add(bytes, prefix, sizeof prefix);
}

bool is_expected(const struct options *options, const uint8_t *message, size_t size) {
    static size_t usual; /* where it was found last: nearly always where it is found next */
    const struct bytes *expect = &options->expect;
    if (expect->size == 0) {
        return true;
    }
    if (usual <= size && expect->size <= size - usual && memcmp(message + usual, expect->data, expect->size) == 0) {
        return true;
    }
    const uint8_t *found = memmem(message, size, expect->data, expect->size);
    if (found != NULL) {
        usual = (size_t)(found - message);
    }
    return found != NULL;
}

/* Handles what happens until `until_ns` (0: for a short while) or until something has happened. */
static void wait_for_events(int epoll, int timer, uint64_t until_ns) {
    struct epoll_event events[EVENTS_AT_ONCE];
    if (until_ns > 0) {
        struct itimerspec at = {.it_value = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
    }
    int count = epoll_wait(epoll, events, EVENTS_AT_ONCE, LOOK_EVERY_MS);
    if (count < 0 && errno != EINTR) {
        give_up("epoll: %s", strerror(errno));
    }
    for (int index = 0; index < count; index++) {
        struct connection *connection = events[index].data.ptr;
        if (connection == NULL) {
            uint64_t expired;
            (void)!read(timer, &expired, sizeof expired);
        } else if (events[index].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
            connection_receive(connection);
        }
    }
}

static void flush_all(const struct load *load) {
    for (unsigned index = 0; index < load->options->connections; index++) {
        connection_flush(&load->connections[index]);
    }
}

static void wait_until_ready(const struct load *load, int epoll, int timer) {
    uint64_t until_ns = now_ns() + SETTINGS_WITHIN_NS;
    for (unsigned ready = 0; ready < load->options->connections;) {
        if (now_ns() > until_ns) {
            give_up("%s sent no HTTP/2 settings", load->options->authority);
        }
        wait_for_events(epoll, timer, 0);
        flush_all(load);
        ready = 0;
        for (unsigned index = 0; index < load->options->connections; index++) {
            ready += load->connections[index].ready;
        }
    }
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Until all that was begun is over, or too much time has gone by after the last could begin. */
static void run(struct load *load, int epoll, int timer) {
    bool stream = load->options->stream;
    uint64_t draining_ns = 0;
    for (;;) {
        uint64_t now = now_ns(), due_ns = 0;
        if (stream) {
            streams_turn(load, now);
        } else {
            due_ns = unary_turn(load, now);
        }
        flush_all(load);
        if (load->options->rate_per_s > 0 ? due_ns == 0 : !load_goes_on(load, now)) {
            if (stream ? streams_over(load) : load->open == 0) {
                return;
            }
            draining_ns = draining_ns ? draining_ns : now;
            if ((double)(now - draining_ns) > load->options->drain_s * 1e9) {
                return;
            }
        } else if (stream && streams_over(load)) {
            return; /* the server ended them */
        }
        wait_for_events(epoll, timer, due_ns);
    }
}

int main(int argc, char **argv) {
    static struct connection connections[MAX_CONNECTIONS];
    struct options options = options_of(argc, argv);
    struct load load = {.options = &options, .connections = connections};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll < 0 || timer < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) != 0) {
        give_up("epoll: %s", strerror(errno));
    }
    for (unsigned index = 0; index < options.connections; index++) {
        connection_open(&connections[index], &options, epoll);
    }
    wait_until_ready(&load, epoll, timer);

    double cpu_before_s = cpu_s();
    load.started_ns = load.last_ns = now_ns();
    if (options.stream) {
        streams_start(&load);
    } else {
        unary_start(&load);
    }
    run(&load, epoll, timer);
    double used_s = cpu_s() - cpu_before_s;

    for (; load.open > 0; load.open--) {
        tally_failed(&load.tally, UNANSWERED, "no answer when the time was over");
    }
    for (unsigned index = 0; index < options.connections; index++) {
        load.tally.reconnected += connections[index].reconnected;
        connection_close(&connections[index]);
    }
    tally_print(&load.tally, (double)(load.last_ns - load.started_ns) / 1e9, used_s);
    return 0;
}
