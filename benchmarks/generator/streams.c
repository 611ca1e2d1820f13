/* Bidirectional streams, each with a window of requests in flight.

   Plain: a gRPC message a request; answers come one a request and in order. InferMany: a message carries any number
   of calls, each with a tag; answers come in any order, any number a message. The few fields of InferMany are
   written and read by hand: see protos/modelyard/inference/v1/inference.proto. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

struct slot {
    uint64_t tag;
    uint64_t begun_ns;
    bool busy;
};

struct stream {
    struct exchange exchange; /* first: events are handed its address */
    struct bytes queue;
    struct slot *slots; /* options->window of them */
    unsigned busy;
    unsigned oldest;   /* plain: the slot that is answered next */
    uint64_t requests; /* InferMany: so far. A tag is this times the window plus the slot: it grows, and says its slot */
    bool over;
};

static struct {
    struct load *load;
    struct stream *streams; /* options->callers of them */
    unsigned over;
} all;

#define WIRE_VARINT 0
#define WIRE_FIXED64 1
#define WIRE_BYTES 2
#define WIRE_FIXED32 5

struct field {
    uint64_t number;
    unsigned wire;
    uint64_t value;       /* WIRE_VARINT */
    const uint8_t *bytes; /* WIRE_BYTES, `value` of them */
};

static bool read_field(const uint8_t **at, const uint8_t *end, struct field *field) {
    uint64_t key;
    if (!read_varint(at, end, &key)) {
        return false;
    }
    field->number = key >> 3;
    field->wire = key & 7;
    uint64_t skipped = 0;
    switch (field->wire) {
    case WIRE_VARINT:
        return read_varint(at, end, &field->value);
    case WIRE_BYTES:
        if (!read_varint(at, end, &field->value)) {
            return false;
        }
        field->bytes = *at;
        skipped = field->value;
        break;
    case WIRE_FIXED64:
        skipped = 8;
        break;
    case WIRE_FIXED32:
        skipped = 4;
        break;
    default:
        return false;
    }
    if (skipped > (uint64_t)(end - *at)) {
        return false;
    }
    *at += skipped;
    return true;
}

static void release(struct stream *stream, struct slot *slot, int status, const char *why) {
    struct load *load = all.load;
    slot->busy = false;
    stream->busy--;
    load->open--;
    load->last_ns = now_ns();
    if (status == 0) {
        tally_answered(&load->tally, load->last_ns - slot->begun_ns);
    } else {
        tally_failed(&load->tally, status, why);
    }
}

static void take_plain(struct stream *stream, const uint8_t *message, size_t size) {
    struct slot *slot = &stream->slots[stream->oldest];
    if (slot->busy) {
        stream->oldest = (stream->oldest + 1) % all.load->options->window;
        bool right = is_expected(all.load->options, message, size);
        release(stream, slot, right ? 0 : WRONG_ANSWER, "the answer is not what was expected");
    }
}

/* ManyResult: 1 tag, 2 response, 3 failure. */
static void take_result(struct stream *stream, const uint8_t *at, const uint8_t *end) {
    const struct options *options = all.load->options;
    uint64_t tag = 0;
    int status = REFUSED;
    char why[120] = "a result without response";
    struct field field;
    while (at < end && read_field(&at, end, &field)) {
        if (field.number == 1 && field.wire == WIRE_VARINT) {
            tag = field.value;
        } else if (field.number == 2 && field.wire == WIRE_BYTES) {
            status = is_expected(options, field.bytes, field.value) ? 0 : WRONG_ANSWER;
        } else if (field.number == 3 && field.wire == WIRE_BYTES) {
            /* The text in it is for people; what is not printable in between does not matter here. */
            size_t kept = 0;
            for (uint64_t index = 0; index < field.value && kept + 1 < sizeof why; index++) {
                uint8_t byte = field.bytes[index];
                why[kept++] = byte >= ' ' && byte < 127 ? (char)byte : ' ';
            }
            why[kept] = '\0';
        }
    }
    struct slot *slot = &stream->slots[tag % options->window];
    if (slot->busy && slot->tag == tag) {
        release(stream, slot, status, status == WRONG_ANSWER ? "the answer is not what was expected" : why);
    }
}

/* InferManyResponse: 1 results. */
static void take_many(struct stream *stream, const uint8_t *message, size_t size) {
    const uint8_t *at = message, *end = message + size;
    struct field field;
    while (at < end && read_field(&at, end, &field)) {
        if (field.number == 1 && field.wire == WIRE_BYTES) {
            take_result(stream, field.bytes, field.bytes + field.value);
        }
    }
}

static void received(struct exchange *exchange) {
    struct stream *stream = (struct stream *)exchange;
    const uint8_t *at = exchange->in.data, *end = at + exchange->in.size, *message;
    size_t size;
    while (read_message(&at, end, &message, &size)) {
        if (all.load->options->many) {
            take_many(stream, message, size);
        } else {
            take_plain(stream, message, size);
        }
    }
    bytes_drop(&exchange->in, (size_t)(at - exchange->in.data));
}

