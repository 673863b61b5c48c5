/* Sees every operation that changes files below one folder, and can kill the process, fail or be recorded at any.
 *
 * Preloaded (LD_PRELOAD) into a Python process, which arms it through ctypes. Operations are counted from 1, over all
 * threads, in the order in which they reach the lock here.
 *
 *   faultline_watch(folder)                     count operations on what lies below `folder`
 *   faultline_fail(first, last, error)          operations first..last fail with errno `error`; 0: SIGKILL before first
 *   faultline_record(file)                      append every operation, with the data written, to `file`
 *   faultline_count()                           operations so far
 *
 * A record is a line of JSON; `data` follows a line that has "bytes" as so many raw bytes and a newline.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static long count, first_failing, last_failing;
static int failing_error;
static FILE *record;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faultline_watch(const char *folder) {
    strncpy(root, folder, sizeof root - 1);
    count = first_failing = last_failing = 0;
}

void faultline_fail(long first, long last, int error) {
    first_failing = first;
    last_failing = last;
    failing_error = error;
}

int faultline_record(const char *file) {
    record = fopen(file, "w");
    return record != NULL;
}

long faultline_count(void) { return count; }

void faultline_stop(void) {
    pthread_mutex_lock(&lock);
    root[0] = 0;
    if (record) fclose(record);
    record = NULL;
    pthread_mutex_unlock(&lock);
}

/* The absolute path of what an operation names, or 0 where that does not lie below the folder. */
static int resolve(int folder, const char *path, char *into) {
    if (!root[0] || !path) return 0;
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        char link[64];
        ssize_t length;
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            if ((length = readlink(link, base, sizeof base - 1)) < 0) return 0;
            base[length] = 0;
        }
    }
    if (snprintf(into, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", path) >= PATH_MAX) return 0;
    size_t length = strlen(root);
    return strncmp(into, root, length) == 0 && (into[length] == '/' || !into[length]);
}

static int resolve_fd(int fd, char *into) { /* after a rename this is the new name */
    char link[64];
    if (!root[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, into, PATH_MAX - 1);
    if (length < 0) return 0;
    into[length] = 0;
    size_t root_length = strlen(root);
    return strncmp(into, root, root_length) == 0 && (into[root_length] == '/' || !into[root_length]);
}

/* Counts an operation; the lock is held from here to `end`. Returns whether it fails, with errno set. */
static int begin(void) {
    pthread_mutex_lock(&lock);
    count++;
    if (first_failing && count >= first_failing && count <= last_failing) {
        if (!failing_error) kill(getpid(), SIGKILL);
        pthread_mutex_unlock(&lock);
        errno = failing_error;
        return 1;
    }
    return 0;
}

static void quote(const char *text) {
    fputc('"', record);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', record);
        fputc(*text, record);
    }
    fputc('"', record);
}

/* What was done, if it succeeded. Keeps errno. */
static void end(int succeeded, const char *name, const char *path, const char *second, long inode, long offset,
                const void *data, size_t num_bytes) {
    int error = errno;
    if (record && succeeded) {
        fprintf(record, "{\"op\": \"%s\", \"path\": ", name);
        quote(path);
        if (second) fputs(", \"to\": ", record), quote(second);
        fprintf(record, ", \"inode\": %ld, \"offset\": %ld, \"bytes\": %zu}\n", inode, offset, data ? num_bytes : 0);
        if (data) fwrite(data, 1, num_bytes, record), fputc('\n', record);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
}

static long inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? -1 : (long)found.st_ino;
}

/* --- opening */

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    char where[PATH_MAX];
    int changes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
    if (!changes || (flags & O_TMPFILE) == O_TMPFILE || !resolve(folder, path, where))
        return REAL(openat64)(folder, path, flags, mode);
    struct stat before;
    if (begin()) return -1;
    int was_there = !fstatat(folder, path, &before, 0);
    int fd = REAL(openat64)(folder, path, flags, mode);
    int made = fd >= 0 && !was_there, cut = fd >= 0 && was_there && (flags & O_TRUNC);
    end(made || cut, made ? "create" : "truncate", where, NULL, fd >= 0 ? inode_of(fd) : -1, 0, NULL, 0);
    return fd;
}

