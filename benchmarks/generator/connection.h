/* One HTTP/2 connection, and the exchanges (streams, in HTTP/2's words) open on it. */
#ifndef GENERATOR_CONNECTION_H
#define GENERATOR_CONNECTION_H

#include <nghttp2/nghttp2.h>

#include "bytes.h"
#include "options.h"

struct connection;
struct exchange;

/* What a kind of load does at the events of its exchanges. None of them may begin another exchange. */
struct exchange_events {
    void (*received)(struct exchange *exchange);             /* more bytes are in `in`; may be NULL */
    void (*sent)(struct exchange *exchange);                 /* all that was to be sent is out; may be NULL */
    void (*closed)(struct exchange *exchange, uint32_t code); /* it is over; `code` is HTTP/2's, 0 is well */
};

struct exchange {
    const struct exchange_events *events;
    struct connection *connection; /* NULL unless open */
    struct exchange *before, *after;
    int32_t id;
    int http_status, grpc_status; /* -1: none came */
    char message[200];            /* grpc-message */
    struct bytes in;              /* what came and was not dropped yet */
    const uint8_t *out;           /* what goes out */
    size_t out_size, out_at;
    bool out_ends; /* nothing will follow what `out` holds */
};

struct connection {
    const struct options *options;
    int epoll, fd;
    nghttp2_session *session;
    struct bytes out;
    size_t out_at;
    bool blocked; /* the socket takes no more for now */
    bool ready;   /* the server's settings have come */
    bool leaving; /* the server begins nothing new on it */
    uint64_t reconnected;
    struct exchange *open;
};

/* Connects, or gives up. Events of `epoll` carry the connection's address. */
void connection_open(struct connection *connection, const struct options *options, int epoll);
void connection_close(struct connection *connection);
/* Whether an exchange may begin now. */
bool connection_usable(const struct connection *connection);
/* Begins an exchange, whose `events` and `out...` are set; false if the connection takes none. */
bool connection_begin(struct connection *connection, struct exchange *exchange, bool with_timeout);
/* More is in `out`, or `out_ends` was set. */
void exchange_resume(struct exchange *exchange);
void exchange_cancel(struct exchange *exchange);
/* Reads what has come. A connection that was lost fails what is open on it and is made anew. */
void connection_receive(struct connection *connection);
/* Sends what can be sent. */
void connection_flush(struct connection *connection);

#endif