static void closed(struct exchange *exchange, uint32_t code) {
    (void)code;
    struct stream *stream = (struct stream *)exchange;
    struct load *load = all.load;
    stream->over = true;
    all.over++;
    int status = exchange->grpc_status;
    if (stream->busy == 0 && status != 0 && code != 0) {
        fprintf(stderr, "generator: a stream ended with status %d %s\n", status, exchange->message);
    }
    for (unsigned index = 0; index < load->options->window; index++) {
        if (stream->slots[index].busy) {
            stream->slots[index].busy = false;
            stream->busy--;
            load->open--;
            tally_failed(&load->tally, status == 0 ? NO_STATUS : status, exchange->message);
        }
    }
}

static const struct exchange_events events = {.received = received, .closed = closed};

static void occupy(struct stream *stream, struct slot *slot, uint64_t tag, uint64_t now) {
    *slot = (struct slot){.tag = tag, .begun_ns = now, .busy = true};
    stream->busy++;
    all.load->open++;
    all.load->tally.begun++;
}

static void add_plain(struct stream *stream, uint64_t now) {
    const struct options *options = all.load->options;
    while (stream->busy < options->window && load_goes_on(all.load, now)) {
        occupy(stream, &stream->slots[(stream->oldest + stream->busy) % options->window], 0, now);
        add_prefix(&stream->queue, options->payload.size);
        bytes_add(&stream->queue, options->payload.data, options->payload.size);
    }
}

/* InferManyRequest: 1 calls; ManyCall: 1 tag, 2 request, 3 timeout, of whose Duration 1 is seconds. */
static void add_many(struct stream *stream, uint64_t now) {
    const struct options *options = all.load->options;
    struct bytes *queue = &stream->queue;
    size_t before = queue->size;
    add_prefix(queue, 0);
    uint64_t timeout_s = (uint64_t)options->timeout_s;
    for (unsigned index = 0; index < options->window; index++) {
        struct slot *slot = &stream->slots[index];
        if (slot->busy || !load_goes_on(all.load, now)) {
            continue;
        }
        uint64_t tag = ++stream->requests * options->window + index;
        occupy(stream, slot, tag, now);
        size_t duration = 1 + varint_size(timeout_s);
        size_t size = 1 + varint_size(tag) + 1 + varint_size(options->payload.size) + options->payload.size;
        size += timeout_s > 0 ? 2 + duration : 0;
        add_varint(queue, 1 << 3 | WIRE_BYTES);
        add_varint(queue, size);
        add_varint(queue, 1 << 3 | WIRE_VARINT);
        add_varint(queue, tag);
        add_varint(queue, 2 << 3 | WIRE_BYTES);
        add_varint(queue, options->payload.size);
        bytes_add(queue, options->payload.data, options->payload.size);
        if (timeout_s > 0) {
            add_varint(queue, 3 << 3 | WIRE_BYTES);
            add_varint(queue, duration);
            add_varint(queue, 1 << 3 | WIRE_VARINT);
            add_varint(queue, timeout_s);
        }
    }
    size_t size = queue->size - before - 5;
    if (size == 0) {
        queue->size = before;
        return;
    }
    uint8_t *prefix = queue->data + before;
    for (unsigned index = 0; index < 4; index++) {
        prefix[1 + index] = (uint8_t)(size >> (24 - 8 * index));
    }
}

void streams_start(struct load *load) {
    const struct options *options = load->options;
    all.load = load;
    all.streams = grown(NULL, options->callers * sizeof *all.streams);
    memset(all.streams, 0, options->callers * sizeof *all.streams);
    for (unsigned index = 0; index < options->callers; index++) {
        struct stream *stream = &all.streams[index];
        stream->slots = grown(NULL, options->window * sizeof *stream->slots);
        memset(stream->slots, 0, options->window * sizeof *stream->slots);
        stream->exchange.events = &events;
        if (!connection_begin(&load->connections[index % options->connections], &stream->exchange, false)) {
            give_up("a stream could not begin");
        }
    }
}

void streams_turn(struct load *load, uint64_t now) {
    const struct options *options = load->options;
    for (unsigned index = 0; index < options->callers; index++) {
        struct stream *stream = &all.streams[index];
        struct exchange *exchange = &stream->exchange;
        if (stream->over || exchange->out_ends || stream->busy == options->window) {
            continue;
        }
        if (exchange->out_at > 0) {
            bytes_drop(&stream->queue, exchange->out_at);
            exchange->out_at = 0;
        }
        if (options->many) {
            add_many(stream, now);
        } else {
            add_plain(stream, now);
        }
        exchange->out_ends = stream->busy == 0 && !load_goes_on(load, now);
        if (stream->queue.size > 0 || exchange->out_ends) {
            exchange->out = stream->queue.data;
            exchange->out_size = stream->queue.size;
            exchange_resume(exchange);
        }
    }
}

bool streams_over(const struct load *load) {
    return all.over == load->options->callers;
}
