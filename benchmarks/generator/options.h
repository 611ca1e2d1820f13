/* What the program is asked for. */
#ifndef GENERATOR_OPTIONS_H
#define GENERATOR_OPTIONS_H

#include "bytes.h"

#define MAX_METADATA 16
#define MAX_CONNECTIONS 256

struct metadatum {
    char *key;
    char *value;
};

struct options {
    char *host;
    char *port;
    const char *authority;
    const char *method;
    struct bytes payload; /* without gRPC's prefix */
    struct bytes expect;  /* empty: any answer is right */
    bool stream;
    bool many;
    unsigned callers;
    unsigned connections;
    unsigned window;
    unsigned cap;
    double rate_per_s; /* 0: closed loop */
    double seconds;    /* 0: no limit in time */
    uint64_t count;    /* 0: no limit in requests */
    double cancel_share;
    double timeout_s; /* 0: none is sent */
    double drain_s;
    struct metadatum metadata[MAX_METADATA];
    unsigned metadata_count;
};

/* Reads the command line; explains itself and ends with code 2 where it is wrong. */
struct options options_of(int argc, char **argv);

#endif
