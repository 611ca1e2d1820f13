#include "tally.h"

#include <stdio.h>
#include <stdlib.h>

void tally_answered(struct tally *tally, uint64_t latency_ns) {
    if (tally->answered == tally->capacity) {
        tally->capacity = tally->capacity ? tally->capacity * 2 : 65536;
        tally->latencies_ns = grown(tally->latencies_ns, tally->capacity * sizeof *tally->latencies_ns);
    }
    tally->latencies_ns[tally->answered++] = latency_ns;
}

void tally_failed(struct tally *tally, int status, const char *message) {
    if (tally->failed++ == 0) {
        fprintf(stderr, "generator: first failure: status %d %s\n", status, message);
    }
    switch (status) {
    case NO_STATUS:
        tally->no_status++;
        break;
    case WRONG_ANSWER:
        tally->wrong++;
        break;
    case OVER_THE_CAP:
        tally->over_cap++;
        break;
    case REFUSED:
        tally->refused++;
        break;
    case UNANSWERED:
        tally->unanswered++;
        break;
    default:
        tally->by_status[status > 0 && status < 17 ? status : 2]++; /* 2 is UNKNOWN */
    }
}

static int by_size(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static double quantile_ms(const struct tally *tally, double share) {
    if (tally->answered == 0) {
        return 0;
    }
    uint64_t at = (uint64_t)(share * (double)tally->answered);
    return (double)tally->latencies_ns[at < tally->answered ? at : tally->answered - 1] / 1e6;
}

void tally_print(struct tally *tally, double elapsed_s, double cpu_s) {
    if (tally->answered > 0) {
        qsort(tally->latencies_ns, tally->answered, sizeof *tally->latencies_ns, by_size);
    }
    printf("{\"generator\": \"nghttp2\", \"answered\": %llu, \"failed\": %llu, \"cancelled\": %llu, ",
           (unsigned long long)tally->answered, (unsigned long long)tally->failed,
           (unsigned long long)tally->cancelled);
    printf("\"per_s\": %.3f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f, ",
           elapsed_s > 0 ? (double)tally->answered / elapsed_s : 0, quantile_ms(tally, 0.50), quantile_ms(tally, 0.99),
           quantile_ms(tally, 1));
    printf("\"generator_cpu_us\": %.3f, \"seconds\": %.4f, \"reconnected\": %llu, \"failures\": {",
           cpu_s * 1e6 / (double)(tally->answered ? tally->answered : 1), elapsed_s,
           (unsigned long long)tally->reconnected);
    const char *comma = "";
    for (int status = 1; status < 17; status++) {
        if (tally->by_status[status] > 0) {
            printf("%s\"%d\": %llu", comma, status, (unsigned long long)tally->by_status[status]);
            comma = ", ";
        }
    }
    const struct {
        const char *name;
        uint64_t count;
    } others[] = {
        {"no status", tally->no_status},
        {"wrong answer", tally->wrong},
        {"over the cap", tally->over_cap},
        {"refused", tally->refused},
        {"unanswered", tally->unanswered},
    };
    for (size_t index = 0; index < sizeof others / sizeof *others; index++) {
        if (others[index].count > 0) {
            printf("%s\"%s\": %llu", comma, others[index].name, (unsigned long long)others[index].count);
            comma = ", ";
        }
    }
    puts("}}");
}
