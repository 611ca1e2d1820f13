#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: generator --target HOST:PORT --method /pkg.Service/Method --payload FILE [options]\n"
    "\n"
    "Loads a gRPC server over cleartext HTTP/2 and prints one line of JSON.\n"
    "\n"
    "  --callers N        closed loop: N calls in flight (1), each followed by the next when answered;\n"
    "                     with --stream: N streams\n"
    "  --rate R           open loop: R calls a second at fixed times, whatever comes back; a call is timed\n"
    "                     from when it was to be sent\n"
    "  --cap N            open loop: most calls in flight (10000); one that would be more counts as failed\n"
    "  --stream           bidirectional streams, one gRPC message a request, answers in order\n"
    "  --many             with --stream: modelyard's InferMany; what is answered together is replaced by one\n"
    "                     message with as many calls\n"
    "  --window W         requests in flight on each stream (16)\n"
    "  --connections C    one for every 16 callers or 500 calls a second begun; with --stream one a stream\n"
    "  --payload FILE     the request's bytes, without gRPC's prefix\n"
    "  --expect FILE      bytes that every right answer contains; an answer without them counts as failed\n"
    "  --cancel-share S   this share of calls is cancelled as soon as it is sent (unary only)\n"
    "  --timeout S        deadline of each call in seconds (10; 0 for none; streams themselves have none)\n"
    "  --metadata K:V     sent with every call; may be repeated\n"
    "  --seconds S        begin no request after S seconds\n"
    "  --count N          begin N requests\n"
    "  --drain S          longest wait for what is still unanswered at the end (15); the rest counts as failed\n";

enum {
    TARGET = 256,
    METHOD,
    PAYLOAD,
    EXPECT,
    CALLERS,
    CONNECTIONS,
    RATE,
    CAP,
    STREAM,
    MANY,
    WINDOW,
    CANCEL_SHARE,
    TIMEOUT,
    METADATA,
    SECONDS,
    COUNT,
    DRAIN,
    HELP,
};

static const struct option flags[] = {
    {"target", required_argument, NULL, TARGET},
    {"method", required_argument, NULL, METHOD},
    {"payload", required_argument, NULL, PAYLOAD},
    {"expect", required_argument, NULL, EXPECT},
    {"callers", required_argument, NULL, CALLERS},
    {"connections", required_argument, NULL, CONNECTIONS},
    {"rate", required_argument, NULL, RATE},
    {"cap", required_argument, NULL, CAP},
    {"stream", no_argument, NULL, STREAM},
    {"many", no_argument, NULL, MANY},
    {"window", required_argument, NULL, WINDOW},
    {"cancel-share", required_argument, NULL, CANCEL_SHARE},
    {"timeout", required_argument, NULL, TIMEOUT},
    {"metadata", required_argument, NULL, METADATA},
    {"seconds", required_argument, NULL, SECONDS},
    {"count", required_argument, NULL, COUNT},
    {"drain", required_argument, NULL, DRAIN},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static double number(const char *name, const char *text, double least, double most) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= least && value <= most)) {
        give_up("--%s: '%s' must be a number in %g to %g", name, text, least, most);
    }
    return value;
}

static void split(const char *name, const char *text, char separator, bool last, char **left, char **right) {
    const char *at = last ? strrchr(text, separator) : strchr(text, separator);
    if (at == NULL || at == text) {
        give_up("--%s: '%s' has no '%c'", name, text, separator);
    }
    *left = strndup(text, (size_t)(at - text));
    *right = strdup(at + 1);
}

static unsigned usual_connections(const struct options *options) {
    double wanted = options->stream           ? options->callers
                    : options->rate_per_s > 0 ? (options->rate_per_s + 499) / 500
                                              : (options->callers + 15) / 16;
    return wanted > MAX_CONNECTIONS ? MAX_CONNECTIONS : (unsigned)wanted;
}

static void refuse_what_does_not_fit(const struct options *options) {
    if (options->host == NULL || options->method == NULL || options->payload.data == NULL) {
        give_up("--target, --method and --payload are needed; see --help");
    }
    if (options->seconds == 0 && options->count == 0) {
        give_up("--seconds or --count is needed");
    }
    if (options->many && !options->stream) {
        give_up("--many is a kind of --stream");
    }
    if (options->stream && (options->rate_per_s > 0 || options->cancel_share > 0)) {
        give_up("--stream goes neither with --rate nor with --cancel-share");
    }
}

struct options options_of(int argc, char **argv) {
    struct options options = {.callers = 1, .window = 16, .cap = 10000, .timeout_s = 10, .drain_s = 15};
    int flag, index = 0;
    while ((flag = getopt_long(argc, argv, "", flags, &index)) != -1) {
        const char *name = flag == '?' ? "" : flags[index].name;
        switch (flag) {
        case TARGET:
            options.authority = optarg;
            split(name, optarg, ':', true, &options.host, &options.port);
            break;
        case METHOD:
            options.method = optarg;
            break;
        case PAYLOAD:
            options.payload = bytes_of_file(optarg);
            break;
        case EXPECT:
            options.expect = bytes_of_file(optarg);
            break;
        case CALLERS:
            options.callers = (unsigned)number(name, optarg, 1, 65536);
            break;
        case CONNECTIONS:
            options.connections = (unsigned)number(name, optarg, 1, MAX_CONNECTIONS);
            break;
        case RATE:
            options.rate_per_s = number(name, optarg, 0, 1e6);
            break;
        case CAP:
            options.cap = (unsigned)number(name, optarg, 1, 1e6);
            break;
        case STREAM:
            options.stream = true;
            break;
        case MANY:
            options.many = true;
            break;
        case WINDOW:
            options.window = (unsigned)number(name, optarg, 1, 65536);
            break;
        case CANCEL_SHARE:
            options.cancel_share = number(name, optarg, 0, 1);
            break;
        case TIMEOUT:
            options.timeout_s = number(name, optarg, 0, 99999);
            break;
        case METADATA:
            if (options.metadata_count == MAX_METADATA) {
                give_up("--metadata: at most %d are sent", MAX_METADATA);
            }
            struct metadatum *datum = &options.metadata[options.metadata_count++];
            split(name, optarg, ':', false, &datum->key, &datum->value);
            break;
        case SECONDS:
            options.seconds = number(name, optarg, 0, 1e6);
            break;
        case COUNT:
            options.count = (uint64_t)number(name, optarg, 0, 1e12);
            break;
        case DRAIN:
            options.drain_s = number(name, optarg, 0, 3600);
            break;
        case HELP:
            fputs(usage, stdout);
            exit(0);
        default:
            give_up("see --help");
        }
    }
    if (optind < argc) {
        give_up("'%s' is no option; see --help", argv[optind]);
    }
    refuse_what_does_not_fit(&options);
    if (options.connections == 0) {
        options.connections = usual_connections(&options);
    }
    return options;
}
