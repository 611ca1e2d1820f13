#include "bytes.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("generator: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

void *grown(void *old, size_t size) {
    void *found = realloc(old, size);
    if (found == NULL) {
        give_up("out of memory for %zu bytes", size);
    }
    return found;
}

uint8_t *bytes_room(struct bytes *bytes, size_t size) {
    if (bytes->size + size > bytes->capacity) {
        size_t capacity = bytes->capacity ? bytes->capacity : 256;
        while (capacity < bytes->size + size) {
            capacity *= 2;
        }
        bytes->data = grown(bytes->data, capacity);
        bytes->capacity = capacity;
    }
    return bytes->data + bytes->size;
}

void bytes_add(struct bytes *bytes, const void *data, size_t size) {
    if (size > 0) {
        memcpy(bytes_room(bytes, size), data, size);
        bytes->size += size;
    }
}

void bytes_drop(struct bytes *bytes, size_t size) {
    bytes->size -= size;
    if (bytes->size > 0 && size > 0) {
        memmove(bytes->data, bytes->data + size, bytes->size);
    }
}

void bytes_free(struct bytes *bytes) {
    free(bytes->data);
    *bytes = (struct bytes){0};
}

struct bytes bytes_of_file(const char *path) {
    struct bytes found = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        give_up("%s: %s", path, strerror(errno));
    }
    size_t got;
    while ((got = fread(bytes_room(&found, 65536), 1, 65536, file)) > 0) {
        found.size += got;
    }
    if (ferror(file)) {
        give_up("%s cannot be read", path);
    }
    fclose(file);
    return found;
}

void add_varint(struct bytes *bytes, uint64_t value) {
    uint8_t *at = bytes_room(bytes, 10);
    uint8_t *start = at;
    while (value >= 0x80) {
        *at++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *at++ = (uint8_t)value;
    bytes->size += (size_t)(at - start);
}

size_t varint_size(uint64_t value) {
    size_t size = 1;
    while (value >= 0x80) {
        value >>= 7;
        size++;
    }
    return size;
}

bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    uint64_t found = 0;
    for (unsigned shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        found |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = found;
            return true;
        }
    }
    return false;
}

uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}
