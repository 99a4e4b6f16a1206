/* A disk that fails on demand: loaded before the C library, it counts the calls that touch files under a folder, and
 * makes the chosen one fail, or all from there on.  In the manner of SQLite's tests of I/O errors.
 *
 * Built and driven by injector.py. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, SYNC, RENAME, MAP, STAT, MKDIR, UNLINK };
enum { HALF = -1, NOTHING = -2 }; /* kinds of failure that are no error number: a short transfer, and an early end */

static char folder[4096];
static size_t folder_length;
static int armed, operation, kind, lasting;
static long chosen, calls;

void arm(const char *root, int which, int how, long nth, int for_good) {
    strncpy(folder, root, sizeof folder - 1);
    folder_length = strlen(folder);
    operation = which, kind = how, chosen = nth, lasting = for_good, calls = 0, armed = 1;
}

long disarm(void) {
    armed = 0;
    return calls;
}

static int is_ours(const char *path) {
    return path && strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || !path[folder_length]);
}

/* Whether this call, of such an operation on such a path, is to fail. */
static int fails(int which, const char *path) {
    if (!armed || which != operation || !is_ours(path)) return 0;
    calls++;
    return chosen && (calls == chosen || (lasting && calls > chosen));
}

static int fails_on(int which, int descriptor) {
    char link[64], path[4096];
    if (!armed || which != operation || descriptor < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(which, path);
}

#define REAL(type, name, ...)                                  \
    static type (*real)(__VA_ARGS__);                          \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define FAIL(value) do { errno = kind; return value; } while (0)

#define OPENS(name)                                                              \
    int name(const char *path, int flags, ...) {                                 \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = va_arg(rest, mode_t);                                      \
        va_end(rest);                                                            \
        REAL(int, #name, const char *, int, ...);                                \
        if (fails(OPEN, path)) FAIL(-1);                                         \
        return real(path, flags, mode);                                          \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                           \
    int name(int at, const char *path, int flags, ...) {                         \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = va_arg(rest, mode_t);                                      \
        va_end(rest);                                                            \
        REAL(int, #name, int, const char *, int, ...);                           \
        if (fails(OPEN, path)) FAIL(-1);                                         \
        return real(at, path, flags, mode);                                      \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    if (fails(OPEN, path)) FAIL(NULL);
    return real(path);
}

ssize_t read(int descriptor, void *into, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (fails_on(READ, descriptor)) {
        if (kind == NOTHING) return 0;
        if (kind == HALF) return real(descriptor, into, size > 1 ? size / 2 : size);
        FAIL(-1);
    }
    return real(descriptor, into, size);
}

#define READS_AT(name, offset_type)                                              \
    ssize_t name(int descriptor, void *into, size_t size, offset_type at) {      \
        REAL(ssize_t, #name, int, void *, size_t, offset_type);                  \
        if (fails_on(READ, descriptor)) {                                        \
            if (kind == NOTHING) return 0;                                       \
            if (kind == HALF) return real(descriptor, into, size > 1 ? size / 2 : size, at); \
            FAIL(-1);                                                            \
        }                                                                        \
        return real(descriptor, into, size, at);                                 \
    }
READS_AT(pread, off_t)
READS_AT(pread64, off64_t)

ssize_t write(int descriptor, const void *from, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (fails_on(WRITE, descriptor)) {
        if (kind == HALF) return real(descriptor, from, size > 1 ? size / 2 : size);
        FAIL(-1);
    }
    return real(descriptor, from, size);
}

int fsync(int descriptor) {
    REAL(int, "fsync", int);
    if (fails_on(SYNC, descriptor)) FAIL(-1);
    return real(descriptor);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (fails(RENAME, to)) FAIL(-1);
    return real(from, to);
}

#define MAPS(name, offset_type)                                                  \
    void *name(void *at, size_t size, int protection, int flags, int descriptor, offset_type offset) { \
        REAL(void *, #name, void *, size_t, int, int, int, offset_type);         \
        if (fails_on(MAP, descriptor)) FAIL(MAP_FAILED);                         \
        return real(at, size, protection, flags, descriptor, offset);            \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

#define STATS(name, kind_of_stat)                                                \
    int name(const char *path, struct kind_of_stat *into) {                      \
        REAL(int, #name, const char *, struct kind_of_stat *);                   \
        if (fails(STAT, path)) FAIL(-1);                                         \
        return real(path, into);                                                 \
    }
STATS(stat, stat)
STATS(stat64, stat64)
STATS(lstat, stat)
STATS(lstat64, stat64)

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (fails(MKDIR, path)) FAIL(-1);
    return real(path, mode);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (fails(UNLINK, path)) FAIL(-1);
    return real(path);
}
