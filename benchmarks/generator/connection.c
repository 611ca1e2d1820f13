#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAM_WINDOW (16 << 20)
#define CONNECTION_WINDOW (256 << 20)
#define AT_ONCE (256 << 10)
#define READS_IN_A_ROW 4
#define MOST_RECONNECTS 1000

static void end(struct exchange *exchange, uint32_t code) {
    struct connection *connection = exchange->connection;
    if (exchange->before != NULL) {
        exchange->before->after = exchange->after;
    } else {
        connection->open = exchange->after;
    }
    if (exchange->after != NULL) {
        exchange->after->before = exchange->before;
    }
    exchange->connection = NULL;
    exchange->events->closed(exchange, code);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *user_data) {
    (void)flags, (void)user_data, (void)value_size; /* nghttp2 ends both with a zero byte */
    struct exchange *exchange = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (exchange == NULL) {
        return 0;
    }
    if (name_size == 7 && memcmp(name, ":status", 7) == 0) {
        exchange->http_status = atoi((const char *)value);
    } else if (name_size == 11 && memcmp(name, "grpc-status", 11) == 0) {
        exchange->grpc_status = atoi((const char *)value);
    } else if (name_size == 12 && memcmp(name, "grpc-message", 12) == 0) {
        snprintf(exchange->message, sizeof exchange->message, "%s", (const char *)value);
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t size,
                   void *user_data) {
    (void)flags, (void)user_data;
    struct exchange *exchange = nghttp2_session_get_stream_user_data(session, id);
    if (exchange != NULL) {
        bytes_add(&exchange->in, data, size);
        if (exchange->events->received != NULL) {
            exchange->events->received(exchange);
        }
    }
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user_data) {
    (void)user_data;
    struct exchange *exchange = nghttp2_session_get_stream_user_data(session, id);
    if (exchange != NULL) {
        end(exchange, code);
    }
    return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) {
    (void)session;
    struct connection *connection = user_data;
    if (frame->hd.type == NGHTTP2_SETTINGS && !(frame->hd.flags & NGHTTP2_FLAG_ACK)) {
        connection->ready = true;
    } else if (frame->hd.type == NGHTTP2_GOAWAY) {
        connection->leaving = true;
    }
    return 0;
}

static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) {
    (void)user_data;
    if (frame->hd.type == NGHTTP2_DATA && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) {
        struct exchange *exchange = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (exchange != NULL && exchange->events->sent != NULL) {
            exchange->events->sent(exchange);
        }
    }
    return 0;
}

/* What goes out, as far as the peer's windows let it: nghttp2 asks for no more than they do. */
static ssize_t read_out(nghttp2_session *session, int32_t id, uint8_t *room, size_t size, uint32_t *flags,
                        nghttp2_data_source *source, void *user_data) {
    (void)session, (void)id, (void)user_data;
    struct exchange *exchange = source->ptr;
    size_t left = exchange->out_size - exchange->out_at;
    if (left == 0 && !exchange->out_ends) {
        return NGHTTP2_ERR_DEFERRED;
    }
    size_t taken = left < size ? left : size;
    memcpy(room, exchange->out + exchange->out_at, taken);
    exchange->out_at += taken;
    if (taken == left && exchange->out_ends) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    return (ssize_t)taken;
}

static int socket_to(const struct options *options) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int fault = getaddrinfo(options->host, options->port, &hints, &found);
    if (fault != 0) {
        give_up("%s: %s", options->authority, gai_strerror(fault));
    }
    int fd = -1;
    for (const struct addrinfo *each = found; each != NULL && fd < 0; each = each->ai_next) {
        fd = socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, each->ai_protocol);
        if (fd >= 0 && connect(fd, each->ai_addr, each->ai_addrlen) != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(found);
    if (fd < 0) {
        give_up("%s: %s", options->authority, strerror(errno));
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
}

void connection_open(struct connection *connection, const struct options *options, int epoll) {
    *connection = (struct connection){.options = options, .epoll = epoll, .reconnected = connection->reconnected};
    connection->fd = socket_to(options);
    nghttp2_session_callbacks *callbacks;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) {
        give_up("out of memory");
    }
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    int fault = nghttp2_session_client_new(&connection->session, callbacks, connection);
    nghttp2_session_callbacks_del(callbacks);
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW},
    };
    if (fault != 0 || nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 2) != 0 ||
        nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW) != 0) {
        give_up("no HTTP/2 session could be made");
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) {
        give_up("epoll: %s", strerror(errno));
    }
    connection_flush(connection);
}

void connection_close(struct connection *connection) {
    close(connection->fd);
    nghttp2_session_del(connection->session);
    bytes_free(&connection->out);
    connection->session = NULL;
}

