/* What came of the requests. */
#ifndef GENERATOR_TALLY_H
#define GENERATOR_TALLY_H

#include "bytes.h"

#define NO_STATUS (-1)     /* the stream ended without grpc-status */
#define WRONG_ANSWER (-2)  /* status 0, but not the bytes expected, or not one whole message */
#define OVER_THE_CAP (-3)  /* open loop: never sent */
#define REFUSED (-4)       /* InferMany: a result that says why there is no answer */
#define UNANSWERED (-5)    /* still open when the program ended */

struct tally {
    uint64_t begun;
    uint64_t answered;
    uint64_t failed;
    uint64_t cancelled;
    uint64_t reconnected;
    uint64_t by_status[17];
    uint64_t no_status, wrong, over_cap, refused, unanswered;
    uint64_t *latencies_ns; /* one for each that was answered: kept, so that quantiles are exact */
    size_t capacity;
};

void tally_answered(struct tally *tally, uint64_t latency_ns);
/* `status` is gRPC's, or one of the above. The first failure is told on stderr. */
void tally_failed(struct tally *tally, int status, const char *message);
/* Prints the line of JSON. */
void tally_print(struct tally *tally, double elapsed_s, double cpu_s);

#endif
