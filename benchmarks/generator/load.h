/* A way to load the server: begins requests, takes answers, counts both. */
#ifndef GENERATOR_LOAD_H
#define GENERATOR_LOAD_H

#include "connection.h"
#include "tally.h"

struct load {
    const struct options *options;
    struct connection *connections; /* options->connections of them */
    struct tally tally;
    uint64_t started_ns;
    uint64_t last_ns; /* the last event that counts */
    uint64_t open;    /* requests begun and not over */
};

/* Whether another request is to begin. */
bool load_goes_on(const struct load *load, uint64_t now);

/* Takes a whole gRPC message from `*at`; false if there is none before `end`. Moves `*at` behind it. */
bool read_message(const uint8_t **at, const uint8_t *end, const uint8_t **message, size_t *size);
/* Adds gRPC's prefix for a message of `size` bytes. */
void add_prefix(struct bytes *bytes, size_t size);
/* Whether a message holds the bytes expected. */
bool is_expected(const struct options *options, const uint8_t *message, size_t size);

/* One call, one answer: closed loop or open loop. */
void unary_start(struct load *load);
/* Begins what is due. Returns when to be asked again at the latest; 0: no need. */
uint64_t unary_turn(struct load *load, uint64_t now);

/* Bidirectional streams. */
void streams_start(struct load *load);
void streams_turn(struct load *load, uint64_t now);
/* Whether every stream has ended. */
bool streams_over(const struct load *load);

#endif