#define MODE(flags)                                   \
    mode_t mode = 0;                                  \
    if ((flags) & (O_CREAT | O_TMPFILE)) {            \
        va_list rest;                                 \
        va_start(rest, flags);                        \
        mode = va_arg(rest, mode_t);                  \
        va_end(rest);                                 \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* --- contents */

static off_t position(int fd) {
    struct stat found;
    if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &found) ? -1 : found.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t num_bytes) {
    char where[PATH_MAX];
    if (!resolve_fd(fd, where)) return REAL(write)(fd, data, num_bytes);
    if (begin()) return -1;
    off_t offset = position(fd);
    ssize_t written = REAL(write)(fd, data, num_bytes);
    end(written > 0, "write", where, NULL, inode_of(fd), offset, data, written);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t num_bytes, off64_t offset) {
    char where[PATH_MAX];
    if (!resolve_fd(fd, where)) return REAL(pwrite64)(fd, data, num_bytes, offset);
    if (begin()) return -1;
    ssize_t written = REAL(pwrite64)(fd, data, num_bytes, offset);
    end(written > 0, "write", where, NULL, inode_of(fd), offset, data, written);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t num_bytes, off_t offset) { return pwrite64(fd, data, num_bytes, offset); }

ssize_t writev(int fd, const struct iovec *parts, int num_parts) { /* the first part alone: callers go on by themselves */
    char where[PATH_MAX];
    if (!resolve_fd(fd, where)) return REAL(writev)(fd, parts, num_parts);
    for (int i = 0; i < num_parts; i++)
        if (parts[i].iov_len) return write(fd, parts[i].iov_base, parts[i].iov_len);
    return 0;
}

int ftruncate64(int fd, off64_t length) {
    char where[PATH_MAX];
    if (!resolve_fd(fd, where)) return REAL(ftruncate64)(fd, length);
    if (begin()) return -1;
    int result = REAL(ftruncate64)(fd, length);
    end(!result, "resize", where, NULL, inode_of(fd), length, NULL, 0);
    return result;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int sync_fd(int fd, int (*real)(int)) {
    char where[PATH_MAX];
    if (!resolve_fd(fd, where)) return real(fd);
    if (begin()) return -1;
    int result = real(fd);
    end(!result, "fsync", where, NULL, inode_of(fd), 0, NULL, 0);
    return result;
}

int fsync(int fd) { return sync_fd(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_fd(fd, REAL(fdatasync)); }

/* --- names */

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    int watched = resolve(from_folder, from, source) & resolve(to_folder, to, target);
    if (!watched) return REAL(renameat)(from_folder, from, to_folder, to);
    if (begin()) return -1;
    int result = REAL(renameat)(from_folder, from, to_folder, to);
    end(!result, "rename", source, target, 0, 0, NULL, 0);
    return result;
}

int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int unlinkat(int folder, const char *path, int flags) {
    char where[PATH_MAX];
    if (!resolve(folder, path, where)) return REAL(unlinkat)(folder, path, flags);
    if (begin()) return -1;
    int result = REAL(unlinkat)(folder, path, flags);
    end(!result, flags & AT_REMOVEDIR ? "rmdir" : "unlink", where, NULL, 0, 0, NULL, 0);
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t mode) {
    char where[PATH_MAX];
    if (!resolve(folder, path, where)) return REAL(mkdirat)(folder, path, mode);
    if (begin()) return -1;
    int result = REAL(mkdirat)(folder, path, mode);
    end(!result, "mkdir", where, NULL, 0, 0, NULL, 0);
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
