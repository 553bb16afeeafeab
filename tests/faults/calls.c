/* Ends or hampers the process that preloads it at one of its system calls that change files, so that a test can do that at each of them in turn.

   From calls_arm on, each such call gets a number, 1 for the first one, if it concerns a file below a folder. The hooks stand between programs and
   libc, so they see what native libraries write too; what libc calls inside itself, as in fwrite, is seen at the outer function.
   A process that was forked from this one is left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, SEND_SIGNAL, FAIL_ONCE, FAIL_FOR_GOOD };

static char root[PATH_MAX];
static size_t root_length;
static pid_t armed;
static int log_file = -1, what = COUNT, argument;
static long chosen;
static atomic_long count;

/* Count the calls below FOLDER. At call AT, or from it on, do ACTION: send the signal ARGUMENT to this process before the call, or let the call fail
   with the error ARGUMENT in place of doing anything; for good concerns only calls that take room on the disk. LOG is a descriptor for a line a call. */
void calls_arm(const char *folder, long at, int action, int with, int log) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    chosen = at;
    what = action;
    argument = with;
    log_file = log;
    atomic_store(&count, 0);
    armed = getpid();
}

static int below_root(const char *path) {
    return !strncmp(path, root, root_length) && (!path[root_length] || path[root_length] == '/');
}

static int path_of(int descriptor, char *path) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int full_path(int folder, const char *name, char *path) {
    size_t used = 0;
    if (name[0] != '/') {
        if (folder == AT_FDCWD ? syscall(SYS_getcwd, path, PATH_MAX) < 0 : !path_of(folder, path))
            return 0;
        used = strlen(path);
        path[used++] = '/';
    }
    if (used + strlen(name) >= PATH_MAX)
        return 0;
    strcpy(path + used, name);
    return 1;
}

/* Whether the call has to fail; errno says how. */
static int reached(const char *call, const char *path, int takes_room) {
    if (!below_root(path))
        return 0;
    long now = atomic_fetch_add(&count, 1) + 1;
    if (log_file >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", now, call, path);
        syscall(SYS_write, log_file, line, (size_t)length);
    }
    if (what == SEND_SIGNAL && now == chosen) {
        syscall(SYS_kill, armed, argument);
        while (argument == SIGKILL)
            pause();
    }
    if ((what == FAIL_ONCE && now == chosen) || (what == FAIL_FOR_GOOD && now >= chosen && takes_room)) {
        errno = argument;
        return 1;
    }
    return 0;
}

static int at_path(const char *call, int folder, const char *name, int takes_room) {
    char path[PATH_MAX];
    int kept = errno;
    if (!armed || armed != getpid() || !name || !full_path(folder, name, path)) {
        errno = kept;
        return 0;
    }
    errno = kept;
    return reached(call, path, takes_room);
}

static int at_descriptor(const char *call, int descriptor, int takes_room) {
    char path[PATH_MAX];
    int kept = errno;
    if (!armed || armed != getpid() || !path_of(descriptor, path)) {
        errno = kept;
        return 0;
    }
    errno = kept;
    return reached(call, path, takes_room);
}

static int at_stream(const char *call, FILE *stream, int takes_room) {
    return stream && at_descriptor(call, fileno(stream), takes_room);
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

static int makes(int flags) { return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE; }

#define REAL(name)                                                                                                     \
    static __typeof__(name) *real;                                                                                     \
    if (!real)                                                                                                         \
    real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (makes(flags)) {                                                                                                \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }

#define HOOK_OPEN(name)                                                                                                \
    int name(const char *path, int flags, ...) {                                                                       \
        REAL(name);                                                                                                    \
        MODE                                                                                                           \
        if (writes(flags) && at_path("open", AT_FDCWD, path, makes(flags)))                                            \
            return -1;                                                                                                 \
        return real(path, flags, mode);                                                                                \
    }
HOOK_OPEN(open)
HOOK_OPEN(open64)

#define HOOK_OPENAT(name)                                                                                              \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        REAL(name);                                                                                                    \
        MODE                                                                                                           \
        if (writes(flags) && at_path("open", folder, path, makes(flags)))                                              \
            return -1;                                                                                                 \
        return real(folder, path, flags, mode);                                                                        \
    }
HOOK_OPENAT(openat)
HOOK_OPENAT(openat64)

/* What programs that were compiled with checks call for an open without a mode. */
int __open_2(const char *, int);
int __open64_2(const char *, int);
#define HOOK_CHECKED_OPEN(name)                                                                                        \
    int name(const char *path, int flags) {                                                                            \
        REAL(name);                                                                                                    \
        if (writes(flags) && at_path("open", AT_FDCWD, path, 0))                                                       \
            return -1;                                                                                                 \
        return real(path, flags);                                                                                      \
    }
HOOK_CHECKED_OPEN(__open_2)
HOOK_CHECKED_OPEN(__open64_2)

#define HOOK_CREAT(name)                                                                                               \
    int name(const char *path, mode_t mode) {                                                                          \
        REAL(name);                                                                                                    \
        return at_path("open", AT_FDCWD, path, 1) ? -1 : real(path, mode);                                             \
    }
HOOK_CREAT(creat)
HOOK_CREAT(creat64)

#define HOOK_FOPEN(name)                                                                                               \
    FILE *name(const char *path, const char *how) {                                                                    \
        REAL(name);                                                                                                    \
        if (strpbrk(how, "wa+") && at_path("open", AT_FDCWD, path, strpbrk(how, "wa") != NULL))                        \
            return NULL;                                                                                               \
        return real(path, how);                                                                                        \
    }