/* Fails what is open and connects anew. */
static void connection_again(struct connection *connection) {
    if (++connection->reconnected > MOST_RECONNECTS) {
        give_up("%s: lost the connection %d times", connection->options->authority, MOST_RECONNECTS);
    }
    struct exchange *open;
    while ((open = connection->open) != NULL) {
        end(open, NGHTTP2_CONNECT_ERROR);
    }
    connection_close(connection);
    connection_open(connection, connection->options, connection->epoll);
}

bool connection_usable(const struct connection *connection) {
    return connection->ready && !connection->leaving;
}

static nghttp2_nv header(const char *name, const char *value) {
    return (nghttp2_nv){.name = (uint8_t *)name,
                        .value = (uint8_t *)value,
                        .namelen = strlen(name),
                        .valuelen = strlen(value),
                        .flags = NGHTTP2_NV_FLAG_NONE};
}

bool connection_begin(struct connection *connection, struct exchange *exchange, bool with_timeout) {
    const struct options *options = connection->options;
    nghttp2_nv headers[8 + MAX_METADATA];
    size_t count = 0;
    headers[count++] = header(":method", "POST");
    headers[count++] = header(":scheme", "http");
    headers[count++] = header(":path", options->method);
    headers[count++] = header(":authority", options->authority);
    headers[count++] = header("te", "trailers");
    headers[count++] = header("content-type", "application/grpc");
    char timeout[16];
    if (with_timeout && options->timeout_s > 0) {
        /* gRPC allows eight digits and a unit. */
        if (options->timeout_s == (double)(unsigned)options->timeout_s) {
            snprintf(timeout, sizeof timeout, "%uS", (unsigned)options->timeout_s);
        } else {
            snprintf(timeout, sizeof timeout, "%um", (unsigned)(options->timeout_s * 1e3));
        }
        headers[count++] = header("grpc-timeout", timeout);
    }
    for (unsigned index = 0; index < options->metadata_count; index++) {
        headers[count++] = header(options->metadata[index].key, options->metadata[index].value);
    }
    nghttp2_data_provider provider = {.source.ptr = exchange, .read_callback = read_out};
    int32_t id = nghttp2_submit_request(connection->session, NULL, headers, count, &provider, exchange);
    if (id < 0) {
        connection->leaving = true; /* out of stream ids, or told to go */
        return false;
    }
    exchange->connection = connection;
    exchange->id = id;
    exchange->http_status = exchange->grpc_status = -1;
    exchange->message[0] = '\0';
    exchange->in.size = 0;
    exchange->before = NULL;
    exchange->after = connection->open;
    if (connection->open != NULL) {
        connection->open->before = exchange;
    }
    connection->open = exchange;
    return true;
}

void exchange_resume(struct exchange *exchange) {
    if (exchange->connection != NULL) {
        nghttp2_session_resume_data(exchange->connection->session, exchange->id);
    }
}

void exchange_cancel(struct exchange *exchange) {
    nghttp2_submit_rst_stream(exchange->connection->session, NGHTTP2_FLAG_NONE, exchange->id, NGHTTP2_CANCEL);
}

void connection_receive(struct connection *connection) {
    static uint8_t room[AT_ONCE];
    for (int turn = 0; turn < READS_IN_A_ROW; turn++) {
        ssize_t got = recv(connection->fd, room, sizeof room, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (got <= 0 || nghttp2_session_mem_recv(connection->session, room, (size_t)got) < 0) {
            connection_again(connection);
            return;
        }
        if ((size_t)got < sizeof room) {
            return;
        }
    }
}

/* Lets epoll tell when the socket takes more, or no longer. */
static void set_blocked(struct connection *connection, bool blocked) {
    if (connection->blocked != blocked) {
        connection->blocked = blocked;
        struct epoll_event event = {.events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = connection};
        epoll_ctl(connection->epoll, EPOLL_CTL_MOD, connection->fd, &event);
    }
}

/* Takes frames from nghttp2 until there are enough for one system call; false if the session is broken. */
static bool fill(struct connection *connection) {
    while (connection->out.size < AT_ONCE) {
        const uint8_t *data;
        ssize_t size = nghttp2_session_mem_send(connection->session, &data);
        if (size <= 0) {
            return size == 0;
        }
        bytes_add(&connection->out, data, (size_t)size);
    }
    return true;
}

void connection_flush(struct connection *connection) {
    if (connection->leaving && connection->open == NULL) {
        connection_again(connection);
        return;
    }
    for (;;) {
        if (connection->out_at == connection->out.size) {
            connection->out.size = connection->out_at = 0;
            if (!fill(connection)) {
                connection_again(connection);
                return;
            }
            if (connection->out.size == 0) {
                set_blocked(connection, false);
                return;
            }
        }
        ssize_t sent = send(connection->fd, connection->out.data + connection->out_at,
                            connection->out.size - connection->out_at, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0 && errno == EAGAIN) {
            set_blocked(connection, true);
            return;
        }
        if (sent < 0) {
            connection_again(connection);
            return;
        }
        connection->out_at += (size_t)sent;
    }
}
