/* One call, one answer. In closed loop each caller has a call and sends it again; in open loop calls come from a
   pool and leave at fixed times. */
#include <stdlib.h>
#include <string.h>

#include "load.h"

struct call {
    struct exchange exchange; /* first: events are handed its address */
    struct call *next;        /* in `idle` */
    struct connection *home;
    uint64_t due_ns;
    bool cancel;
    bool was_cancelled;
};

static struct {
    struct load *load;
    struct bytes framed;
    struct call *idle;
    uint64_t due;  /* open loop: calls that were due */
    double cancels; /* what the share adds up to; a whole one is a call to cancel */
} unary;

static bool is_right(const struct call *call) {
    const struct bytes *in = &call->exchange.in;
    const uint8_t *at = in->data, *message;
    size_t size;
    return read_message(&at, in->data + in->size, &message, &size) && at == in->data + in->size &&
           is_expected(unary.load->options, message, size);
}

static void sent(struct exchange *exchange) {
    struct call *call = (struct call *)exchange;
    if (call->cancel) {
        call->was_cancelled = true;
        exchange_cancel(exchange);
    }
}

static void closed(struct exchange *exchange, uint32_t code) {
    struct call *call = (struct call *)exchange;
    struct load *load = unary.load;
    load->open--;
    load->last_ns = now_ns();
    if (call->was_cancelled && code == NGHTTP2_CANCEL) {
        load->tally.cancelled++;
    } else if (exchange->grpc_status != 0 || exchange->http_status != 200) {
        tally_failed(&load->tally, exchange->grpc_status == 0 ? NO_STATUS : exchange->grpc_status, exchange->message);
    } else if (!is_right(call)) {
        tally_failed(&load->tally, WRONG_ANSWER, "the answer is not what was expected");
    } else {
        tally_answered(&load->tally, load->last_ns - call->due_ns);
    }
    call->next = unary.idle;
    unary.idle = call;
}

static const struct exchange_events events = {.sent = sent, .closed = closed};

/* False if its connection takes none now. */
static bool begin(struct call *call, uint64_t due_ns) {
    struct load *load = unary.load;
    struct exchange *exchange = &call->exchange;
    exchange->events = &events;
    exchange->out = unary.framed.data;
    exchange->out_size = unary.framed.size;
    exchange->out_at = 0;
    exchange->out_ends = true;
    call->due_ns = due_ns;
    call->cancel = call->was_cancelled = false;
    if (!connection_usable(call->home) || !connection_begin(call->home, exchange, true)) {
        return false;
    }
    unary.cancels += load->options->cancel_share + 1e-12; /* ten tenths are not quite one */
    if (unary.cancels >= 1) {
        unary.cancels -= 1;
        call->cancel = true;
    }
    load->tally.begun++;
    load->open++;
    return true;
}

static struct call *new_call(void) {
    struct call *call = grown(NULL, sizeof *call);
    memset(call, 0, sizeof *call);
    return call;
}

void unary_start(struct load *load) {
    const struct options *options = load->options;
    unary.load = load;
    add_prefix(&unary.framed, options->payload.size);
    bytes_add(&unary.framed, options->payload.data, options->payload.size);
    if (options->rate_per_s == 0) {
        for (unsigned index = 0; index < options->callers; index++) {
            struct call *call = new_call();
            call->home = &load->connections[index % options->connections];
            call->next = unary.idle;
            unary.idle = call;
        }
    }
}

static void begin_idle(struct load *load) {
    struct call *waiting = unary.idle, *kept = NULL;
    unary.idle = NULL;
    while (waiting != NULL) {
        struct call *call = waiting;
        waiting = call->next;
        uint64_t now = now_ns();
        if (!load_goes_on(load, now) || !begin(call, now)) {
            call->next = kept;
            kept = call;
        }
    }
    unary.idle = kept;
}

static uint64_t begin_due(struct load *load, uint64_t now) {
    const struct options *options = load->options;
    for (;;) {
        uint64_t due_ns = load->started_ns + (uint64_t)((double)unary.due * 1e9 / options->rate_per_s);
        if (!load_goes_on(load, due_ns)) {
            return 0;
        }
        if (due_ns > now) {
            return due_ns;
        }
        struct connection *home = &load->connections[unary.due++ % options->connections];
        if (load->open >= options->cap) {
            load->tally.begun++;
            tally_failed(&load->tally, OVER_THE_CAP, "more calls in flight than --cap allows");
            continue;
        }
        struct call *call = unary.idle != NULL ? unary.idle : new_call();
        unary.idle = call == unary.idle ? call->next : unary.idle;
        call->home = home;
        if (!begin(call, due_ns)) {
            load->tally.begun++;
            tally_failed(&load->tally, 14, "the connection takes no calls");
            call->next = unary.idle;
            unary.idle = call;
        }
    }
}

uint64_t unary_turn(struct load *load, uint64_t now) {
    if (load->options->rate_per_s > 0) {
        return begin_due(load, now);
    }
    begin_idle(load);
    return 0;
}