HOOK_FOPEN(fopen)
HOOK_FOPEN(fopen64)

ssize_t write(int file, const void *content, size_t size) {
    REAL(write);
    return at_descriptor("write", file, 1) ? -1 : real(file, content, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
    REAL(writev);
    return at_descriptor("write", file, 1) ? -1 : real(file, parts, number);
}

#define HOOK_PWRITE(name)                                                                                              \
    ssize_t name(int file, const void *content, size_t size, off_t place) {                                            \
        REAL(name);                                                                                                    \
        return at_descriptor("write", file, 1) ? -1 : real(file, content, size, place);                                \
    }
HOOK_PWRITE(pwrite)
HOOK_PWRITE(pwrite64)

#define HOOK_PWRITEV(name)                                                                                             \
    ssize_t name(int file, const struct iovec *parts, int number, off_t place) {                                       \
        REAL(name);                                                                                                    \
        return at_descriptor("write", file, 1) ? -1 : real(file, parts, number, place);                                \
    }
HOOK_PWRITEV(pwritev)
HOOK_PWRITEV(pwritev64)

#define HOOK_SENDFILE(name)                                                                                            \
    ssize_t name(int to, int from, off_t *place, size_t size) {                                                        \
        REAL(name);                                                                                                    \
        return at_descriptor("write", to, 1) ? -1 : real(to, from, place, size);                                       \
    }
HOOK_SENDFILE(sendfile)
HOOK_SENDFILE(sendfile64)

ssize_t copy_file_range(int from, off64_t *from_place, int to, off64_t *to_place, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return at_descriptor("write", to, 1) ? -1 : real(from, from_place, to, to_place, size, flags);
}

size_t fwrite(const void *content, size_t size, size_t number, FILE *stream) {
    REAL(fwrite);
    return at_stream("write", stream, 1) ? 0 : real(content, size, number, stream);
}

int fflush(FILE *stream) {
    REAL(fflush);
    return at_stream("write", stream, 1) ? EOF : real(stream);
}

int fclose(FILE *stream) {
    REAL(fclose);
    if (!at_stream("close", stream, 1))
        return real(stream);
    /* The stream is gone all the same. */
    int kept = errno;
    real(stream);
    errno = kept;
    return EOF;
}

#define HOOK_DESCRIPTOR(name, takes_room)                                                                              \
    int name(int file) {                                                                                               \
        REAL(name);                                                                                                    \
        return at_descriptor("fsync", file, takes_room) ? -1 : real(file);                                             \
    }
HOOK_DESCRIPTOR(fsync, 0)
HOOK_DESCRIPTOR(fdatasync, 0)

#define HOOK_FTRUNCATE(name)                                                                                           \
    int name(int file, off_t size) {                                                                                   \
        REAL(name);                                                                                                    \
        return at_descriptor("truncate", file, 1) ? -1 : real(file, size);                                             \
    }
HOOK_FTRUNCATE(ftruncate)
HOOK_FTRUNCATE(ftruncate64)

#define HOOK_TRUNCATE(name)                                                                                            \
    int name(const char *path, off_t size) {                                                                           \
        REAL(name);                                                                                                    \
        return at_path("truncate", AT_FDCWD, path, 1) ? -1 : real(path, size);                                         \
    }
HOOK_TRUNCATE(truncate)
HOOK_TRUNCATE(truncate64)

#define HOOK_ALLOCATE(name)                                                                                            \
    int name(int file, off_t place, off_t size) {                                                                      \
        REAL(name);                                                                                                    \
        /* It returns the error. */                                                                                    \
        return at_descriptor("write", file, 1) ? errno : real(file, place, size);                                      \
    }
HOOK_ALLOCATE(posix_fallocate)
HOOK_ALLOCATE(posix_fallocate64)

#define HOOK_PATH(name, call)                                                                                          \
    int name(const char *path) {                                                                                       \
        REAL(name);                                                                                                    \
        return at_path(call, AT_FDCWD, path, 0) ? -1 : real(path);                                                     \
    }
HOOK_PATH(unlink, "unlink")
HOOK_PATH(rmdir, "rmdir")
HOOK_PATH(remove, "unlink")

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return at_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, 0) ? -1 : real(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return at_path("mkdir", AT_FDCWD, path, 1) ? -1 : real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    return at_path("mkdir", folder, path, 1) ? -1 : real(folder, path, mode);
}

#define HOOK_TWO(name, call, takes_room)                                                                               \
    int name(const char *from, const char *to) {                                                                       \
        REAL(name);                                                                                                    \
        return at_path(call, AT_FDCWD, to, takes_room) ? -1 : real(from, to);                                          \
    }
HOOK_TWO(rename, "rename", 0)
HOOK_TWO(link, "link", 1)
HOOK_TWO(symlink, "symlink", 1)

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    return at_path("rename", to_folder, to, 0) ? -1 : real(from_folder, from, to_folder, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(renameat2);
    return at_path("rename", to_folder, to, 0) ? -1 : real(from_folder, from, to_folder, to, flags);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(linkat);
    return at_path("link", to_folder, to, 1) ? -1 : real(from_folder, from, to_folder, to, flags);
}

int symlinkat(const char *from, int to_folder, const char *to) {
    REAL(symlinkat);
    return at_path("symlink", to_folder, to, 1) ? -1 : real(from, to_folder, to);
}
