/* Growable bytes, protobuf's varints, and time. */
#ifndef GENERATOR_BYTES_H
#define GENERATOR_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
    uint8_t *data;
    size_t size;
    size_t capacity;
};

/* Says why on stderr and ends with code 2: for what the caller of the program can mend. */
_Noreturn void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* As malloc's and realloc's, but never NULL: without memory there is no measurement. */
void *grown(void *old, size_t size);

/* Room for `size` more bytes behind the last; returns where they begin. `size` is not added to. */
uint8_t *bytes_room(struct bytes *bytes, size_t size);
void bytes_add(struct bytes *bytes, const void *data, size_t size);
/* Drops the first `size` bytes. */
void bytes_drop(struct bytes *bytes, size_t size);
void bytes_free(struct bytes *bytes);
/* Reads a whole file, or gives up. */
struct bytes bytes_of_file(const char *path);

void add_varint(struct bytes *bytes, uint64_t value);
size_t varint_size(uint64_t value);
/* Reads a varint and moves `*at` behind it; false if it does not end before `end`. */
bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value);

/* Monotonic nanoseconds. */
uint64_t now_ns(void);

#endif
